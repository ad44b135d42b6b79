"""Rules as data: what a rule may say, and which rules hold for a request.

| kind | effect |
|---|---|
| `include` | only items for which `items` holds; several rules narrow |
| `exclude` | no item for which `items` holds |
| `boost` | adds `weight` times the list's spread of scores to items for which `items` holds |
| `bury` | puts items for which `items` holds behind all others |
| `pin` | puts `item_ids` at `position` and after it, where they are available and pass the request's filter and candidates |
| `cap` | at most `limit` items of one value of `attribute` in an answer (a page); with `items`, of those for which it holds |

A cap of 0 lets through none that has the attribute. A pin is stronger than boost, bury and cap, and weaker than exclude. Applying
them is `slate`'s, keeping them `rule_store`'s.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from experiments.numbers import Number, Whole
from serving.context_conditions import Condition, compile_condition
from serving.errors import FilterError
from serving.filters import compile_filter
from serving.item_table import ItemTable

_log = logging.getLogger("shortlist.serving")

MAX_RULES = 200
CACHED_PLANS = 1024
SHORT_TEXT = 256
"""Characters of a context's text up to which the plan for it is kept."""
Kind = Literal["include", "exclude", "boost", "bury", "pin", "cap"]
_NEEDED: dict[str, tuple[str, ...]] = {
    "include": ("items",),
    "exclude": ("items",),
    "boost": ("items", "weight"),
    "bury": ("items",),
    "pin": ("item_ids",),
    "cap": ("attribute", "limit"),
}
_ALLOWED: dict[str, tuple[str, ...]] = {**_NEEDED, "pin": ("item_ids", "position"), "cap": ("attribute", "limit", "items")}
_EFFECTS = ("items", "weight", "item_ids", "position", "attribute", "limit")


class Rule(BaseModel):
    """One rule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    kind: Kind
    items: str | None = None
    """CEL over item attributes: which items are meant."""
    weight: Number | None = Field(default=None, gt=0, le=100, allow_inf_nan=False)
    """Of a boost: 1 lifts the last item of a list to the first place's score."""
    item_ids: tuple[str, ...] = Field(default=(), max_length=100)
    """Of a pin."""
    position: Whole | None = Field(default=None, ge=0, lt=500)
    """Of a pin: place in the answer, 0 being the first."""
    attribute: str | None = Field(default=None, max_length=128)
    """Of a cap; one that no item has caps nothing until items come that have it, as a filter over it matches nothing."""
    limit: Whole | None = Field(default=None, ge=0, le=500)
    """Of a cap."""
    placements: tuple[str, ...] = ()
    """Where the rule holds; everywhere if empty."""
    when: str | None = None
    """CEL over the request's context: when the rule holds; always if not given."""
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    """The rule holds from `starts_at` on and before `ends_at`."""
    enabled: bool = True

    @field_validator("starts_at", "ends_at")
    @classmethod
    def _aware(cls, moment: datetime | None) -> datetime | None:
        return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = {name for name in _EFFECTS if getattr(self, name) not in (None, ())}
        if missing := [name for name in _NEEDED[self.kind] if name not in given]:
            raise ValueError(f"a rule of kind {self.kind} needs {missing[0]}")
        if extra := sorted(given - set(_ALLOWED[self.kind])):
            raise ValueError(f"a rule of kind {self.kind} takes no {extra[0]}")
        if self.starts_at is not None and self.ends_at is not None and self.ends_at <= self.starts_at:
            raise ValueError("ends_at must be later than starts_at")
        try:
            if self.items is not None:
                compile_filter(self.items)
            if self.when is not None:
                compile_condition(self.when)
        except FilterError as error:
            raise ValueError(str(error)) from None
        return self


@dataclass(frozen=True, slots=True)
class RulePlan:
    """The rules that hold for a request, by what is to be done. Falsy where there is nothing to do beside what a selection takes
    over: `required`, `barred` and `capped`.

    Args:
        required: CEL of each include, all of which an item must pass.
        barred: CEL of each exclude, none of which may hold for an item.
        boosts: name, CEL, weight.
        buries: name, CEL.
        pins: name, position, item ids.
        caps: attribute, limit of one or more, CEL or None.
        capped: attribute and CEL or None of each cap of none: no filter is a simpler one.
    """

    required: tuple[str, ...] = ()
    barred: tuple[str, ...] = ()
    boosts: tuple[tuple[str, str, float], ...] = ()
    buries: tuple[tuple[str, str], ...] = ()
    pins: tuple[tuple[str, int, tuple[str, ...]], ...] = ()
    caps: tuple[tuple[str, int, str | None], ...] = ()
    capped: tuple[tuple[str, str | None], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.boosts or self.buries or self.pins or self.caps)


NO_RULES = RulePlan()


class RuleBook:
    """All rules of a dataset, asked once a request.

    Args:
        rules: in the order in which they are applied.
    """

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self.rules = tuple(rules)
        self._enabled = tuple(rule for rule in rules if rule.enabled)
        self._conditions: dict[str, Condition] = {
            rule.when: compile_condition(rule.when) for rule in self._enabled if rule.when is not None
        }
        self._names = sorted({name for condition in self._conditions.values() for name in condition.names})
        self._plans: dict[tuple[object, ...], tuple[float, float, RulePlan]] = {}

    def plan(self, placement: str | None, context: Mapping[str, Any], now: float, only: tuple[str, ...] | None = None) -> RulePlan:
        """The rules that hold.

        Args:
            placement: of the request.
            context: of the request.
            now: seconds since the epoch.
            only: names of the rules that the placement lets through; None for all.
        """
        if not self._enabled:
            return NO_RULES
        told = [context.get(name) for name in self._names]
        if not all(map(_is_short, told)):
            return self._build(placement, context, now, only)[2]  # as part of a key, a value of megabytes would be kept
        key = (placement, only, *map(_told_apart, told))
        found = self._plans.get(key)
        if found is None or not found[0] <= now < found[1]:
            if len(self._plans) >= CACHED_PLANS:
                self._plans.clear()  # contexts come from callers: bounded, and quick to come back
            found = self._plans[key] = self._build(placement, context, now, only)
        return found[2]

    def fitting(self, tables: Sequence[ItemTable]) -> RuleBook:
        """The book without the rules whose expressions some table cannot answer; builds the masks of all others on the way."""
        kept = []
        for rule in self.rules:
            try:
                for table in tables:
                    if rule.enabled and rule.items is not None:
                        table.matching(rule.items)
                kept.append(rule)
            except FilterError as error:
                _log.error("rule %s is not applied, it does not fit the items: %s", rule.name, error)
        return self if len(kept) == len(self.rules) else RuleBook(kept)

    def _build(
        self, placement: str | None, context: Mapping[str, Any], now: float, only: tuple[str, ...] | None
    ) -> tuple[float, float, RulePlan]:
        """The plan and the times between which it holds."""
        since, until = -math.inf, math.inf
        holding: list[Rule] = []
        for rule in self._enabled:
            if (rule.placements and placement not in rule.placements) or (only is not None and rule.name not in only):
                continue
            if rule.when is not None and not self._conditions[rule.when].holds(context):
                continue
            starts = -math.inf if rule.starts_at is None else rule.starts_at.timestamp()
            ends = math.inf if rule.ends_at is None else rule.ends_at.timestamp()
            for moment in (starts, ends):
                since, until = (max(since, moment), until) if moment <= now else (since, min(until, moment))
            if starts <= now < ends:
                holding.append(rule)
        return since, until, plan_of(holding)


def plan_of(rules: Sequence[Rule]) -> RulePlan:
    """What is to be done where all of `rules` hold."""
    return RulePlan(
        required=tuple(rule.items or "" for rule in rules if rule.kind == "include"),
        barred=tuple(rule.items or "" for rule in rules if rule.kind == "exclude"),
        boosts=tuple((rule.name, rule.items or "", rule.weight or 0.0) for rule in rules if rule.kind == "boost"),
        buries=tuple((rule.name, rule.items or "") for rule in rules if rule.kind == "bury"),
        pins=tuple((rule.name, rule.position or 0, rule.item_ids) for rule in rules if rule.kind == "pin"),
        caps=tuple((rule.attribute or "", rule.limit, rule.items) for rule in rules if rule.kind == "cap" and rule.limit),
        capped=tuple((rule.attribute or "", rule.items) for rule in rules if rule.kind == "cap" and not rule.limit),
    )


def _is_short(value: Any) -> bool:
    return len(value) <= SHORT_TEXT if isinstance(value, str) else not isinstance(value, list)


def _told_apart(value: Any) -> str | None:
    """A short value of a context as part of a key: equal only where conditions read the same. 1, 1.0, True and "1" are four values,
    and objects none."""
    return None if isinstance(value, dict) else repr(value)
