"""One trial as a plain function: a model's configuration and a fold in, metrics out. Knows neither Ray nor MLflow."""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from training.errors import TrainingError
from training.evaluate import Evaluation, evaluate, retriever_recommend
from training.models.base import Retriever, TrainingData
from training.models.registry import build_model
from training.splits import Fold

EPOCH_USERS = 2_000
"""Users that the metric after each epoch looks at; the last one looks at all."""

Report = Callable[[dict[str, float]], None]
"""Called with the metrics known so far; whoever runs the trial may end it there."""


class TrialDivergedError(TrainingError):
    """A model's scores or metrics are not finite."""


@dataclass(frozen=True)
class TrialTask:
    """What all trials of a study share.

    Args:
        data: attributes of users and items; its interactions are replaced by the fold's.
        fold: of stage validation.
        metric: the objective.
        seed: of every random choice.
    """

    data: TrainingData
    fold: Fold
    metric: str
    seed: int


def run_trial(task: TrialTask, model: str, config: Mapping[str, Any], report: Report, *, threads: int | None = None) -> Evaluation:
    """Fit one configuration and measure it on the fold.

    Models with epochs are measured after the first and then whenever as much time went into training as the last measurement took,
    so that half of the time at most goes into measuring: `report` gets the objective on a sample of users and `epoch`. It is called
    once more at the end with all metrics, the objective as `objective`, and `final` = 1.

    Args:
        task: data, fold and objective.
        model: name in `training.models.registry.MODELS`.
        config: of the model.
        report: see above.
        threads: cap on the threads of numerical libraries; None leaves them alone.

    Returns:
        The evaluation on all users of the fold.

    Raises:
        StudyError: unknown model or parameter.
        TrialDivergedError: the model's scores, or its metrics, are not finite.
    """
    reset_peak_memory()
    with threadpool_limits(limits=threads):
        retriever = build_model(model, dict(config))
        sample = _sample(task.fold)
        last_epoch: float | None = None
        started = resumed = time.perf_counter()
        measuring = 0.0

        def on_epoch(epoch: int, fitted: Retriever) -> bool:
            nonlocal last_epoch, measuring, resumed
            last_epoch = float(epoch)
            began = time.perf_counter()
            if began - resumed >= measuring:
                value = _measured(fitted, sample, task, model).metrics[task.metric]
                report({"objective": value, task.metric: value, "epoch": last_epoch, "seconds": began - started})
                resumed = time.perf_counter()
                measuring = resumed - began
            return False

        retriever.fit(replace(task.data, interactions=task.fold.fit), seed=task.seed, on_epoch=on_epoch)
        fit_seconds = time.perf_counter() - started
        evaluation = _measured(retriever, task.fold, task, model)
    metrics = {name: value for name, value in evaluation.metrics.items() if math.isfinite(value)}
    metrics |= {
        "objective": evaluation.metrics[task.metric],
        "fit_seconds": round(fit_seconds, 3),
        "evaluate_seconds": round(evaluation.seconds, 3),
        "seconds": round(time.perf_counter() - started, 3),
        "peak_memory_mb": peak_memory_mb(),
        "final": 1.0,
    }
    report(metrics if last_epoch is None else {**metrics, "epoch": last_epoch})
    return evaluation


def reset_peak_memory() -> None:
    """Start `peak_memory_mb` anew, where the system can (Linux): a process may run several trials."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Largest resident size of this process since `reset_peak_memory`, in megabytes; since its start where that is unknown."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _measured(retriever: Retriever, fold: Fold, task: TrialTask, model: str) -> Evaluation:
    probe = retriever.score(fold.queries.slice(0, min(len(fold.queries), 16)))
    if not np.isfinite(probe).all():
        raise TrialDivergedError(
            f"{model} diverged: {int((~np.isfinite(probe)).sum())} of {probe.size} probed scores are not finite"
        )
    evaluation = evaluate(retriever_recommend(retriever, fold), fold, seed=task.seed)
    if not math.isfinite(evaluation.metrics[task.metric]):
        raise TrialDivergedError(f"{model} diverged: {task.metric} is {evaluation.metrics[task.metric]}")
    return evaluation


def _sample(fold: Fold) -> Fold:
    """The fold with its first `EPOCH_USERS` users at most: in the order of their ids as text, which is no order in time."""
    count = min(len(fold.queries), EPOCH_USERS)
    indptr = fold.target_indptr[: count + 1]
    return replace(fold, queries=fold.queries.slice(0, count), target_indptr=indptr, target_idx=fold.target_idx[: indptr[-1]])
