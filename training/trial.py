"""One trial as a plain function: a model's configuration and a fold in, metrics out. Knows neither Ray nor MLflow."""

from __future__ import annotations

import contextlib
import math
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from training.epochs import EpochLimits, EpochWatch
from training.errors import TrainingError
from training.evaluate import Evaluation, evaluate, retriever_recommend
from training.models.base import Retriever, TrainingData
from training.models.registry import MODELS, build_model
from training.splits import Fold
from training.weights import WORTH_KEEPING_SECONDS, WeightStore

EPOCH_USERS = 5_000
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
        patience: epochs without a gain after which a fit stops; None never stops it.
        weights: where models that took long to fit are kept; None keeps none.
        data_sha256: of what is fitted on (`training.weights.data_sha256`); needed where `weights` is given.
    """

    data: TrainingData
    fold: Fold
    metric: str
    seed: int
    patience: int | None = None
    weights: WeightStore | None = None
    data_sha256: str = ""


def run_trial(
    task: TrialTask,
    model: str,
    config: Mapping[str, Any],
    report: Report,
    *,
    threads: int | None = None,
    end_at: float | None = None,
    refit_share: float = 0.0,
) -> Evaluation:
    """Fit one configuration and measure it on the fold.

    A model with epochs is measured on a sample of users as it learns (`training.epochs`), and what counts in the end is its best
    epoch: `report` gets `epoch`, the training loss as `curve.loss`, and where the epoch was measured the objective on the sample,
    the same as `curve.<metric>`. It is called once more at the end with all metrics on all users, the objective as `objective`,
    `final` = 1, and the best epoch as `epoch`.

    Args:
        task: data, fold and objective.
        model: name in `training.models.registry.MODELS`.
        config: of the model.
        report: see above.
        threads: cap on the threads of numerical libraries; None leaves them alone.
        end_at, refit_share: see `EpochLimits`.

    Returns:
        The evaluation on all users of the fold.

    Raises:
        StudyError: unknown model or parameter.
        TrialDivergedError: the model's scores, or its metrics, are not finite.
    """
    reset_peak_memory()
    with threadpool_limits(limits=threads), _scratch(task.weights) as folder:
        retriever = build_model(model, dict(config))
        sample = _sample(task.fold)

        def on_epoch(epoch: int, value: float | None, loss: float | None, seconds: float) -> None:
            measured = {} if value is None else {"objective": value, f"curve.{task.metric}": value}
            learnt = {} if loss is None else {"curve.loss": loss}
            report({**measured, **learnt, "epoch": float(epoch), "seconds": round(seconds, 3)})

        started = time.perf_counter()
        watch = EpochWatch(
            measure=lambda fitted: _measured(fitted, sample, task, model).metrics[task.metric],
            limits=EpochLimits(task.patience, end_at, refit_share),
            folder=folder,
            report=on_epoch,
        )
        retriever.fit(replace(task.data, interactions=task.fold.fit), seed=task.seed, on_epoch=watch.on_epoch)
        fit_seconds = time.perf_counter() - started
        retriever = watch.finish(retriever)
        evaluation = _measured(retriever, task.fold, task, model)
        if task.weights is not None:
            _keep(task, task.weights, folder, model, with_epochs(model, config, watch.best_epoch), retriever, watch, fit_seconds)
    metrics = {name: value for name, value in evaluation.metrics.items() if math.isfinite(value)}
    metrics |= {
        "objective": evaluation.metrics[task.metric],
        "fit_seconds": round(fit_seconds, 3),
        "evaluate_seconds": round(evaluation.seconds, 3),
        "seconds": round(time.perf_counter() - started, 3),
        "peak_memory_mb": peak_memory_mb(),
        "final": 1.0,
    }
    if watch.best_epoch is not None and watch.last_epoch is not None:
        metrics |= {
            "epoch": float(watch.best_epoch),
            "epochs_run": float(watch.last_epoch),
            "epoch_seconds": round(watch.epoch_seconds, 3),
        }
    report(metrics)
    return evaluation


def with_epochs(model: str, config: Mapping[str, Any], best_epoch: float | None) -> dict[str, Any]:
    """The configuration with the number of epochs at the best one: what later fits take."""
    parameter = MODELS[model].epochs_parameter
    return dict(config) if best_epoch is None or parameter is None else {**config, parameter: int(best_epoch)}


def _keep(
    task: TrialTask,
    store: WeightStore,
    folder: Path,
    model: str,
    config: Mapping[str, Any],
    fitted: Retriever,
    watch: EpochWatch,
    fit_seconds: float,
) -> None:
    if watch.best_epoch is None:
        if fit_seconds < WORTH_KEEPING_SECONDS:
            return
        fitted.save(folder)
    note = {"model": model, "config": dict(config), "fit_seconds": round(fit_seconds, 1)}
    store.keep(folder, store.path(model, config, task.data_sha256, task.seed), note)


@contextlib.contextmanager
def _scratch(store: WeightStore | None) -> Iterator[Path]:
    """A folder for the weights of the best epoch; what is still there in the end goes away."""
    folder = Path(tempfile.mkdtemp(prefix="shortlist-epochs-")) if store is None else store.scratch()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
