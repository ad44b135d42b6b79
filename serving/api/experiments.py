"""`/v1/experiments`: create, start, ramp, pause, stop, report."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body

from experiments.errors import FrozenSpecError, OverlapError, SpecError
from experiments.numbers import Number
from experiments.spec import ExperimentSpec, parse_spec
from serving.api.answer_schemas import Experiment, ExperimentReport, Experiments, errors
from serving.api.context import Admin, ApiContext, Context
from serving.api.route import Route
from serving.control import ExperimentRecord, experiment_json
from serving.errors import RequestError
from serving.live_state import check_variants

router = APIRouter(prefix="/v1/experiments", tags=["experiments"], route_class=Route)
_ONE: dict[str, Any] = {
    "response_model": Experiment,
    "response_model_exclude_unset": True,
    "responses": errors(404, 409, 422, 503),
}
_EXAMPLE = {
    "name": "new-ranker",
    "salt": "new-ranker-1",
    "traffic": 0.2,
    "variants": [
        {"name": "control", "model": "champion", "weight": 0.5},
        {"name": "treatment", "model": "challenger", "weight": 0.5},
    ],
    "metrics": {"primary": "ctr"},
}
# Specs are parsed by `parse_spec`, whose messages name the field in the file's words; OpenAPI shows the same fields.
_SPEC_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ExperimentSpec"}, "example": _EXAMPLE}},
    }
}


@router.get("", response_model=Experiments, response_model_exclude_unset=True)
def list_experiments(context: Context, actor: Admin) -> dict[str, Any]:
    """All experiments."""
    return {"experiments": [_described(context, record) for record in context.control.experiments()]}


@router.get("/{name}", **_ONE)
def get_experiment(name: str, context: Context, actor: Admin) -> dict[str, Any]:
    """One experiment: its file, status and pinned versions."""
    return _described(context, _existing(context, name))


@router.put("/{name}", **_ONE, openapi_extra=_SPEC_BODY)
def put_experiment(name: str, spec: Annotated[dict[str, Any], Body()], context: Context, actor: Admin) -> dict[str, Any]:
    """Create an experiment, or change it as far as its status allows: all of a draft; the plan to ramp a started one, and its
    traffic, which does not fall. The path names it; a body may repeat the name."""
    record = _put(context, _parsed(name, spec), actor)
    context.changed()
    return _described(context, record)


@router.post("/{name}/start", **_ONE)
def start_experiment(name: str, context: Context, actor: Admin) -> dict[str, Any]:
    """Start: aliases become versions and stay so. Running as soon as all of them are loaded, `starting` until then."""
    record = _existing(context, name)
    if record.status in {"starting", "running"}:
        return _described(context, record)
    pins = _pins(context, record) if record.status == "draft" else record.pins
    try:
        record = context.control.start_experiment(name, pins, actor=actor)
    except OverlapError as error:
        raise RequestError(str(error), code="experiments_overlap", status=409) from None
    if record.status == "starting" and not _missing(context, record):
        record = context.control.run_experiment(name, actor=actor)
    context.changed(wanted=True)
    return _described(context, record)


@router.post("/{name}/ramp", **_ONE)
def ramp_experiment(
    name: str,
    context: Context,
    actor: Admin,
    traffic: Annotated[Number | None, Body(embed=True, ge=0, le=1, examples=[0.5])] = None,
) -> dict[str, Any]:
    """Raise the share of units that take part: to `traffic`, or to the next step of the file's plan."""
    record = _existing(context, name)
    steps = record.spec.ramp.steps if record.spec.ramp is not None else ()
    wanted = traffic if traffic is not None else next((step for step in steps if step > record.spec.traffic), None)
    if wanted is None:
        raise RequestError(
            f"experiment {name!r} has traffic {record.spec.traffic:g} and no further ramp step: say how far with traffic",
            field="traffic",
        )
    if wanted < record.spec.traffic:
        raise RequestError(
            f"traffic {wanted:g} is below the present {record.spec.traffic:g}: units would leave their variant; pause instead",
            field="traffic",
        )
    changed = _put(context, record.spec.model_copy(update={"traffic": wanted}), actor)
    context.changed()
    return _described(context, changed)


@router.post("/{name}/pause", **_ONE)
def pause_experiment(name: str, context: Context, actor: Admin) -> dict[str, Any]:
    """Send its units to the champion for now."""
    return _end(context, name, "paused", actor)


@router.post("/{name}/stop", **_ONE)
def stop_experiment(name: str, context: Context, actor: Admin) -> dict[str, Any]:
    """End it for good."""
    return _end(context, name, "stopped", actor)


@router.get("/{name}/report", response_model=ExperimentReport, responses=errors(404))
def report(name: str, context: Context, actor: Admin) -> dict[str, Any]:
    """Units, split, metrics with intervals, and the verdict by the file's rules."""
    # Statistics libraries are only loaded by replicas that are asked for a report.
    from experiments.report import build_report
    from serving.experiment_tables import events_of, exposures_of

    record = _existing(context, name)
    exposures, events = exposures_of(context.config.paths, record), events_of(context.config.paths, record)
    stopped = record.status == "stopped"
    built = build_report(record.spec, exposures, events, now=datetime.now(UTC), started_at=record.started_at, stopped=stopped)
    return built.to_dict()


def _end(context: ApiContext, name: str, status: Any, actor: str) -> dict[str, Any]:
    record = _existing(context, name)
    if record.status != status:
        record = context.control.end_experiment(name, status, actor=actor)
        context.changed(wanted=True)
    return _described(context, record)


def _parsed(name: str, raw: dict[str, Any]) -> ExperimentSpec:
    try:
        spec = parse_spec({"name": name, **raw})
        check_variants(spec)
    except SpecError as error:
        raise RequestError(str(error), code="invalid_experiment", field=error.field) from None
    if spec.name != name:
        raise RequestError(f"the path says {name!r}, the body says {spec.name!r}", field="name")
    return spec


def _put(context: ApiContext, spec: ExperimentSpec, actor: str) -> ExperimentRecord:
    try:
        return context.control.put_experiment(spec, actor=actor)
    except FrozenSpecError as error:
        raise RequestError(str(error), code="experiment_started", status=409) from None


def _pins(context: ApiContext, record: ExperimentRecord) -> dict[str, str]:
    """Variant -> version of every variant that names a model."""
    return {
        variant.name: context.servable_version(variant.model, "variants")
        for variant in record.spec.variants
        if variant.model is not None
    }


def _existing(context: ApiContext, name: str) -> ExperimentRecord:
    record = context.control.experiment(name)
    if record is None:
        known = ", ".join(one.spec.name for one in context.control.experiments()) or "none"
        raise RequestError(f"there is no experiment {name!r}; there are: {known}", code="not_found", status=404, field="name")
    return record


def _missing(context: ApiContext, record: ExperimentRecord) -> list[str]:
    """Pinned versions that are not served."""
    return sorted(set(record.pins.values()) - set(context.control.state().versions))


def _described(context: ApiContext, record: ExperimentRecord) -> dict[str, Any]:
    """An experiment with the share of all units that each variant gets, and the versions that it waits for."""
    spec = record.spec
    reach = spec.traffic * (1 - spec.holdout) * (spec.layer_range[1] - spec.layer_range[0])
    shares = {variant.name: reach * weight for variant, weight in zip(spec.variants, spec.weights, strict=True)}
    described = {**experiment_json(record), "shares": shares}
    if record.status in {"starting", "running"}:
        described["waiting_for"] = _missing(context, record)
    return described
