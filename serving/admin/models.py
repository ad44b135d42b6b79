"""Model versions over HTTP: what the registry wants, what is served, and the mission's `update_model`.

A promotion is a move of an alias in the registry; the reconciler follows it within seconds. Canary and shadow are refused, with
a reason, until they exist.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from serving.admin.context import AdminContext
from serving.errors import RequestError
from training.errors import RegistryError
from training.registry import CHAMPION, GATE_REASON_TAG, SERVING_TAG, ModelVersion


class ModelUpdate(BaseModel):
    """Body of `PUT /v1/models/{model_id}`."""

    model_config = ConfigDict(extra="forbid")

    version: str | None = Field(default=None, description="Version to promote: a number, or an alias that points at it.")
    alias: str = Field(default=CHAMPION, description="Alias to move; `champion` takes all traffic outside experiments.")
    traffic: float | None = Field(default=None, ge=0, le=1, description="Share of a canary.")
    mode: Literal["promote", "canary", "shadow", "rollback"] = "promote"


class AliasTarget(BaseModel):
    """Body of `PUT /v1/models/{model_id}/aliases/{alias}`."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(description="Version number, or an alias that points at it.")


def router(context: AdminContext) -> APIRouter:
    """Routes of model versions."""
    routes = APIRouter(prefix="/v1/models", tags=["models"])
    admin = Depends(context.scope("admin"))

    @routes.get("")
    def list_models(actor: str = admin) -> dict[str, Any]:
        """Versions and aliases: `aliases` is what the registry wants, `champion` and `live` what is served now."""
        return _described(context)

    @routes.put("/{model_id}")
    def update_model(model_id: str, update: ModelUpdate, actor: str = admin) -> dict[str, Any]:
        """Promote a version, or roll back to the one before. Serving follows within seconds; the answer shows wanted and actual."""
        _check_model(context, model_id)
        if update.mode == "rollback":
            return _rolled_back(context, update.alias, actor)
        if update.mode in ("canary", "shadow"):
            raise RequestError(
                f"mode {update.mode!r} is not available yet: promote, rollback, or start an experiment between two versions",
                code="not_available",
                field="mode",
            )
        if update.version is None:
            raise RequestError("version is required to promote: a number or an alias", field="version")
        return _promoted(context, update.alias, update.version, actor)

    @routes.put("/{model_id}/aliases/{alias}")
    def set_alias(model_id: str, alias: str, target: AliasTarget, actor: str = admin) -> dict[str, Any]:
        """Point an alias at a version."""
        _check_model(context, model_id)
        return _promoted(context, alias, target.version, actor)

    @routes.post("/{model_id}/rollback")
    def rollback(model_id: str, actor: str = admin) -> dict[str, Any]:
        """Serve the champion before the present one again."""
        _check_model(context, model_id)
        return _rolled_back(context, CHAMPION, actor)

    return routes


def _check_model(context: AdminContext, model_id: str) -> None:
    served = context.config.paths.registered_model
    if model_id != served:
        raise RequestError(f"model {model_id!r} is not served here, {served!r} is", code="not_found", status=404, field="model_id")


def _promoted(context: AdminContext, alias: str, wanted: str, actor: str) -> dict[str, Any]:
    try:
        version = context.registry.version(wanted)
    except RegistryError as error:
        raise RequestError(str(error), code="not_found", status=404, field="version") from None
    if not version.servable:
        raise RequestError(
            f"the gate failed version {version.version} ({version.tags.get(GATE_REASON_TAG, 'no reason kept')}): "
            "set the tag shortlist.gate_override to a reason to serve it all the same",
            code="gate_failed",
            status=409,
            field="version",
        )
    before = context.registry.aliases().get(alias)
    context.registry.set_alias(alias, version.version, by=actor)
    context.control.record(actor=actor, action="alias.set", subject=f"alias:{alias}", before=before, after=version.version)
    return _described(context)


def _rolled_back(context: AdminContext, alias: str, actor: str) -> dict[str, Any]:
    try:
        left, taken = context.registry.rollback(alias, by=actor)
    except RegistryError as error:
        raise RequestError(str(error), code="conflict", status=409, field="alias") from None
    context.control.record(actor=actor, action="alias.rollback", subject=f"alias:{alias}", before=left, after=taken)
    return _described(context)


def _described(context: AdminContext) -> dict[str, Any]:
    state = context.control.state()
    return {
        "model_id": context.config.paths.registered_model,
        "aliases": context.registry.aliases(),
        "champion": state.champion,
        "live": sorted(state.versions, key=int),
        "versions": [_version(version) for version in context.registry.versions()],
    }


def _version(version: ModelVersion) -> dict[str, Any]:
    return {
        "version": version.version,
        "aliases": list(version.aliases),
        "serving": version.tags.get(SERVING_TAG),
        "gate": version.gate,
        "metrics": version.metrics,
        "created_at": version.created_at.isoformat(),
        "run_id": version.run_id,
    }
