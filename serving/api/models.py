"""`/v1/models`: versions and aliases as the registry wants them and as serving has them; promotion, canary, shadow and rollback."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from experiments.assignment import check_exclusive
from experiments.errors import OverlapError
from experiments.numbers import Number
from serving.announce import WANTED, announce
from serving.api import experiments
from serving.api.answer_schemas import Models, ModelsChanged, errors
from serving.api.context import Admin, ApiContext, Context
from serving.api.route import Route
from serving.canary import CANARY_VARIANT, DEFAULT_SHARE, MAX_SHARE, canary_spec, running_canary
from serving.control import ExperimentRecord, ServingState
from serving.errors import RequestError
from serving.shadow_role import SAMPLE_TAG, SHADOW
from serving.shadow_tally import ShadowTallies
from training.errors import NoEarlierVersionError, UnknownVersionError
from training.model_version import CHAMPION, SERVING_TAG, ModelVersion, check_alias_name

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=Route)
_CHANGES: dict[str, Any] = {
    "response_model": ModelsChanged,
    "response_model_exclude_unset": True,
    "responses": errors(404, 409, 422, 503),
}


def _version_name(given: object) -> str:
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise PydanticCustomError("version_name", "must be a version's number or an alias")
    return str(given)


VersionName = Annotated[str, BeforeValidator(_version_name, json_schema_input_type=str | int)]


class ModelChange(BaseModel):
    """What to serve."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"version": "3"}, {"version": "4", "mode": "canary", "traffic": 0.05}, {"mode": "rollback"}]
        },
    )

    version: VersionName | None = Field(default=None, description="Number of a version, or an alias whose version is meant.")
    alias: str = Field(default=CHAMPION, description="The alias to move; `champion` takes default traffic.")
    mode: Literal["promote", "rollback", "canary", "shadow"] = "promote"
    traffic: Number | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of units that get a canary, or of computed answers that the shadow is asked for too (0 ends it).",
    )


class AliasTarget(BaseModel):
    """Where an alias should point."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"version": "3"}]})

    version: VersionName


class AliasName(BaseModel):
    """Which alias to roll back."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"alias": "champion"}]})

    alias: str = CHAMPION


@router.get("", response_model=Models, responses=errors(503))
def list_models(context: Context, actor: Admin) -> dict[str, Any]:
    """Versions and aliases: what the registry wants, and what is served."""
    return _listing(context)


@router.put("/{model_id}", **_CHANGES)
def update_model(model_id: str, change: ModelChange, context: Context, actor: Admin) -> dict[str, Any]:
    """Promote a version, try it as canary or as shadow, or roll back.

    Serving follows within seconds: `wanted`, `champion`, `canary` and `shadow` show how far it is.
    """
    context.check_model_id(model_id)
    if change.mode == "rollback":
        if change.version is not None or change.traffic is not None:
            field = "traffic" if change.version is None else "version"
            raise RequestError(f"a rollback takes no {field}: promote the version that you want", field=field)
        return _rollback(context, change.alias, actor)
    if change.alias != CHAMPION and change.mode != "promote":
        raise RequestError(f"alias belongs to modes promote and rollback, not to {change.mode}", field="alias")
    if change.mode == "shadow" and change.traffic == 0:
        return _end_shadow(context, actor)
    if change.version is None:
        raise RequestError(f"{change.mode} needs a version", field="version")
    if change.mode == "shadow":
        return _shadow(context, change.version, change.traffic, actor)
    if change.mode == "canary":
        return _canary(context, change.version, change.traffic, actor)
    if change.traffic is not None:
        raise RequestError("traffic belongs to modes canary and shadow", field="traffic")
    return _promote(context, change.alias, change.version, actor)


@router.put("/{model_id}/aliases/{alias}", **_CHANGES)
def set_alias(model_id: str, alias: str, target: AliasTarget, context: Context, actor: Admin) -> dict[str, Any]:
    """Point an alias at a version."""
    context.check_model_id(model_id)
    return _promote(context, alias, target.version, actor)


@router.post("/{model_id}/rollback", **_CHANGES)
def rollback(model_id: str, context: Context, actor: Admin, which: AliasName | None = None) -> dict[str, Any]:
    """Move an alias back to the version before."""
    context.check_model_id(model_id)
    return _rollback(context, (which or AliasName()).alias, actor)


def _promote(context: ApiContext, alias: str, wanted: str, actor: str) -> dict[str, Any]:
    check_alias_name(alias)
    before, version = context.aliases().get(alias), context.servable_version(wanted, "version")
    context.registry.set_alias(alias, version, by=actor)
    if alias == CHAMPION:  # a canary of it has what it was tried for
        _stop_canary(context, running_canary(context.control, version), actor)
    return _moved(context, alias, before, version, "promote", actor)


def _canary(context: ApiContext, wanted: str, traffic: float | None, actor: str) -> dict[str, Any]:
    """Start a canary, or raise the traffic of the one that runs."""
    version, champion = context.servable_version(wanted, "version"), context.aliases().get(CHAMPION)
    if champion is None or champion == version:
        raise RequestError(
            "a canary is compared with the champion: " + ("there is none" if champion is None else f"version {version} is it"),
            code="conflict",
            status=409,
            field="version",
        )
    present = running_canary(context.control, version)
    if traffic is None and present is not None:
        return _listing(context)
    share = DEFAULT_SHARE if traffic is None else traffic
    if not 0 < share <= MAX_SHARE:
        raise RequestError(
            f"traffic of a canary must be above 0 and at most {MAX_SHARE:g}, as the control takes as much: promote for more",
            field="traffic",
        )
    if present is not None:
        if 2 * share < present.spec.traffic:
            raise RequestError(
                f"traffic {share:g} is below the canary's present {present.spec.traffic / 2:g}: units would leave their variant; "
                f"stop experiment {present.spec.name} and start another canary instead",
                field="traffic",
            )
        experiments.ramp_experiment(present.spec.name, context, actor, 2 * share)
        return _listing(context)
    spec = canary_spec(version, champion, share, {one.spec.name for one in context.control.experiments()})
    others = [one.spec for one in context.control.experiments() if one.status in {"starting", "running"}]
    try:
        check_exclusive([*others, spec])
    except OverlapError as error:
        raise RequestError(f"{error}; stop it first", code="experiments_overlap", status=409) from None
    context.control.put_experiment(spec, actor=actor)
    experiments.start_experiment(spec.name, context, actor)
    return _listing(context)


def _shadow(context: ApiContext, wanted: str, traffic: float | None, actor: str) -> dict[str, Any]:
    version, before = context.servable_version(wanted, "version"), context.aliases().get(SHADOW)
    context.registry.set_tag(version, SAMPLE_TAG, f"{1.0 if traffic is None else traffic:g}")
    context.registry.set_alias(SHADOW, version, by=actor)
    return _moved(context, SHADOW, before, version, "shadow", actor)


def _end_shadow(context: ApiContext, actor: str) -> dict[str, Any]:
    before = context.aliases().get(SHADOW)
    if before is None:
        raise RequestError("there is no shadow to end", code="not_found", status=404, field="traffic")
    context.registry.delete_alias(SHADOW)
    return _moved(context, SHADOW, before, None, "shadow", actor)


def _rollback(context: ApiContext, alias: str, actor: str) -> dict[str, Any]:
    try:
        before, after = context.registry.rollback(alias, by=actor)
    except (UnknownVersionError, NoEarlierVersionError) as error:
        raise RequestError(str(error), code="no_earlier_version", status=409, field="alias") from None
    canary = running_canary(context.control) if alias == CHAMPION else None
    if canary is not None and before in canary.pins.values():
        # Else the version that does harm would go on as what the canary is compared with, for up to half of the units.
        _stop_canary(context, canary, actor)
    return _moved(context, alias, before, after, "rollback", actor)


def _stop_canary(context: ApiContext, canary: ExperimentRecord | None, actor: str) -> None:
    if canary is not None:
        context.control.end_experiment(canary.spec.name, "stopped", actor=actor)
        context.changed()


def _moved(context: ApiContext, alias: str, before: str | None, after: str | None, action: str, actor: str) -> dict[str, Any]:
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
        "canary": _described_canary(context),
        "shadow": _described_shadow(context, state, aliases.get(SHADOW)),
        "versions": [_described(one) for one in context.registry.versions()],
    }


def _described_canary(context: ApiContext) -> dict[str, Any] | None:
    record = running_canary(context.control)
    if record is None:
        return None
    version = record.pins.get(CANARY_VARIANT)
    return {"experiment": record.spec.name, "version": version, "traffic": record.spec.traffic / 2, "status": record.status}


def _described_shadow(context: ApiContext, state: ServingState, wanted: str | None) -> dict[str, Any] | None:
    """What the shadow's answers came to so far; `live` is False until it runs."""
    if wanted is None:
        return None
    live = state.shadow is not None and state.shadow.version == wanted
    sample = state.shadow.sample if state.shadow is not None and live else None
    tallies = ShadowTallies(context.store, context.config.dataset)
    return {"version": wanted, "live": live, "sample": sample, **tallies.total(wanted).report()}


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
