"""The experiment file (`experiments/ab/NAME.toml`): what is split, how, and how it will be judged. Frozen once started.

Weights are relative and split the traffic of the experiment; `traffic` is the share of its units that take part, the rest follows
`champion`. Raising `traffic` keeps every unit that is already in; weights never change after the start.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from experiments.errors import FrozenSpecError, SpecError
from experiments.metrics import Guardrail, Metric, expand
from experiments.numbers import Number, Whole

EXPERIMENT_NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,62}$")
MODEL_LAYER = "model"
"""Layer of experiments that choose the model and name no layer."""

Unit = Literal["user_id", "session_id"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Section):
    """One side of the experiment: a model version, or serving parameters."""

    name: str = Field(min_length=1, max_length=64)
    """Name in assignments, exposures and reports."""
    model: str | None = None
    """Alias or version of the registered model; `start` resolves an alias and pins the version."""
    params: dict[str, Any] | None = None
    """Serving parameters that this variant overrides, in place of a model."""
    weight: Number = Field(ge=0)
    """Relative share of the experiment's traffic; 0 keeps a variant in the file without units."""

    @field_validator("model", mode="before")
    @classmethod
    def _version_number(cls, given: object) -> object:
        return str(given) if isinstance(given, int) and not isinstance(given, bool) else given

    @model_validator(mode="after")
    def _model_or_params(self) -> Variant:
        if (self.model is None) == (self.params is None):
            raise ValueError(f"variant {self.name!r} needs either model or params")
        return self


class Metrics(_Section):
    """What is measured. Names of built-in metrics, or tables that define one."""

    primary: Metric
    """The one metric that decides."""
    secondary: tuple[Metric, ...] = ()
    """Reported, Holm-corrected, never decisive."""
    guardrails: tuple[Guardrail, ...] = ()
    """Must not get worse by more than their margin."""

    @property
    def all(self) -> tuple[Metric, ...]:
        """Primary, secondary and guardrails, in this order."""
        return (self.primary, *self.secondary, *self.guardrails)

    @model_validator(mode="after")
    def _distinct_names(self) -> Metrics:
        names = [metric.name for metric in self.all]
        if len(set(names)) < len(names):
            raise ValueError(f"metric names must differ, got {names}")
        return self

    @field_validator("primary", mode="before")
    @classmethod
    def _expand_one(cls, given: object) -> object:
        return expand(given)

    @field_validator("secondary", "guardrails", mode="before")
    @classmethod
    def _expand_all(cls, given: object) -> object:
        return [expand(one) for one in given] if isinstance(given, list | tuple) else given


class Decision(_Section):
    """How the primary metric is judged."""

    alpha: Number = Field(default=0.05, gt=0, le=0.5)
    """Two-sided error rate."""
    sequential: bool = True
    """Intervals that stay valid however often the report is read; False is one look at the horizon."""
    minimum_exposures: Whole = Field(default=100, ge=2)
    """Exposed units a variant needs before any verdict."""
    horizon_days: Number = Field(default=14, gt=0, le=365)
    """Days after a unit's first exposure in which its events count, and the planned length."""
    tuning_units: Whole = Field(default=5000, ge=10)
    """Number of units (all variants) at which the sequential interval is tightest; fixed before the start."""


class Ramp(_Section):
    """Planned rises of `traffic`."""

    steps: tuple[Number, ...] = Field(min_length=1)
    """Shares of traffic, rising, each above 0 and at most 1; `experiment ramp` goes to the next."""

    @field_validator("steps")
    @classmethod
    def _rising(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        if list(steps) != sorted(set(steps)) or not (steps[0] > 0 and steps[-1] <= 1):
            raise ValueError(f"ramp steps must rise within (0, 1], got {list(steps)}")
        return steps


class ExperimentSpec(_Section):
    """A whole experiment file."""

    name: str
    """Lower-case letters, digits, `-` and `_`."""
    unit: Unit = "user_id"
    """What is randomized: the same unit always meets the same variant."""
    salt: str = Field(min_length=1, max_length=128)
    """Seed of both hashes; never reuse one, or units carry over from the older experiment."""
    layer: str | None = Field(default=None, min_length=1, max_length=64)
    """Experiments of one layer share out its units by `layer_range`; None is `model` when variants name models."""
    layer_range: tuple[Number, Number] = (0.0, 1.0)
    """The half-open part of the layer's units that this experiment may use."""
    traffic: Number = Field(default=1.0, ge=0, le=1)
    """Share of the units of `layer_range` that take part."""
    targeting: str | None = None
    """CEL over the request's context: units that it refuses are not in the experiment."""
    holdout: Number = Field(default=0.0, ge=0, lt=1)
    """Share of all units kept out of every experiment (one split for the whole dataset)."""
    variants: tuple[Variant, ...] = Field(min_length=2, max_length=20)
    """The first is the control."""
    metrics: Metrics
    decision: Decision = Decision()
    ramp: Ramp | None = None

    @field_validator("name")
    @classmethod
    def _usable_name(cls, name: str) -> str:
        if not EXPERIMENT_NAME.match(name):
            raise ValueError(f"name {name!r} must be 1 to 63 lower-case letters, digits, '-' or '_'")
        return name

    @field_validator("layer_range")
    @classmethod
    def _non_empty_range(cls, given: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= given[0] < given[1] <= 1:
            raise ValueError(f"layer_range {list(given)} must be [from, to) with 0 <= from < to <= 1")
        return given

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentSpec:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"variant names must differ, got {names}")
        if sum(variant.weight > 0 for variant in self.variants) < 2:
            raise ValueError("at least two variants need a weight above 0")
        if len({variant.model is None for variant in self.variants}) > 1:
            raise ValueError("either every variant names a model or every variant has params")
        if self.layer_range != (0.0, 1.0) and self.effective_layer is None:
            raise ValueError("layer_range needs a layer")
        if self.variants[0].weight == 0:
            raise ValueError(f"the first variant, {names[0]!r}, is the control and needs a weight above 0")
        return self

    @property
    def chooses_model(self) -> bool:
        """Whether variants name models (and not parameters)."""
        return self.variants[0].model is not None

    @property
    def effective_layer(self) -> str | None:
        """The layer, with `model` as the default of experiments that choose the model."""
        return self.layer or (MODEL_LAYER if self.chooses_model else None)

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights of the variants in file order, summing to 1."""
        total = sum(variant.weight for variant in self.variants)
        return tuple(variant.weight / total for variant in self.variants)

    def check_change(self, changed: ExperimentSpec) -> None:
        """Refuse to replace this started experiment by `changed` unless only `traffic`, which must not fall, and `ramp` differ.

        Raises:
            FrozenSpecError: names the first other field that differs, or the traffic that units would lose.
        """
        before, after = self.model_dump(), changed.model_dump()
        for field in before:
            if field not in {"traffic", "ramp"} and before[field] != after[field]:
                raise FrozenSpecError(
                    f"experiment {self.name!r} has started: {field} cannot change from {before[field]!r} to {after[field]!r}; "
                    "stop it and start another under a new name and salt"
                )
        if changed.traffic < self.traffic:
            raise FrozenSpecError(
                f"experiment {self.name!r} has started: traffic {changed.traffic:g} is below the present {self.traffic:g}, "
                "units would leave their variant; pause it instead"
            )


def parse_spec(raw: dict[str, Any], *, source: str = "experiment") -> ExperimentSpec:
    """Validate a decoded TOML or JSON table.

    Args:
        source: what to call it in messages.

    Raises:
        SpecError: one line that names the field and what is allowed.
    """
    try:
        return ExperimentSpec.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or None
        if first["type"] == "extra_forbidden":
            message = f"unknown field {field!r}"
        else:
            message = f"{field}: {_reason(first)}" if field else _reason(first)
        raise SpecError(f"{source}: {message}", field) from None


def load_spec(path: Path) -> ExperimentSpec:
    """Read an experiment file.

    Raises:
        SpecError: the file is missing, is not TOML or breaks a rule.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"no experiment file {path}; experiments/ab/demo.toml is one to copy") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path} is not TOML: {error}") from None
    return parse_spec(raw, source=str(path))


def _reason(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    return message if error["type"] == "value_error" else f"{message} (got {error['input']!r})"
