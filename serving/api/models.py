"""`/v1/models`: versions and aliases as the registry wants them and as serving has them; promotion and rollback."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from serving.announce import WANTED, announce
from serving.api.context import Admin, ApiContext, Context
from serving.errors import RequestError
from training.errors import RegistryError
from training.registry import CHAMPION, SERVING_TAG, ModelVersion

router = APIRouter(prefix="/v1/models", tags=["models"])


class ModelChange(BaseModel):
    """What to serve."""

    model_config = ConfigDict(extra="forbid")

    version: str | int | None = None
    """Number of a version, or an alias whose version is meant."""
    alias: str = CHAMPION
    """The alias to move; `champion` takes default traffic."""
    mode: Literal["promote", "rollback", "canary", "shadow"] = "promote"
    traffic: float | None = None
    """Share of traffic of a canary."""


class AliasTarget(BaseModel):
    """Where an alias should point."""

    model_config = ConfigDict(extra="forbid")

    version: str | int


class AliasName(BaseModel):
    """Which alias to roll back."""

    model_config = ConfigDict(extra="forbid")

    alias: str = CHAMPION


@router.get("")
def list_models(context: Context, actor: Admin) -> dict[str, Any]:
    """Versions and aliases: what the registry wants, and what is served."""
    return _listing(context)


@router.put("/{model_id}")
def update_model(model_id: str, change: ModelChange, context: Context, actor: Admin) -> dict[str, Any]:
    """Promote a version, or roll back. Serving follows within seconds: `wanted` and `champion` show how far it is."""
    context.check_model_id(model_id)
    if change.mode in {"canary", "shadow"}:
        raise RequestError(
            f"mode {change.mode!r} is not available yet: start an experiment with traffic below 1 instead",
            code="not_available",
            field="mode",
        )
    if change.traffic is not None:
        raise RequestError("traffic belongs to mode canary", field="traffic")
    if change.mode == "rollback":
        if change.version is not None:
            raise RequestError("a rollback takes no version: promote the one that you want", field="version")
        return _rollback(context, change.alias, actor)
    if change.version is None:
        raise RequestError("promote needs a version", field="version")
    return _promote(context, change.alias, str(change.version), actor)


@router.put("/{model_id}/aliases/{alias}")
def set_alias(model_id: str, alias: str, target: AliasTarget, context: Context, actor: Admin) -> dict[str, Any]:
    """Point an alias at a version."""
    context.check_model_id(model_id)
    return _promote(context, alias, str(target.version), actor)


@router.post("/{model_id}/rollback")
def rollback(model_id: str, context: Context, actor: Admin, which: AliasName | None = None) -> dict[str, Any]:
    """Move an alias back to the version before."""
    context.check_model_id(model_id)
    return _rollback(context, (which or AliasName()).alias, actor)


def _promote(context: ApiContext, alias: str, wanted: str, actor: str) -> dict[str, Any]:
    before, version = context.aliases().get(alias), context.servable_version(wanted, "version")
    context.registry.set_alias(alias, version, by=actor)
    return _moved(context, alias, before, version, "promote", actor)


def _rollback(context: ApiContext, alias: str, actor: str) -> dict[str, Any]:
    context.aliases()
    try:
        before, after = context.registry.rollback(alias, by=actor)
    except RegistryError as error:
        raise RequestError(str(error), code="no_earlier_version", status=409, field="alias") from None
    return _moved(context, alias, before, after, "rollback", actor)


def _moved(context: ApiContext, alias: str, before: str | None, after: str, action: str, actor: str) -> dict[str, Any]:
    context.control.audit.record(actor=actor, action=f"alias.{action}", subject=f"alias:{alias}", before=before, after=after)
    announce(context.config, WANTED)  # without waiting for MLflow's webhook
    return {**_listing(context), "alias": alias, "version": after, "previous": before}


def _listing(context: ApiContext) -> dict[str, Any]:
    """`aliases` and `wanted` (the champion's version) are the registry's, `champion` and `live` what is served now."""
    aliases, state = context.aliases(), context.control.state()
    return {
        "model_id": context.config.paths.registered_model,
        "aliases": aliases,
        "wanted": aliases.get(CHAMPION),
        "champion": state.champion,
        "live": sorted(state.versions, key=int),
        "versions": [_described(one) for one in context.registry.versions()],
    }


def _described(version: ModelVersion) -> dict[str, Any]:
    return {
        "version": version.version,
        "aliases": list(version.aliases),
        "created_at": version.created_at.isoformat(),
        "serving": version.tags.get(SERVING_TAG),
        "gate": version.gate,
        "servable": version.servable,
        "metrics": version.metrics,
        "run_id": version.run_id,
    }
