"""A/B experiments over HTTP: files in, status, report, and the changes of their life."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, Depends
from pydantic import BaseModel, ConfigDict, Field

from experiments.assignment import check_exclusive
from experiments.errors import ExperimentError
from experiments.exposure import EXPOSURE_SCHEMA
from experiments.outcomes import EVENT_COLUMNS
from experiments.report import build_report
from experiments.spec import ExperimentSpec, parse_spec
from features.activity_store import ActivityStore
from features.daily_log import DailyLog
from serving.admin.context import AdminContext
from serving.control import ExperimentRecord, experiment_json
from serving.errors import ControlStateError, RequestError
from training.errors import RegistryError


class RampRequest(BaseModel):
    """Body of `POST /v1/experiments/{name}/ramp`."""

    model_config = ConfigDict(extra="forbid")

    traffic: float | None = Field(default=None, ge=0, le=1, description="New share; the next step of the file's ramp by default.")


def router(context: AdminContext) -> APIRouter:
    """Routes of experiments."""
    routes = APIRouter(prefix="/v1/experiments", tags=["experiments"])
    admin = Depends(context.scope("admin"))

    @routes.get("")
    def list_experiments(actor: str = admin) -> dict[str, Any]:
        """All experiments with their status and pinned versions."""
        return {"experiments": [_described(record) for record in context.control.experiments()]}

    @routes.get("/{name}")
    def get_experiment(name: str, actor: str = admin) -> dict[str, Any]:
        """One experiment."""
        return _described(_existing(context, name))

    @routes.put("/{name}")
    def put_experiment(name: str, spec: Annotated[dict[str, Any], Body()], actor: str = admin) -> dict[str, Any]:
        """Create a draft, or change an experiment as far as its status allows. The body has the fields of an experiment file."""
        parsed = _attempt(lambda: parse_spec(spec))
        if parsed.name != name:
            raise RequestError(f"the body names {parsed.name!r}, the path {name!r}", field="name")
        return _change(context, lambda: context.control.put_experiment(parsed, actor=actor))

    @routes.post("/{name}/start")
    def start(name: str, actor: str = admin) -> dict[str, Any]:
        """Start a draft, its aliases resolved to versions and pinned, or resume a paused experiment."""
        record = _existing(context, name)
        running = [other.spec for other in context.control.experiments() if other.status == "running"]
        _attempt(lambda: check_exclusive([*running, record.spec]))
        pins = record.pins or _pins(context, record.spec)
        return _change(context, lambda: context.control.start_experiment(name, pins, actor=actor))

    @routes.post("/{name}/ramp")
    def ramp(name: str, request: RampRequest | None = None, actor: str = admin) -> dict[str, Any]:
        """Raise the traffic: to a share, or to the next step of the file's plan. Units that take part stay where they are."""
        record = _existing(context, name)
        traffic = request.traffic if request is not None else None
        if traffic is None:
            steps = record.spec.ramp.steps if record.spec.ramp is not None else ()
            traffic = next((step for step in steps if step > record.spec.traffic), None)
            if traffic is None:
                raise RequestError(f"experiment {name!r} has no further ramp step: give traffic", field="traffic")
        spec = record.spec.model_copy(update={"traffic": traffic})
        return _change(context, lambda: context.control.put_experiment(spec, actor=actor))

    @routes.post("/{name}/pause")
    def pause(name: str, actor: str = admin) -> dict[str, Any]:
        """Send the units back to the champion, to be resumed later with the same pins."""
        return _change(context, lambda: context.control.end_experiment(name, "paused", actor=actor))

    @routes.post("/{name}/stop")
    def stop(name: str, actor: str = admin) -> dict[str, Any]:
        """End the experiment for good."""
        return _change(context, lambda: context.control.end_experiment(name, "stopped", actor=actor))

    @routes.get("/{name}/report")
    def report(name: str, actor: str = admin) -> dict[str, Any]:
        """Units, split, metrics with intervals, and the verdict by the file's rules, from the stored exposures and events."""
        record = _existing(context, name)
        log = DailyLog(context.config.paths.exposures, EXPOSURE_SCHEMA, id_column="exposure_id", time_column="at")
        events = ActivityStore(context.config.paths.activity).read(columns=list(EVENT_COLUMNS))
        made = build_report(
            record.spec,
            log.read(since=record.started_at),
            events,
            now=datetime.now(UTC),
            started_at=record.started_at,
            stopped=record.status == "stopped",
        )
        return made.to_dict()

    return routes


def _existing(context: AdminContext, name: str) -> ExperimentRecord:
    record = context.control.experiment(name)
    if record is None:
        raise RequestError(f"there is no experiment {name!r}", code="not_found", status=404, field="name")
    return record


def _pins(context: AdminContext, spec: ExperimentSpec) -> dict[str, str]:
    """Variant -> version; variants without a model follow the champion and are not pinned."""
    pins = {}
    for variant in spec.variants:
        if variant.model is None:
            continue
        try:
            version = context.registry.version(variant.model)
        except RegistryError as error:
            raise RequestError(f"variant {variant.name!r}: {error}", code="unknown_model", field="variants") from None
        if not version.servable:
            raise RequestError(
                f"variant {variant.name!r}: the gate failed version {version.version}",
                code="gate_failed",
                status=409,
                field="variants",
            )
        pins[variant.name] = version.version
    return pins


T = TypeVar("T")


def _attempt(step: Callable[[], T]) -> T:
    try:
        return step()
    except ExperimentError as error:
        raise RequestError(str(error), code="invalid_experiment", field=getattr(error, "field", None)) from None


def _change(context: AdminContext, step: Callable[[], ExperimentRecord]) -> dict[str, Any]:
    try:
        record = _attempt(step)
    except ControlStateError as error:
        missing = "there is no experiment" in str(error)
        raise RequestError(str(error), code="not_found" if missing else "conflict", status=404 if missing else 409) from None
    context.changed()
    return _described(record)


def _described(record: ExperimentRecord) -> dict[str, Any]:
    """An experiment with the share of all units that each variant gets."""
    described = experiment_json(record)
    weights = record.spec.weights
    total = sum(weights)
    share = record.spec.traffic * (record.spec.layer_range[1] - record.spec.layer_range[0]) * (1 - record.spec.holdout)
    shares = {variant.name: share * weight / total for variant, weight in zip(record.spec.variants, weights, strict=True)}
    return {**described, "shares": shares}
