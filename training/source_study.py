"""One source of a study: a model, its fixed parameters, and the space that the others are searched in.

Checked against the model before any work: every parameter exists and takes the values that it may be given.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.models.registry import MODELS

Number = TypeVar("Number", int, float)


class StudyPart(BaseModel):
    """A part of a study file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Range(StudyPart, Generic[Number]):
    low: Number
    high: Number
    log: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}; put a single value under `fixed`")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} must be above 0 for a logarithmic search")
        return self


class FloatRange(_Range[float]):
    """A real number from `low` to `high`, both included; `log` searches its logarithm."""

    type: Literal["float"]


class IntRange(_Range[int]):
    """A whole number from `low` to `high`, both included; `log` searches its logarithm."""

    type: Literal["int"]


class Choice(StudyPart):
    """One of the listed values."""

    type: Literal["categorical"]
    choices: tuple[bool | int | float | str, ...] = Field(min_length=1)


Dimension = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]


class SourceStudy(StudyPart):
    """One candidate source: which model, what is fixed and what is searched."""

    model: str
    """Name in `training.models.registry.MODELS`."""
    name: str | None = None
    """Name of the source in the funnel; the model's, unless one model is used twice."""
    optional: bool = False
    """Whether the study goes on without it where this data or this machine's memory do not allow it, or its time is over."""
    quota: int = Field(default=200, ge=1, le=5_000)
    """Candidates that the funnel asks of this source for each query."""
    trials: int | None = Field(default=None, ge=1)
    """Trials of this source; None takes a share of the study's by the number of parameters searched."""
    fixed: dict[str, Any] = Field(default_factory=dict)
    """Parameters with one value."""
    space: dict[str, Dimension] = Field(default_factory=dict)
    """Parameters searched."""

    @property
    def source(self) -> str:
        """Name of the source."""
        return self.name or self.model

    def default_params(self) -> dict[str, Any]:
        """The model's own defaults of the searched parameters, as far as they lie in the space."""
        config = MODELS[self.model].Config
        inside: dict[str, Any] = {}
        for name, dimension in self.space.items():
            value = config.model_fields[name].get_default(call_default_factory=True)
            if isinstance(dimension, Choice):
                if value in dimension.choices:
                    inside[name] = value
            elif isinstance(value, int | float) and dimension.low <= value <= dimension.high:
                inside[name] = value
        return inside


def check_source(source: SourceStudy) -> None:
    """Check a source against its model.

    Raises:
        ValueError: no such model or parameter, or a value that the model refuses.
    """
    if source.model not in MODELS:
        raise ValueError(f"unknown model {source.model!r}; known: {', '.join(sorted(MODELS))}")
    config = MODELS[source.model].Config
    fields = config.model_fields
    for name in (*source.fixed, *source.space):
        if name not in fields:
            raise ValueError(f"model {source.model!r} has no parameter {name!r}; it has: {', '.join(sorted(fields)) or 'none'}")
    doubled = sorted(set(source.fixed) & set(source.space))
    if doubled:
        raise ValueError(f"parameter {doubled[0]!r} of {source.source!r} is both fixed and searched: keep one")
    _try_config(source, {})
    for name, dimension in source.space.items():
        values = dimension.choices if isinstance(dimension, Choice) else (dimension.low, dimension.high)
        for value in values:
            _try_config(source, {name: value})


def _try_config(source: SourceStudy, values: dict[str, Any]) -> None:
    given = {**source.fixed, **values}
    try:
        MODELS[source.model].Config.model_validate(given)
    except ValidationError as error:
        for problem in error.errors():
            name = str(problem["loc"][0]) if problem["loc"] else ""
            # A rule between two parameters may hold inside a space whose corners break it: such a trial fails by itself.
            if name in given:
                raise ValueError(
                    f"model {source.model!r}, parameter {name!r}: {given[name]!r} is not allowed ({problem['msg']})"
                ) from None
