"""The wall clock of a study with a time limit: what the search may use, and what is kept for the funnel, the refit and the end.

Quick models are searched first, in parallel. Models whose fits take minutes get what remains, one fit at a time on several cores:
how long one of their epochs takes is measured, and a fit ends while there is still time to refit it. A trial that cannot be in time
is ended as it is, unless the study needs its source. What comes after the search is estimated from the trials to be refitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.models.registry import MODELS
from training.study import Study
from training.trial_log import TrialRecord

QUICK_SHARE = 0.2
"""Share of the time in which trials of quick models start, where slow ones wait for the rest."""
SEARCH_SHARE = 0.6
"""The same where there are no slow models."""
OVERRUN = 1.5
"""A trial of a quick model that began in time ends at this multiple of it: on a large dataset one may take any time."""
FUNNEL_SHARE = 0.15
"""Kept for the funnel: candidates, blend and rankers."""
FUNNEL_MOST_SECONDS = 600.0
DRAWS_SHARE = 0.4
"""Kept beside it for simulated folds, each of which fits every source anew; as many are made as there is time for then."""
END_SECONDS = 15.0
"""Kept for saving, uploading and registering."""
END_SHARE = 0.02
AGAIN_SHARE = 0.5
"""A slow source gets another trial where this share of its best trial's time is left."""


@dataclass(frozen=True)
class Budget:
    """The wall clock of one call.

    Args:
        started: `time.time()` of the call.
        minutes: the limit; None sets none.
        refit_share: rows that the refit reads over those that trials read; 0 without a refit.
        simulated: whether the funnel learns from simulated folds.
    """

    started: float
    minutes: float | None
    refit_share: float
    simulated: bool = False

    @property
    def seconds(self) -> float:
        """The limit in seconds; infinite without one."""
        return float("inf") if self.minutes is None else self.minutes * 60

    @property
    def end(self) -> float:
        """`time.time()` by which all must be done."""
        return self.started + self.seconds

    def quick_until(self, study: Study) -> float:
        """`time.time()` after which no trial of a quick model starts."""
        share = QUICK_SHARE if slow_sources(study) else SEARCH_SHARE
        return self.started + self.seconds * share - self.seconds_share(DRAWS_SHARE * share if self.simulated else 0.0)

    def over_at(self, source: str, study: Study, best: Mapping[str, TrialRecord], now: float, end_at: float) -> float:
        """`time.time()` at which a trial is ended as it is; infinite where the study cannot do without its source.

        A slow one must have come through its first epoch by then, with as much time left as its refit takes; after that it knows
        its own pace.

        Args:
            source, study, best, now: as for `slow_trial_end`.
            end_at: when the fit should be over.
        """
        (asked,) = (one for one in study.sources if one.source == source)
        if source not in best and not asked.optional:
            return float("inf")
        if MODELS[asked.model].slow:
            return now + (end_at - now) / (1.0 + self.refit_share)
        return self.started + OVERRUN * (end_at - self.started)

    def search_until(self, best: Mapping[str, TrialRecord]) -> float:
        """`time.time()` at which the search must be over, refits of slow models included; `best` are the best trials so far."""
        quick = sum(refit_seconds(record) for record in best.values() if not MODELS[record.model].slow)
        kept = min(self.seconds * FUNNEL_SHARE, FUNNEL_MOST_SECONDS) + self.seconds_share(DRAWS_SHARE if self.simulated else 0.0)
        return self.funnel_until({}) - self.refit_share * quick - kept

    def funnel_until(self, best: Mapping[str, TrialRecord]) -> float:
        """`time.time()` at which the funnel must be fitted, so that the refit of `best` and the registration are in time."""
        refit = self.refit_share * sum(refit_seconds(record) for record in best.values())
        return self.end - END_SECONDS - self.seconds_share(END_SHARE) - refit

    def seconds_share(self, share: float) -> float:
        """A share of the limit; 0 without one."""
        return 0.0 if self.minutes is None else self.seconds * share

    def left_for(self, source: str, study: Study, best: Mapping[str, TrialRecord], now: float) -> float:
        """Seconds in which trials of a slow source and its refit must be over, refits of the other slow sources left out.

        Sources that have a trial already are refitted whatever comes; that of this source may be replaced.
        """
        others = [name for name in slow_sources(study) if name in best and name != source]
        return self.search_until(best) - sum(self.refit_share * refit_seconds(best[name]) for name in others) - now

    def slow_trial_end(self, source: str, study: Study, best: Mapping[str, TrialRecord], now: float) -> float | None:
        """`time.time()` by which the next trial of a slow source and its refit must be over; None where it is not worth starting.

        Args:
            source: whose trial.
            study: names the other sources, which have a right to time in proportion to their trials.
            best: the best trials so far.
            now: `time.time()`.
        """
        if self.minutes is None:
            return float("inf")
        left = self.left_for(source, study, best, now)
        if source not in best:
            trials = study.allocation()
            # One that has had its only trial wants nothing more.
            claims = sum(trials[name] for name in slow_sources(study) if name not in best or trials[name] > 1)
            return now + left * trials[source] / max(claims, 1) if left > 0 else None
        wanted = AGAIN_SHARE * best[source].seconds + self.refit_share * refit_seconds(best[source])
        return now + left if left >= wanted else None


def slow_sources(study: Study) -> list[str]:
    """Sources whose fits take minutes."""
    return [source.source for source in study.sources if MODELS[source.model].slow]


def part_of(study: Study, sources: Sequence[str]) -> Study:
    """The study with some of its sources."""
    return study.model_copy(update={"sources": tuple(s for s in study.sources if s.source in sources)})


def budget_of(started: float, minutes: float | None, study: Study, *, rows: int, fit_rows: int) -> Budget:
    """The budget of a call that started at `time.time()` = `started`; trials read `fit_rows` of `rows`."""
    share = rows / max(fit_rows, 1) if study.refit else 0.0
    return Budget(started, minutes, share, simulated=study.funnel.simulated_folds > 0)


def refit_seconds(record: TrialRecord) -> float:
    """What fitting the chosen configuration on the trial's rows takes: its best epoch is where a refit ends."""
    if "epoch_seconds" in record.metrics:
        return record.metrics["epoch_seconds"] * record.metrics["epoch"]
    return record.metrics.get("fit_seconds", record.seconds)
