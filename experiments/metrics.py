"""What an experiment measures: a metric is data, one row of numbers a unit. Owns names and definitions, not the counting.

Three kinds, all with the randomization unit as the only sample:
- `proportion`: 1 if the unit has at least one matching event in its window, else 0;
- `mean`: number of matching events of the unit (or the sum of their values);
- `ratio`: matching events over the unit's exposures (or over other events): sum over units / sum over units.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from experiments.numbers import Number
from features.events import NEGATIVE_ACTIONS, POSITIVE_ACTIONS

MetricKind = Literal["mean", "proportion", "ratio"]


class Metric(BaseModel):
    """One metric of an experiment file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=64)
    """Name in reports; the name of a built-in metric alone stands for its definition."""
    kind: MetricKind
    actions: tuple[str, ...] = Field(min_length=1)
    """Actions that count as matching events."""
    of: Literal["events", "value"] = "events"
    """Count events, or add up their `value` (an event without one adds 0)."""
    per: Literal["exposure"] | tuple[str, ...] | None = None
    """Denominator of a ratio: the unit's exposures (answers), or events of these actions."""
    attributed: bool = False
    """Count only events that quote the `recommendation_id` of one of the unit's exposures in this experiment."""
    direction: Literal["increase", "decrease"] = "increase"
    """Which way is better."""

    @model_validator(mode="after")
    def _consistent(self) -> Metric:
        if (self.kind == "ratio") != (self.per is not None):
            raise ValueError(f'metric {self.name!r}: `per` belongs to kind = "ratio" and only to it (got kind = {self.kind!r})')
        if self.kind == "proportion" and self.of != "events":
            raise ValueError(f"metric {self.name!r}: a proportion counts events, not values")
        return self


class Guardrail(Metric):
    """A metric that must not get worse by more than `margin`."""

    margin: Number = Field(ge=0, lt=1)
    """Largest tolerated worsening as a share of the control's mean: 0.02 allows 2 %."""


_POSITIVE = tuple(sorted(POSITIVE_ACTIONS))

BUILT_IN: dict[str, dict[str, Any]] = {
    "ctr": {"kind": "ratio", "actions": ("click",), "per": "exposure", "attributed": True},
    "clicks": {"kind": "mean", "actions": ("click",)},
    "engagement": {"kind": "mean", "actions": _POSITIVE},
    "active": {"kind": "proportion", "actions": _POSITIVE},
    "conversion": {"kind": "proportion", "actions": ("purchase",)},
    "revenue": {"kind": "mean", "actions": ("purchase",), "of": "value"},
    "hits": {"kind": "ratio", "actions": _POSITIVE, "per": "exposure", "attributed": True},
    "rejections": {"kind": "mean", "actions": tuple(sorted(NEGATIVE_ACTIONS)), "direction": "decrease"},
}
"""Metrics that an experiment file can name without defining them."""


def expand(given: object) -> object:
    """A built-in metric's name (or a table whose `name` is one and that defines no `kind`) as its full definition."""
    table = {"name": given} if isinstance(given, str) else given
    if not isinstance(table, dict) or "kind" in table:
        return table
    name = table.get("name")
    if name not in BUILT_IN:
        raise ValueError(f"unknown metric {name!r}: name one of {', '.join(BUILT_IN)}, or define kind and actions")
    return {**BUILT_IN[name], **table}
