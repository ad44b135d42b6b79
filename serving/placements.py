"""Placements: named places in an application with their own defaults, as tables of the settings (`[serve.placements.NAME]`)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Exploration(BaseModel):
    """Places of a list that are given to items by chance, with known propensities. Off unless a placement has this table."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    slots: int = Field(default=1, ge=1, le=20)
    """The last so many places of an answer; an answer always keeps one place of its own."""
    pool: int = Field(default=50, ge=2, le=200)
    """Items that follow the answer in its list, of which the places are drawn."""
    temperature: float = Field(default=10.0, gt=0, le=1000)
    """An item at place r of the pool has weight 1 / (temperature + r): the larger, the more even."""
    floor: int = Field(default=0, ge=0, le=1_000_000)
    """Exposures that each new item gets before the places go to the pool again; 0 for none."""
    new_days: float = Field(default=7.0, gt=0, le=365)
    """An item is new for so long after its `created_at`; and, without one, while the model has not been trained on it."""


class Placement(BaseModel):
    """Defaults of one place. A request's own `top_k` and `diversity` win; its filter applies beside the placement's."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    filter: str | None = None
    """CEL over item attributes that every item of this place passes."""
    rules: tuple[str, ...] | None = None
    """Names of the rules that apply here; all whose own `placements` allow it if not given."""
    top_k: int = Field(default=10, ge=1, le=500)
    """Length of an answer whose request names none."""
    diversity: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """How much an answer is diversified whose request does not say: 0 not at all."""
    exploration: Exploration | None = None
    """Places given to items by chance; none without this table."""

    @field_validator("filter")
    @classmethod
    def _compiles(cls, expression: str | None) -> str | None:
        if expression is None:
            return None
        # Not needed by commands that only read settings, and they start in a third of a second without numpy and Arrow.
        from serving.errors import FilterError
        from serving.filters import compile_filter

        try:
            return compile_filter(expression).expression
        except FilterError as error:
            raise ValueError(str(error)) from None


NO_PLACEMENT = Placement()
"""What holds for requests that name none."""
