"""Running a study's trials on Ray Tune: in processes of their own, models with epochs stopped early.

Quick models come first, a trial a core; then slow ones, a trial on several cores.

The only module that knows `ray.tune`. What a trial does is `training.trial`'s, which values it tries `training.search`'s, what is
kept of it `training.trial_log`'s; Tune's own experiment state is not used, so a study continues on any machine from its log.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil
import ray
from pydantic import ValidationError
from ray import tune
from ray._private import worker as ray_worker  # noqa: PLC2701 -- no setting leaves its messages out
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from training.budget import Budget
from training.members import with_members
from training.memory_kills import memory_kills_fail_one_trial
from training.models.registry import MODELS
from training.search import Proposal, StudySearch
from training.search_watch import OnProgress, SearchWatch, best_trials
from training.study import Study
from training.tracking import TrialRuns
from training.trial import TrialTask, run_trial
from training.trial_log import TrialLog, TrialRecord
from training.trial_process import failure_reason, trial_process

MEMORY_SHARE = 0.9
"""Share of the memory that Ray counts on which one trial may ask for."""
PROCESS_BYTES = 600 * 2**20
"""A trial's process with the libraries, its share of the data and an evaluation's block of scores (300 to 700 MB on ml-100k)."""
MEMORY_STEP = 512 * 2**20
SLOW_CORES = 4
"""Cores of a fit of a slow model: small networks gain little from more."""


def run_search(
    study: Study,
    task: TrialTask,
    search: StudySearch,
    log: TrialLog,
    runs: TrialRuns,
    *,
    budget: Budget | None = None,
    on_progress: OnProgress | None = None,
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
        budget: of the call; decides when the last trial starts and how long each may take.
        on_progress: called in this process whenever something changes.

    Returns:
        All records of the log, those of earlier calls included.
    """
    limit = budget or Budget(time.time(), None, 0.0)
    deadline = None if limit.minutes is None else limit.quick_until(study)
    watch = SearchWatch(study, search, log, runs, task, on_progress, deadline)
    mode = "max" if study.direction == "maximize" else "min"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Epochs that were not measured report their loss alone.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    for quick in (True, False):
        sources = [s.source for s in study.sources if MODELS[s.model].slow != quick]
        remaining = search.unspent(sources)
        if not remaining:
            continue
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        cores_each = 1 if quick else min(cores, SLOW_CORES)
        asked = _AskTell(search, sources, study, task, mode, limit, watch, cores_each)
        scratch = Path(tempfile.mkdtemp(prefix="sl-tune-"))
        try:
            with _quiet_ray(), memory_kills_fail_one_trial():
                tuner = tune.Tuner(
                    tune.with_resources(tune.with_parameters(_trainable, task=task), _needs),
                    tune_config=tune.TuneConfig(
                        search_alg=asked,
                        scheduler=FIFOScheduler() if quick else _PerSourceAsha(mode, study.grace_epochs),
                        # One more trial of each source may be for its members.
                        num_samples=remaining if quick else remaining + len(sources),
                        max_concurrent_trials=cores // cores_each,
                        # A fit that is stopped within an epoch does not end in time for a reset, and Tune then waits for ever.
                        reuse_actors=quick,
                        trial_name_creator=lambda trial: str(trial.config["name"]),
                        trial_dirname_creator=lambda trial: str(trial.config["name"]),
                    ),
                    run_config=tune.RunConfig(
                        storage_path=str(scratch),
                        name=study.name,
                        verbose=0,
                        callbacks=[_Callback(watch)],
                        failure_config=tune.FailureConfig(max_failures=0),
                    ),
                )
                tuner.fit()
        finally:
            watch.interrupted()
            shutil.rmtree(scratch, ignore_errors=True)
            if task.weights is not None:
                task.weights.sweep()
    return watch.records


def _trainable(config: dict[str, Any], task: TrialTask) -> None:
    """Runs in a Ray worker."""
    with trial_process(config["over_at"]) as is_in_time:

        def report(metrics: dict[str, float]) -> None:
            if MODELS[config["model"]].slow:
                is_in_time()
            tune.report(metrics)

        run_trial(
            task,
            config["model"],
            config["config"],
            report,
            threads=config["cores"],
            end_at=config["end_at"],
            refit_share=config["refit_share"],
        )


def _needs(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What a trial asks of Ray: whole CPUs, and the memory that its model may need, so that big ones wait for each other."""
    return tune.PlacementGroupFactory([{"CPU": config["cores"], "memory": config["memory_bytes"]}])


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

    def __init__(
        self,
        search: StudySearch,
        sources: Sequence[str],
        study: Study,
        task: TrialTask,
        mode: str,
        budget: Budget,
        watch: SearchWatch,
        cores: int,
    ) -> None:
        super().__init__(metric="objective", mode=mode)
        self._search, self._sources, self._study, self._task = search, sources, study, task
        self._budget, self._watch, self._cores = budget, watch, cores
        self._proposals: dict[str, Proposal] = {}
        self._grown: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        best, now = best_trials(self._study, self._watch.records), time.time()
        while True:
            proposal = self._more_members(best, now) or self._search.ask(self._sources)
            if proposal is None:
                return str(Searcher.FINISHED)
            slow, quick_until = MODELS[proposal.model].slow, self._budget.quick_until(self._study)
            end_at = self._budget.slow_trial_end(proposal.source, self._study, best, now) if slow else quick_until
            if end_at is not None and (slow or now < quick_until):
                break
            self._search.give_up(proposal.source)
        self._proposals[trial_id] = proposal
        return {
            "name": proposal.name,
            "source": proposal.source,
            "model": proposal.model,
            "number": proposal.number,
            "params": dict(proposal.params),
            "config": dict(proposal.config),
            "memory_bytes": _memory_bytes(proposal, self._task),
            "cores": self._cores,
            "end_at": end_at,
            "over_at": self._budget.over_at(proposal.source, self._study, best, now, end_at),
            # What refits of quick models take is kept already.
            "refit_share": self._budget.refit_share if slow else 0.0,
            "may_stop": proposal.source not in self._grown,
        }

    def _more_members(self, best: Mapping[str, TrialRecord], now: float) -> Proposal | None:
        for source in [name for name in self._sources if name not in self._grown]:
            over = self._search.unspent([source]) == 0
            config = with_members(source, self._study, self._watch.records, best, self._budget, now, over=over)
            if config is not None:
                self._grown.add(source)
                return self._search.again(source, best[source].params, config)
        return None

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

    Trials that report no `epoch` run to their end, and so does the one that has more members of the best.
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
        if "final" in result or not trial.config["may_stop"]:
            return str(TrialScheduler.CONTINUE)
        return str(self._asha(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._asha(trial).on_trial_complete(tune_controller, trial, result)


class _Callback(_NotKept, tune.Callback):
    """Tells a `SearchWatch` what Tune tells."""

    def __init__(self, watch: SearchWatch) -> None:
        self._watch = watch

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._watch.started(trial.trial_id, trial.config)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        self._watch.reported(trial.trial_id, {k: float(v) for k, v in result.items() if k in _ours(result)})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._watch.ended(trial.trial_id, trial.config)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # A slow one that has reported was in time (`_trainable`): whatever it died of, it was not its end.
        in_time = MODELS[trial.config["model"]].slow and "epoch" in trial.run_metadata.last_result
        over_at = float("inf") if in_time else trial.config["over_at"]
        self._watch.failed(trial.trial_id, trial.config, failure_reason(trial.error_file, over_at))


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


@contextmanager
def _quiet_ray() -> Iterator[None]:
    """Tune logs each failed trial with a traceback, Ray prints pages about each process that died; here they are one line each."""
    told = ray_worker.print_to_stdstream
    ray_worker.print_to_stdstream = lambda data, ignore_prefix: None
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = told
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
