"""What happens in a search, written to the log, to MLflow and to the screen; and sources given up. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from training.search import StudySearch
from training.study import Study
from training.tracking import TrialRuns
from training.trial import TrialTask, with_epochs
from training.trial_log import TrialLog, TrialRecord
from training.trial_process import TOO_LONG
from training.tune_progress import SearchProgress

HOPELESS = 3
"""First trials of a source that failed, all of them, after which it gets no more."""
NOT_TRAINABLE = "NotTrainableError: "
"""How the reason of a trial starts whose model cannot be trained on this data. Neither could the next one, as after `TOO_LONG`."""

OnProgress = Callable[[SearchProgress], None]


@dataclass
class _Running:
    name: str
    started: float
    run_id: str | None
    result: dict[str, float] = field(default_factory=dict)


class SearchWatch:
    """Told of every trial's start, results and end.

    Args:
        study: the study.
        search: told of sources that are given up.
        log: gets every trial that ends.
        runs: MLflow runs of the trials.
        task: has the store of weights, where the best of each source stays.
        on_progress: called whenever something changes.
        deadline: `time.time()` after which no trial starts, for the time left.
    """

    def __init__(
        self,
        study: Study,
        search: StudySearch,
        log: TrialLog,
        runs: TrialRuns,
        task: TrialTask,
        on_progress: OnProgress | None,
        deadline: float | None,
    ) -> None:
        self._study, self._search, self._log, self._runs, self._task = study, search, log, runs, task
        self._on_progress, self._deadline = on_progress, deadline
        self._running: dict[str, _Running] = {}
        self.records = log.records()
        self._ended_before = len(self.records)
        self._started = time.time()
        self._show(None)

    def started(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """A trial started; `config` is as `training.tune` made it of the proposal."""
        run_id = self._runs.start(
            config["name"], {"source": config["source"], "model": config["model"], "config": config["config"]}
        )
        self._running[trial_id] = _Running(config["name"], time.time(), run_id)
        self._show(None)

    def reported(self, trial_id: str, result: Mapping[str, float]) -> None:
        """A trial reported metrics."""
        running = self._running.get(trial_id)
        if running is not None:
            running.result = dict(result) if "objective" in result else {**running.result, **result}
            self._runs.log(running.run_id, result, step=int(result.get("epoch", 0)))

    def ended(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """A trial came to its end, or was stopped."""
        running = self._running.pop(trial_id, None)
        if running is None:
            return
        if "objective" not in running.result:
            self._end(config, running, "failed", "it ended without reporting a metric")
        else:
            self._end(config, running, "finished" if "final" in running.result else "stopped", None)

    def failed(self, trial_id: str, config: Mapping[str, Any], reason: str) -> None:
        """A trial failed."""
        running = self._running.pop(trial_id, None) or _Running(config["name"], time.time(), None)
        self._end(config, running, "failed", reason)

    def interrupted(self) -> None:
        """End the runs of trials that were under way when the search ended."""
        for running in self._running.values():
            self._runs.end(running.run_id, "KILLED", "the study was interrupted")
        self._running.clear()

    def _end(
        self, config: Mapping[str, Any], running: _Running, status: Literal["finished", "stopped", "failed"], reason: str | None
    ) -> None:
        best_epoch = running.result.get("epoch") if status == "finished" else None
        record = TrialRecord(
            source=config["source"],
            model=config["model"],
            number=config["number"],
            params=config["params"],
            config=with_epochs(config["model"], config["config"], best_epoch),
            status=status,
            value=running.result.get("objective") if status != "failed" else None,
            metrics={name: value for name, value in running.result.items() if name not in ("objective", "final")},
            seconds=round(time.time() - running.started, 3),
            reason=reason,
            run_id=running.run_id,
        )
        self._log.append(record)
        self.records.append(record)
        if hopeless(self.records, record.source):
            self._search.give_up(record.source)
        keep_best(self._study, self._task, self.records)
        self._runs.end(running.run_id, record.run_status, reason)
        self._show(record)

    def _show(self, last: TrialRecord | None) -> None:
        if self._on_progress is None:
            return
        now = time.time()
        planned = max(self._search.planned, len(self.records))
        here = len(self.records) - self._ended_before
        remaining = None
        if here:
            remaining = (now - self._started) / here * max(0, planned - len(self.records))
            if self._deadline is not None:
                remaining = min(remaining, max(0.0, self._deadline - now))
        best = best_trials(self._study, self.records).values()
        sign = 1.0 if self._study.direction == "maximize" else -1.0
        count = [record.status for record in self.records].count
        self._on_progress(
            SearchProgress(
                planned=planned,
                finished=count("finished"),
                stopped=count("stopped"),
                failed=count("failed"),
                running=tuple(sorted(running.name for running in self._running.values())),
                best=max(best, key=lambda r: sign * (r.value or 0.0), default=None),
                last=last,
                elapsed_s=now - self._started,
                remaining_s=remaining,
            )
        )


def best_trials(study: Study, records: list[TrialRecord]) -> dict[str, TrialRecord]:
    """Source -> its best finished trial; sources of which none finished are absent. Equal values: the earlier trial."""
    sign = 1.0 if study.direction == "maximize" else -1.0
    best: dict[str, TrialRecord] = {}
    for record in sorted(records, key=lambda r: r.number):
        if record.status == "finished" and record.value is not None:
            held = best.get(record.source)
            if held is None or held.value is None or sign * record.value > sign * held.value:
                best[record.source] = record
    return best


def hopeless(records: list[TrialRecord], source: str) -> bool:
    """Whether a source's trials so far say that no other would succeed."""
    own = [record for record in records if record.source == source]
    failed = [record for record in own if record.status == "failed"]
    never = any((record.reason or "").startswith((NOT_TRAINABLE, TOO_LONG)) for record in failed)
    return len(failed) == len(own) and bool(own) and (never or len(own) >= HOPELESS)


def keep_best(study: Study, task: TrialTask, records: list[TrialRecord]) -> None:
    """Delete the weights of all trials but the best of each source."""
    if task.weights is not None:
        best = best_trials(study, records).values()
        task.weights.prune({task.weights.path(r.model, r.config, task.data_sha256, task.seed) for r in best})
