"""What the routes work with, and who may call them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.openapi.models import HTTPBearer
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase

from features.catalogue import Catalogue
from features.control_store import ControlStore
from serving.announce import WANTED, announce
from serving.answers import Answerer
from serving.config import Scope, ServingConfig
from serving.control import ServingControl
from serving.errors import RequestError
from serving.http import authorize
from serving.rule_store import RuleStore
from serving.webhooks import Deliveries
from training.errors import UnknownVersionError
from training.model_version import GATE_REASON_TAG
from training.registry import Registry


@dataclass(frozen=True)
class ApiContext:
    """Stores of one dataset.

    Args:
        config: of the stack.
        refresh: makes this replica look at the control store at once; the others hear it announced.
        answerer: of this replica, for previews.
    """

    config: ServingConfig
    refresh: Callable[[], None]
    answerer: Answerer

    @cached_property
    def store(self) -> ControlStore:
        """The control store."""
        return ControlStore(self.config.control_url)

    @cached_property
    def control(self) -> ServingControl:
        """Experiments, routing state and audit log."""
        return ServingControl(self.store, self.config.dataset)

    @cached_property
    def rules(self) -> RuleStore:
        """Rules of the dataset."""
        return RuleStore(self.store, self.config.dataset)

    @cached_property
    def catalogue(self) -> Catalogue:
        """Items and users."""
        return Catalogue(self.store, self.config.dataset)

    @cached_property
    def registry(self) -> Registry:
        """Versions and aliases."""
        return Registry(self.config.mlflow_uri, self.config.dataset, cache=self.config.home / "bundles")

    @cached_property
    def deliveries(self) -> Deliveries:
        """Checks of webhook deliveries."""
        return Deliveries(self.store, self.config.webhook_secret_file)

    def changed(self, *, wanted: bool = False) -> None:
        """Say that the control store has changed, and with `wanted` that other versions may be wanted."""
        self.refresh()
        announce(self.config)
        if wanted:
            announce(self.config, WANTED)

    def aliases(self) -> dict[str, str]:
        """Aliases now.

        Raises:
            RegistryError: the registry cannot be reached.
        """
        return self.registry.aliases()

    def servable_version(self, name: str, field: str) -> str:
        """The number of a version, by number or alias, that the gate lets through.

        Raises:
            RequestError: 404 there is none, 409 the gate failed it.
            RegistryError: the registry cannot be reached.
        """
        try:
            version = self.registry.version(name)
        except UnknownVersionError as error:
            raise RequestError(str(error), code="not_found", status=404, field=field) from None
        if not version.servable:
            reason = version.tags.get(GATE_REASON_TAG, "no reason was stored")
            raise RequestError(
                f"the gate failed version {version.version} ({reason}); its tag shortlist.gate_override=<reason> overrides that",
                code="gate_failed",
                status=409,
                field=field,
            )
        return version.version

    def check_model_id(self, model_id: str) -> None:
        """Refuse any other model than the one that is served.

        Raises:
            RequestError: 404.
        """
        served = self.config.paths.registered_model
        if model_id != served:
            raise RequestError(
                f"model {model_id!r} is not served here, {served!r} is", code="not_found", status=404, field="model_id"
            )


def context_of(request: Request) -> ApiContext:
    """The context of the application that a request came to."""
    context: ApiContext = request.app.state.context
    return context


class Require(SecurityBase):
    """A dependency that lets through callers with a scope and gives their name for the audit log; OpenAPI shows the scope.

    What they ask for is then looked at: a parameter that the route has not, or one given twice, is refused.

    Args:
        scope: that the call needs.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope, self.scheme_name, self.model = scope, "bearer", HTTPBearer()

    def __call__(self, request: Request) -> str:
        """The caller's name."""
        name = f"http:{authorize(context_of(request).config, request.scope, self.scope)}"
        _check_parameters(request)
        return name


def _check_parameters(request: Request) -> None:
    route: APIRoute = request.scope["route"]
    allowed, seen = {one.alias for one in route.dependant.query_params}, set[str]()
    for name, _ in request.query_params.multi_items():
        if name not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            raise RequestError(f"unknown parameter {name[:80]!r}; allowed: {known}", field=name[:80])
        if name in seen:
            raise RequestError(f"{name} is given more than once", field=name)
        seen.add(name)


Context = Annotated[ApiContext, Depends(context_of)]
Admin = Annotated[str, Security(Require("admin"), scopes=["admin"])]
Reader = Annotated[str, Security(Require("read"), scopes=["read"])]
