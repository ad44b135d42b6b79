"""What a funnel is made of, as data: sources with quotas, blend, ranker. Read from study files, kept in every bundle."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from training.rankers.registry import RANKER_CLASSES

Normalisation = Literal["minmax", "softmax", "rank"]


class SourceConfig(BaseModel):
    """One retriever of the funnel."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    """Name in `training.models.registry.MODELS`."""
    name: str | None = None
    """Name of the source in candidate sets and answers; the model's unless one model is used twice."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The model's configuration."""
    quota: int = Field(default=200, ge=1, le=5_000)
    """Candidates asked of this source for each query."""

    @property
    def source(self) -> str:
        """Name of the source."""
        return self.name or self.model


class SourceBlend(BaseModel):
    """How one source's scores enter the blend: `weight * normalised ** power`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    normalisation: Normalisation = "minmax"
    """`minmax`: (s - min) / (max - min) over the query's candidates of the source. `softmax`: softmax(z / temperature) of the
    z-scores, divided by its largest. `rank`: temperature / (temperature + rank), reciprocal rank fusion."""
    temperature: float = Field(default=1.0, gt=0)
    """Of softmax, or the constant of rank; unused by minmax."""
    power: float = Field(default=1.0, gt=0, le=8)
    weight: float = Field(default=1.0, ge=0)


class BlendConfig(BaseModel):
    """The blend: given, or searched on validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: dict[str, SourceBlend] | None = None
    """Source -> its part. None searches on validation."""
    trials: int = Field(default=120, ge=0, le=5_000)
    """Trials of the search, single sources and the equal blend beside them; 0 takes the best of those."""
    max_users: int = Field(default=4_000, ge=1)
    """Validation users with a target among their candidates that the search looks at, drawn by the seed."""


class RankerConfig(BaseModel):
    """The ranker: the blend itself, or a learned one over its candidates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = "blend"
    """`blend`, or a ranker of `training.rankers.registry`."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The ranker's own configuration (`training.rankers`)."""
    folds: int = Field(default=4, ge=2, le=20)
    """Folds over users: out-of-fold predictions decide whether the ranker ships."""
    max_users: int = Field(default=20_000, ge=1)
    """Validation users with a target among their candidates that the ranker is trained on at most, drawn by the seed."""
    confidence: float = Field(default=0.9, gt=0.0, lt=1.0)
    """The ranker ships when this share of bootstrap resamples of users has it above the blend."""

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        if kind != "blend" and kind not in RANKER_CLASSES:
            raise ValueError(f"unknown ranker {kind!r}; known: blend, {', '.join(RANKER_CLASSES)}")
        return kind


class FunnelConfig(BaseModel):
    """A whole funnel."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    blend: BlendConfig = BlendConfig()
    ranker: RankerConfig = RankerConfig()
    k_candidates: int = Field(default=500, ge=10, le=5_000)
    """Candidates that reach the ranker: the union of the sources, cut by blend score."""
    validation_users: int = Field(default=40_000, ge=10)
    """Queries of the validation fold that blend and ranker are fitted on at most, drawn by the seed: bounds memory."""
    simulated_folds: int = Field(default=0, ge=0, le=50)
    """For lists of new items: blend and rankers learn from so many draws of items that are hidden as if they were new
    (`training.simulated_folds`), and validation judges; 0 has them learn from validation."""
    feature_service: str = "ranking_v1"
    """Feast feature service that gives the user columns at request time."""

    @model_validator(mode="after")
    def _sources_are_distinct(self) -> Self:
        names = [source.source for source in self.sources]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"source {doubled[0]!r} is listed twice: give one of them a `name`")
        if self.blend.sources is not None and set(self.blend.sources) != set(names):
            raise ValueError(f"blend.sources must name exactly the sources {', '.join(names)}")
        return self
