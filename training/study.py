"""Study files: what to tune, on what, for how long, as data. Read from TOML, checked against the models before any work.

Owns the schema of the whole and the sharing of trials among sources; a source's own part is `training.source_study`'s. Proposing
values is `training.search`'s, running trials is `training.tune`'s.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from training.errors import StudyError
from training.funnel_config import BlendConfig, FunnelConfig, RankerConfig, SourceConfig
from training.source_study import SourceStudy, StudyPart, check_source

ProtocolName = Literal["leave-one-out", "temporal", "stratified", "given", "cold-items"]


class FunnelStage(StudyPart):
    """What comes after the sources."""

    k_candidates: int = Field(default=500, ge=10, le=5_000)
    """Candidates that reach the ranker: the union of the sources, cut by blend score."""
    validation_users: int = Field(default=40_000, ge=10)
    """Validation users that blend and rankers are fitted on at most, drawn by the seed: bounds memory."""
    simulated_folds: int = Field(default=0, ge=0, le=50)
    """For lists of new items: blend and rankers learn from so many draws of items that are hidden as if they were new
    (`training.simulated_folds`), and validation judges; 0 has them learn from validation."""
    blend: BlendConfig = BlendConfig()
    """How the blend of the sources is searched on validation, or its weights."""
    rankers: tuple[RankerConfig, ...] = (RankerConfig(kind="lambdamart"), RankerConfig(kind="listwise"))
    """Learned rankers to compare. One ships only where it beats the blend on validation; the best of those wins."""


class Study(StudyPart):
    """A whole study."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    """Name of the study and of its MLflow runs."""
    description: str = ""
    protocol: ProtocolName = "leave-one-out"
    """Whose validation part the study chooses on."""
    among: Literal["all", "cold"] = "all"
    """What is ranked while choosing: all items, or under cold-items those alone that are out of training."""
    metric: str = "ndcg@10"
    """What is optimised; its direction is the metric's own."""
    seed: int = 0
    trials: int = Field(default=30, ge=1)
    """Trials of all sources together."""
    minutes: float | None = Field(default=None, gt=0)
    """No trial starts after this share of an hour; what is under way ends. None sets no limit."""
    grace_epochs: int = Field(default=3, ge=1)
    """Epochs that every trial of a model with epochs gets before it may be stopped for being behind."""
    patience_epochs: int = Field(default=10, ge=1)
    """Epochs without a gain on validation after which a fit with epochs stops; what counts is its best epoch."""
    sources: tuple[SourceStudy, ...] = Field(min_length=1)
    funnel: FunnelStage = FunnelStage()
    refit: bool = True
    """Whether the registered version is fitted anew on all activity, what was held out included."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        metric_direction(self.metric)
        if self.among == "cold" and self.protocol != "cold-items":
            raise ValueError(f'among = "cold" goes with protocol = "cold-items", not with {self.protocol!r}')
        names = [source.source for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"source {name!r} is listed twice: give one of them a `name`")
        for source in self.sources:
            check_source(source)
        return self

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Which way the metric is better."""
        return metric_direction(self.metric)

    @property
    def searches(self) -> bool:
        """Whether anything is searched."""
        return any(source.space for source in self.sources)

    def digest(self) -> str:
        """SHA-256 of the resolved study; trials of studies with other digests are not continued."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def allocation(self, trials: int | None = None) -> dict[str, int]:
        """Source -> trials. Every source gets one before any gets two; one without a space never gets a second.

        Args:
            trials: cap on all together; the study's own where None.
        """
        total = self.trials if trials is None else trials
        weight = {s.source: float(total if s.trials else len(s.space)) for s in self.sources}
        most = {s.source: (s.trials or total) if s.space else 1 for s in self.sources}
        given = {s.source: 0 for s in self.sources}
        for source in list(given)[:total]:
            given[source] = 1
        for _ in range(total - sum(given.values())):
            open_ = [name for name in given if given[name] < most[name]]
            if not open_:
                break
            # Largest weight per trial given so far: shares come out proportional to the weights.
            given[max(open_, key=lambda name: weight[name] / given[name])] += 1
        return given

    def with_configs(self, configs: dict[str, dict[str, Any]], ranker: RankerConfig | None = None) -> Study:
        """The same study with nothing left to search: `configs` fixed for each source, and one ranker.

        Args:
            configs: source -> full configuration of its model.
            ranker: the one that won; None keeps those listed.
        """
        sources = tuple(s.model_copy(update={"fixed": configs[s.source], "space": {}}) for s in self.sources)
        funnel = self.funnel if ranker is None else self.funnel.model_copy(update={"rankers": (ranker,)})
        return self.model_copy(update={"sources": sources, "funnel": funnel})

    def funnel_config(self, configs: dict[str, dict[str, Any]], ranker: RankerConfig) -> FunnelConfig:
        """The funnel with these configurations of its sources and this ranker."""
        return FunnelConfig(
            sources=tuple(SourceConfig(model=s.model, name=s.name, config=configs[s.source], quota=s.quota) for s in self.sources),
            blend=self.funnel.blend,
            ranker=ranker,
            k_candidates=self.funnel.k_candidates,
            validation_users=self.funnel.validation_users,
            simulated_folds=self.funnel.simulated_folds,
        )


def load_study(path: Path) -> Study:
    """Read and check a study file, TOML or (as `tune` writes its outcome) JSON.

    Raises:
        StudyError: the file is missing or unreadable, or something in it is unknown or out of range.
    """
    try:
        text = path.read_text()
        raw = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise StudyError(f"study {path} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise StudyError(f"study {path} is not valid {path.suffix.lstrip('.').upper() or 'TOML'}: {error}") from error
    return parse_study(raw, str(path))


def parse_study(raw: object, origin: str) -> Study:
    """Check a decoded study.

    Args:
        raw: the table.
        origin: where it came from, for messages.

    Raises:
        StudyError: something in it is unknown or out of range.
    """
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown key; {_known_keys(first['loc'])}"
        raise StudyError(f"study {origin}{f', {where}' if where else ''}: {message}") from None


def metric_direction(metric: str) -> Literal["maximize", "minimize"]:
    """Which way a metric is better, as its owner declares it.

    Raises:
        ValueError: no such metric.
    """
    from training.evaluate import KS
    from training.metrics import METRICS

    family, _, k = metric.partition("@")
    if family not in METRICS or not k.isdecimal() or int(k) not in KS:
        known = ", ".join(f"{name}@{{{','.join(map(str, KS))}}}" for name in METRICS)
        raise ValueError(f"unknown metric {metric!r}; known: {known}")
    return "maximize"


def _known_keys(location: tuple[int | str, ...]) -> str:
    schema: Any = Study
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        field = getattr(schema, "model_fields", {}).get(part)
        if field is None:
            break
        inner = [a for a in (field.annotation, *getattr(field.annotation, "__args__", ())) if hasattr(a, "model_fields")]
        if not inner:
            break
        schema = inner[0]
    return "known here: " + ", ".join(sorted(schema.model_fields))
