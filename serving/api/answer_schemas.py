"""Answers of the HTTP API as schemas: what OpenAPI shows of every call, and what the routes below the gateway answer with."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.rules import Rule
from serving.schemas import ServedFrom

_OPEN = ConfigDict(extra="allow")


class RecommendedItem(BaseModel):
    """One item; attributes asked for by `fields` stand beside these, `reason` and `contributions` with `explain`."""

    model_config = _OPEN

    item_id: str
    score: float
    source: str = Field(
        description="The retriever that ranked it highest, or popular, new, pinned, exploration, trending, seasonal, content."
    )
    reason: str = Field(default="", description="With `explain`: why, for people.")
    contributions: dict[str, float] = Field(
        default={}, description="With `explain`: by source, feature and rule; they sum to score."
    )


class AssignmentShown(BaseModel):
    """An experiment that the answer is part of."""

    experiment: str
    variant: str


class Recommendations(BaseModel):
    """An answer. `served_from` is the rung of the fallback ladder; `degraded`: a lower rung answered because of trouble."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "recommendation_id": "0f3c7b0e9a5d4c1f8b7a6d5e4c3b2a19",
                "user_id": "42",
                "recommended_items": [{"item_id": "348", "score": 1.73, "source": "sequential"}],
                "last_updated": "2026-11-24T08:00:00.000+00:00",
                "model_version": "3",
                "assignments": [{"experiment": "demo", "variant": "treatment"}],
                "served_from": "cache",
                "degraded": False,
                "took_ms": 0.4,
                "next_cursor": None,
            }
        }
    )

    recommendation_id: str = Field(description="To be sent with events that the answer led to.")
    user_id: str | None
    recommended_items: list[RecommendedItem]
    last_updated: str = Field(description="When the list was computed.")
    model_version: str | None
    assignments: list[AssignmentShown]
    served_from: ServedFrom
    degraded: bool
    took_ms: float
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page.")


class ItemList(BaseModel):
    """Items that are nobody's own list, best first."""

    items: list[RecommendedItem]
    last_updated: str
    next_cursor: str | None


class RejectedRow(BaseModel):
    """An entry of a batch that was not accepted."""

    index: int
    error: str
    field: str | None = None


class EventReceipt(BaseModel):
    """What became of a call's events; `event_ids` has null where rejected."""

    accepted: int
    duplicates: int
    duplicate_ids: list[str] | None = None
    rejected: list[RejectedRow]
    event_ids: list[str | None]


class SessionMerge(BaseModel):
    """The session's activity is the account's; `recent_events` of it were new to the next answer."""

    session_id: str
    user_id: str
    recent_events: int


class Item(BaseModel):
    """An item with the attributes that the dataset's schema has."""

    model_config = _OPEN

    item_id: str
    available: bool


class User(BaseModel):
    """A profile with the attributes that the dataset's schema has."""

    model_config = _OPEN

    user_id: str


class BatchReceipt(BaseModel):
    """What became of a batch."""

    stored: int
    rejected: list[RejectedRow]


class Erasure(BaseModel):
    """What an erasure deleted, by place."""

    deleted: dict[str, int]
    unfinished: dict[str, str]


class VersionShown(BaseModel):
    """A registered version. `serving` is the reconciler's word (live, refused: why, ...), `gate` the verdict at registration."""

    version: str
    aliases: list[str]
    created_at: str
    serving: str | None
    gate: str | None
    servable: bool
    metrics: dict[str, float]
    run_id: str | None


class CanaryShown(BaseModel):
    """The experiment that the system created for a version."""

    experiment: str
    version: str | None
    traffic: float
    status: str


class ShadowShown(BaseModel):
    """The shadow and what its answers came to; `live` is false until it runs."""

    model_config = _OPEN

    version: str
    live: bool
    sample: float | None


class Models(BaseModel):
    """`aliases` and `wanted` (the champion's version) are the registry's; `champion` and `live` what is served now."""

    model_id: str
    aliases: dict[str, str]
    wanted: str | None
    champion: str | None
    live: list[str]
    canary: CanaryShown | None
    shadow: ShadowShown | None
    versions: list[VersionShown]


class ModelsChanged(Models):
    """The same after a change; where an alias moved, which, to which version, and from which."""

    alias: str | None = None
    version: str | None = None
    previous: str | None = None


class Experiment(BaseModel):
    """An experiment: its file, status, pinned versions, each variant's share of all units, versions that it waits for."""

    name: str
    status: Literal["draft", "starting", "running", "paused", "stopped"]
    pins: dict[str, str]
    started_at: str | None
    stopped_at: str | None
    spec: dict[str, Any]
    shares: dict[str, float]
    waiting_for: list[str] = []


class Experiments(BaseModel):
    """All experiments."""

    experiments: list[Experiment]


class ExperimentReport(BaseModel):
    """Units, split, metrics with intervals, and the verdict; what could not be estimated is `{"reason": ...}`."""

    model_config = _OPEN

    experiment: str
    as_of: str


class RulesStored(BaseModel):
    """All rules, how many have changed, come or gone, and what of them may not be meant."""

    rules: list[Rule]
    changed: int
    warnings: list[str]


class PreviewedList(BaseModel):
    """An answer as a preview shows it."""

    recommended_items: list[dict[str, Any]]
    model_version: str | None
    served_from: ServedFrom
    degraded: bool


class MovedItem(BaseModel):
    """An item with its place under the present and under the given rules; null where it is not shown."""

    item_id: str
    before: int | None = Field(alias="from")
    after: int | None = Field(alias="to")


class RulesPreviewed(BaseModel):
    """One request's list under the present rules and under the given ones, and what of these may not be meant."""

    before: PreviewedList
    after: PreviewedList
    moved: list[MovedItem]
    warnings: list[str]


class AuditEntryShown(BaseModel):
    """One change: when, who, what, before and after (null for did or does not exist)."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    before: Any
    after: Any


class Audit(BaseModel):
    """`entries` and `after`, the number to read on from; or with `at` that time and the `state` at it, subject to value."""

    entries: list[AuditEntryShown] | None = None
    after: int | None = None
    at: str | None = None
    state: dict[str, Any] | None = None


class Delivery(BaseModel):
    """A delivery was taken; `followed` is false where it is about another model."""

    accepted: bool
    followed: bool


class Alive(BaseModel):
    """The replica runs."""

    status: str


class Ready(BaseModel):
    """What the replica answers with."""

    status: str
    dataset: str
    model_version: str | None
    versions: list[str]
    cache: Literal["up", "down"]


class ErrorDetail(BaseModel):
    """Why a call was refused."""

    code: str = Field(description="Stable name of the reason.")
    message: str = Field(description="What is wrong and what is allowed.")
    field: str | None = Field(default=None, description="The offending parameter, when one is to blame.")
    position: int | None = Field(default=None, description="Of a filter: characters before the place that is wrong.")


class ErrorBody(BaseModel):
    """The body of every error."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "error": {"code": "invalid", "message": "top_k must be an integer from 1 to 500, got '0'", "field": "top_k"}
            }
        }
    )

    error: ErrorDetail


_MEANING = {
    400: "The body is not JSON, or the query string cannot be read.",
    401: "No bearer token, or an unknown one.",
    403: "The token's scope does not reach that far.",
    404: "What the path or a parameter names does not exist.",
    409: "The present state does not allow it.",
    413: "The body or the batch is too large.",
    415: "The body is not application/json, or it is encoded (gzip).",
    422: "A value is not allowed; `field` names it.",
    429: "Too much at once; come back after `Retry-After` seconds.",
    500: "A fault of the server; its log has the request's id.",
    503: "A part that this call needs is away for now; come back after `Retry-After` seconds.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Refusals of a call by status, as FastAPI's `responses`."""
    return {status: {"model": ErrorBody, "description": _MEANING[status]} for status in statuses}
