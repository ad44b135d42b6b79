"""Proposing parameter values: one Optuna study a source. Knows nothing of Ray: trials are asked for and told about.

The first proposal of a source is its model's defaults, so that a search never ends below them.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from training.source_study import Choice, Dimension, IntRange, SourceStudy
from training.study import Study

RANDOM_TRIALS = 6
"""Proposals of a source drawn at random before the sampler models the space (Optuna's default of 10 is for longer searches)."""


@dataclass(frozen=True)
class Proposal:
    """One trial to run. `number` counts within the source from 0; `config` is the model's full configuration."""

    source: str
    model: str
    number: int
    params: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the trial and of its run."""
        return f"{self.source}-{self.number:03d}"


@dataclass(frozen=True)
class Finished:
    """A trial of an earlier, interrupted call. `value` is the objective, None where the trial failed."""

    source: str
    number: int
    params: Mapping[str, Any]
    value: float | None


class StudySearch:
    """The searches of all sources of a study, taken in turn by how much of its budget each has used.

    Args:
        study: the study.
        allocation: source -> trials.
        finished: trials that count as asked and told.
    """

    def __init__(self, study: Study, allocation: Mapping[str, int], finished: Sequence[Finished] = ()) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._sources = {
            source.source: _SourceSearch(
                source,
                allocation.get(source.source, 0),
                [trial for trial in finished if trial.source == source.source],
                # Sources must not share a stream of random numbers; 7919 is prime.
                seed=study.seed + 7919 * index,
                direction=study.direction,
            )
            for index, source in enumerate(study.sources)
        }

    @property
    def planned(self) -> int:
        """Trials of all sources together."""
        return sum(search.budget for search in self._sources.values())

    def unspent(self, sources: Sequence[str]) -> int:
        """Trials that some of the sources have left."""
        return sum(max(0, self._sources[name].budget - self._sources[name].spent) for name in sources)

    def give_up(self, source: str) -> None:
        """No more trials of a source."""
        self._sources[source].budget = min(self._sources[source].budget, self._sources[source].spent)

    def again(self, source: str, params: Mapping[str, Any], config: Mapping[str, Any]) -> Proposal:
        """One trial outside the search, which ends with it: `params` of an earlier one in another configuration."""
        return self._sources[source].again(params, config)

    def ask(self, sources: Sequence[str] | None = None) -> Proposal | None:
        """The next trial of some of the sources (None: all), None when their budgets are used."""
        asked = [self._sources[name] for name in (self._sources if sources is None else sources)]
        unspent = [search for search in asked if search.spent < search.budget]
        return min(unspent, key=lambda search: search.spent / search.budget).ask() if unspent else None

    def tell(self, source: str, number: int, value: float | None) -> None:
        """Report a trial's objective, None (or a value that is not finite) when it failed."""
        self._sources[source].tell(number, value)


class _SourceSearch:
    def __init__(
        self,
        source: SourceStudy,
        budget: int,
        finished: Sequence[Finished],
        *,
        seed: int,
        direction: Literal["maximize", "minimize"],
    ) -> None:
        self.source, self.budget = source, budget
        self._distributions = {name: _distribution(dimension) for name, dimension in source.space.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate and constant_liar
            # A continued search draws on, it does not draw the same values again.
            sampler = optuna.samplers.TPESampler(
                seed=seed + 104_729 * len(finished), n_startup_trials=RANDOM_TRIALS, multivariate=True, constant_liar=True
            )
        self._study = optuna.create_study(direction=direction, sampler=sampler)
        self._asked: dict[int, optuna.Trial | None] = {trial.number: None for trial in finished}
        for trial in finished:
            if trial.value is not None and self._distributions:
                self._study.add_trial(create_trial(params=dict(trial.params), distributions=self._distributions, value=trial.value))
        if self._distributions and 0 not in self._asked:
            self._study.enqueue_trial(source.default_params())

    @property
    def spent(self) -> int:
        return len(self._asked)

    def ask(self) -> Proposal:
        number = next(n for n in itertools.count() if n not in self._asked)
        trial = self._study.ask(self._distributions) if self._distributions else None
        self._asked[number] = trial
        params = dict(trial.params) if trial else {}
        return Proposal(self.source.source, self.source.model, number, params, {**self.source.fixed, **params})

    def again(self, params: Mapping[str, Any], config: Mapping[str, Any]) -> Proposal:
        number = next(n for n in itertools.count() if n not in self._asked)
        self._asked[number] = None
        self.budget = self.spent
        return Proposal(self.source.source, self.source.model, number, params, config)

    def tell(self, number: int, value: float | None) -> None:
        trial = self._asked[number]
        if trial is None:
            return
        if value is None or not math.isfinite(value):
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, value)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.choices)
    if isinstance(dimension, IntRange):
        return IntDistribution(dimension.low, dimension.high, log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
