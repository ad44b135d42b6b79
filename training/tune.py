"""Running a study's trials on Ray Tune: in processes of their own, models with epochs stopped early.

Quick models come first, a trial a core; then slow ones, a trial on several cores.

With `training.tune_adapters` the only module that knows `ray.tune`. What a trial does is `training.trial`'s, which values it tries
`training.search`'s, what is kept of it `training.trial_log`'s; Tune's own experiment state is not used, so a study continues on any
machine from its log.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray._private import worker as ray_worker  # noqa: PLC2701 -- no setting leaves its messages out
from ray.tune.schedulers import FIFOScheduler

from training.budget import Budget
from training.memory_kills import memory_kills_fail_one_trial
from training.models.registry import MODELS
from training.search import StudySearch
from training.search_watch import OnProgress, SearchWatch
from training.study import Study
from training.tracking import TrialRuns
from training.trial import TrialTask, run_trial
from training.trial_log import TrialLog, TrialRecord
from training.trial_process import trial_process
from training.tune_adapters import AskTell, PerSourceAsha, WatchCallback

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
        asked = AskTell(search, sources, study, task, mode, limit, watch, cores_each)
        scratch = Path(tempfile.mkdtemp(prefix="sl-tune-"))
        try:
            with _quiet_ray(), memory_kills_fail_one_trial():
                tuner = tune.Tuner(
                    tune.with_resources(tune.with_parameters(_trainable, task=task), _needs),
                    tune_config=tune.TuneConfig(
                        search_alg=asked,
                        scheduler=FIFOScheduler() if quick else PerSourceAsha(mode, study.grace_epochs),
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
                        callbacks=[WatchCallback(watch)],
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
