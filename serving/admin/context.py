"""What admin routes share: stores, the registry, the token check and the change that everybody hears of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from fastapi import Request

from features.catalogue import Catalogue
from features.control_store import ControlStore
from serving.announce import announce
from serving.config import Scope, ServingConfig
from serving.control import ServingControl
from serving.http import authorize
from training.registry import Registry


@dataclass(frozen=True)
class AdminContext:
    """One dataset's stores as admin routes use them. Opened at the first call, so that a gateway starts without them."""

    config: ServingConfig

    @cached_property
    def store(self) -> ControlStore:
        """The control store."""
        return ControlStore(self.config.control_url).create()

    @cached_property
    def control(self) -> ServingControl:
        """Routing state, experiments, audit log."""
        return ServingControl(self.store, self.config.dataset)

    @cached_property
    def catalogue(self) -> Catalogue:
        """Items and users."""
        return Catalogue(self.store, self.config.dataset)

    @cached_property
    def registry(self) -> Registry:
        """Versions and aliases in MLflow."""
        return Registry(self.config.mlflow_uri, self.config.dataset, cache=self.config.home / "bundles")

    def changed(self) -> None:
        """Tell all gateways that the control store has changed."""
        announce(self.config)

    def scope(self, wanted: Scope) -> Callable[[Request], str]:
        """A dependency that refuses calls without that scope and returns who calls, for the audit log."""

        def actor(request: Request) -> str:
            return f"http:{authorize(self.config, request.scope, wanted)}"

        return actor
