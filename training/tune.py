"""Running a study's trials on Ray Tune: one a core, each in its own process, models with epochs stopped early.

The only module that knows `ray.tune`. What a trial does is `training.trial`'s, which values it tries `training.search`'s, what is
kept of it `training.trial_log`'s; Tune's own experiment state is not used, so a study continues on any machine from its log.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import ray
from pydantic import ValidationError
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from training.models.registry import MODELS
from training.search import Proposal, StudySearch
from training.study import Study
from training.tracking import TrialRuns
from training.trial import TrialTask, run_trial, with_epochs
from training.trial_log import TrialLog, TrialRecord
from training.tune_progress import SearchProgress

NICENESS = 15
"""Of trials: a stack that serves on the same cores keeps its latency (378 requests/s beside trials, 241 without)."""
MEMORY_SHARE = 0.9
"""Share of the memory that Ray counts on which one trial may ask for."""
PROCESS_BYTES = 600 * 2**20
"""A trial's process with the libraries, its share of the data and an evaluation's block of scores (300 to 700 MB on ml-100k)."""
MEMORY_STEP = 512 * 2**20


def run_search(
    study: Study,
    task: TrialTask,
    search: StudySearch,
    log: TrialLog,
    runs: TrialRuns,
    *,
    deadline: float | None = None,
    on_progress: Callable[[SearchProgress], None] | None = None,
) -> list[TrialRecord]:
    """Run the trials that `search` proposes until its budget or the time is used.

    A trial that raises, diverges or runs out of memory is logged as failed with its reason, and the search goes on. Ctrl-C ends the
    search with `KeyboardInterrupt`; what has ended is in the log.

    Args:
        study: the study.
        task: data and fold; put into Ray's object store once.
        search: proposes and is told.
        log: gets every trial that ends.
        runs: MLflow runs of the trials.
        deadline: `time.monotonic()` after which no trial starts.
        on_progress: called in this process whenever something changes.

    Returns:
        All records of the log, those of earlier calls included.
    """
    observer = _Observer(study, search.planned, log, runs, task, on_progress, deadline)
    mode = "max" if study.direction == "maximize" else "min"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    remaining = search.planned - len(log.records())
    if remaining > 0:
        scratch = Path(tempfile.mkdtemp(prefix="sl-tune-"))
        try:
            with _quiet_ray():
                tuner = tune.Tuner(
                    tune.with_resources(tune.with_parameters(_trainable, task=task), _needs),
                    tune_config=tune.TuneConfig(
                        search_alg=_AskTell(search, task, mode, deadline),
                        scheduler=_PerSourceAsha(mode, study.grace_epochs),
                        num_samples=remaining,
                        max_concurrent_trials=max(1, int(ray.cluster_resources().get("CPU", 1))),
                        reuse_actors=True,
                        trial_name_creator=lambda trial: str(trial.config["name"]),
                        trial_dirname_creator=lambda trial: str(trial.config["name"]),
                    ),
                    run_config=tune.RunConfig(
                        storage_path=str(scratch),
                        name=study.name,
                        verbose=0,
                        callbacks=[observer],
                        failure_config=tune.FailureConfig(max_failures=0),
                    ),
                )
                tuner.fit()
        finally:
            observer.interrupted()
            shutil.rmtree(scratch, ignore_errors=True)
            if task.weights is not None:
                task.weights.sweep()
    return log.records()


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


def keep_best(study: Study, task: TrialTask, records: list[TrialRecord]) -> None:
    """Delete the weights of all trials but the best of each source."""
    if task.weights is not None:
        best = best_trials(study, records).values()
        task.weights.prune({task.weights.path(r.model, r.config, task.data_sha256, task.seed) for r in best})


def _trainable(config: dict[str, Any], task: TrialTask) -> None:
    """Runs in a Ray worker."""
    os.nice(max(0, NICENESS - os.nice(0)))
    try:
        run_trial(task, config["model"], config["config"], tune.report, threads=1)
    finally:
        _give_memory_back()


def _give_memory_back() -> None:
    """Hand freed memory to the system: a worker runs many trials, each on a new thread, and glibc keeps what each of them freed."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _needs(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What a trial asks of Ray: a whole CPU, and the memory that its model may need, so that big ones wait for each other."""
    return tune.PlacementGroupFactory([{"CPU": 1, "memory": config["memory_bytes"]}])


def _memory_bytes(proposal: Proposal, task: TrialTask) -> int:
    """Memory that a trial asks Ray for. Ray counts it and bounds nothing.

    A trial that could never fit asks for nearly all there is and runs alone: whether it fits is for the model to say.
    """
    model = MODELS[proposal.model]
    try:
        wanted = PROCESS_BYTES + model.training_bytes(model.Config.model_validate(proposal.config), task.fold.fit)
    except ValidationError:
        wanted = PROCESS_BYTES  # a configuration that the model refuses: the trial says so
    most = int(ray.cluster_resources().get("memory", psutil.virtual_memory().available) * MEMORY_SHARE)
    # In steps, because trials with equal needs share a process.
    return min(-(-wanted // MEMORY_STEP) * MEMORY_STEP, most)


class _NotKept:
    """Tune writes its searcher and callbacks to disk and copies them. Ours hold connections and a screen, and their state is the
    log's: what is written is empty, and a copy is the thing itself."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class _AskTell(_NotKept, Searcher):
    """`StudySearch` in the form that Tune asks."""

    def __init__(self, search: StudySearch, task: TrialTask, mode: str, deadline: float | None) -> None:
        super().__init__(metric="objective", mode=mode)
        self._search, self._task, self._deadline = search, task, deadline
        self._proposals: dict[str, Proposal] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return str(Searcher.FINISHED)
        proposal = self._search.ask()
        if proposal is None:
            return str(Searcher.FINISHED)
        self._proposals[trial_id] = proposal
        return {
            "name": proposal.name,
            "source": proposal.source,
            "model": proposal.model,
            "number": proposal.number,
            "params": dict(proposal.params),
            "config": dict(proposal.config),
            "memory_bytes": _memory_bytes(proposal, self._task),
        }

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        proposal = self._proposals.pop(trial_id, None)
        if proposal is not None:
            value = None if error or result is None else result.get("objective")
            self._search.tell(proposal.source, proposal.number, value)

    def save(self, checkpoint_path: str) -> None:
        """Tune's own state is not used (see the module), but it insists on a file."""
        Path(checkpoint_path).write_text("")

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study continues from its trial log, not from Tune's state")


class _PerSourceAsha(FIFOScheduler):
    """ASHA among the trials of each source by itself: learning curves of different models are not comparable.

    Trials that report no `epoch` run to their end.
    """

    def __init__(self, mode: str, grace_epochs: int) -> None:
        super().__init__()
        self._mode, self._grace = mode, grace_epochs
        self._of: dict[str, AsyncHyperBandScheduler] = {}

    def _asha(self, trial: Any) -> AsyncHyperBandScheduler:
        source = trial.config["source"]
        if source not in self._of:
            self._of[source] = AsyncHyperBandScheduler(
                time_attr="epoch",
                metric="objective",
                mode=self._mode,
                grace_period=self._grace,
                reduction_factor=3,
                max_t=10_000,
                stop_last_trials=False,
            )
        return self._of[source]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._asha(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "final" in result:
            return str(TrialScheduler.CONTINUE)
        return str(self._asha(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._asha(trial).on_trial_complete(tune_controller, trial, result)


@dataclass
class _Running:
    name: str
    started: float
    run_id: str | None
    result: dict[str, float] = field(default_factory=dict)


class _Observer(_NotKept, tune.Callback):
    """Writes what happens to the log, to MLflow and to the screen."""

    def __init__(
        self,
        study: Study,
        planned: int,
        log: TrialLog,
        runs: TrialRuns,
        task: TrialTask,
        on_progress: Callable[[SearchProgress], None] | None,
        deadline: float | None,
    ) -> None:
        self._study, self._planned, self._log, self._runs, self._task = study, planned, log, runs, task
        self._on_progress, self._deadline = on_progress, deadline
        self._running: dict[str, _Running] = {}
        self._records = log.records()
        self._ended_before = len(self._records)
        self._started = time.monotonic()
        self._show(None)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        config = trial.config
        run_id = self._runs.start(
            config["name"], {"source": config["source"], "model": config["model"], "config": config["config"]}
        )
        self._running[trial.trial_id] = _Running(config["name"], time.monotonic(), run_id)
        self._show(None)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        running = self._running.get(trial.trial_id)
        if running is None:
            return
        reported = {k: float(v) for k, v in result.items() if k in _ours(result)}
        running.result = reported
        self._runs.log(running.run_id, reported, step=int(reported.get("epoch", 0)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        running = self._running.pop(trial.trial_id, None)
        if running is None:
            return
        if "objective" not in running.result:
            self._end(trial, running, "failed", "it ended without reporting a metric")
        else:
            self._end(trial, running, "finished" if "final" in running.result else "stopped", None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        running = self._running.pop(trial.trial_id, None) or _Running(trial.config["name"], time.monotonic(), None)
        self._end(trial, running, "failed", _reason(trial))

    def interrupted(self) -> None:
        """End the runs of trials that were under way when the search ended."""
        for running in self._running.values():
            self._runs.end(running.run_id, "KILLED", "the study was interrupted")
        self._running.clear()

    def _end(self, trial: Any, running: _Running, status: Any, reason: str | None) -> None:
        config = trial.config
        record = TrialRecord(
            source=config["source"],
            model=config["model"],
            number=config["number"],
            params=config["params"],
            config=with_epochs(config["model"], config["config"], running.result.get("epoch") if status == "finished" else None),
            status=status,
            value=running.result.get("objective") if status != "failed" else None,
            metrics={name: value for name, value in running.result.items() if name not in ("objective", "final")},
            seconds=round(time.monotonic() - running.started, 3),
            reason=reason,
            run_id=running.run_id,
        )
        self._log.append(record)
        self._records.append(record)
        keep_best(self._study, self._task, self._records)
        self._runs.end(running.run_id, record.run_status, reason)
        self._show(record)

    def _show(self, last: TrialRecord | None) -> None:
        if self._on_progress is None:
            return
        now = time.monotonic()
        here = len(self._records) - self._ended_before
        remaining = None
        if here:
            remaining = (now - self._started) / here * max(0, self._planned - len(self._records))
            if self._deadline is not None:
                remaining = min(remaining, max(0.0, self._deadline - now))
        best = best_trials(self._study, self._records).values()
        sign = 1.0 if self._study.direction == "maximize" else -1.0
        count = [record.status for record in self._records].count
        self._on_progress(
            SearchProgress(
                planned=self._planned,
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


_TUNE_FIELDS = frozenset(
    {
        "timestamp",
        "checkpoint_dir_name",
        "done",
        "training_iteration",
        "trial_id",
        "date",
        "time_this_iter_s",
        "time_total_s",
        "pid",
    }
    | {"hostname", "node_ip", "config", "time_since_restore", "iterations_since_restore", "experiment_tag"}
)


def _ours(result: Mapping[str, Any]) -> set[str]:
    return {name for name, value in result.items() if name not in _TUNE_FIELDS and isinstance(value, int | float)}


def _reason(trial: Any) -> str:
    """Why a trial failed, in one line, out of the text that Tune keeps."""
    try:
        text = Path(trial.error_file).read_text()
    except (OSError, TypeError):
        return "no reason was kept"
    if "OutOfMemoryError" in text or "running low on memory" in text:
        return "out of memory: Ray ended the trial's process"
    if "ActorDiedError" in text or "The actor died" in text:
        return "the trial's process died (killed, or out of memory)"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt): ", line)]
    last = (named or lines or ["no reason was kept"])[-1]
    return re.sub(r"^(?:\w+\.)+(?=\w+: )", "", last)[:500]


@contextmanager
def _quiet_ray() -> Iterator[None]:
    """Tune logs each failed trial with a traceback; ours go to the trial log and to the screen as one line."""
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
