"""Following a fit that has epochs: how good the model is after which epoch, when to stop, and the weights of its best epoch.

What is measured, and what becomes of a trial, is `training.trial`'s.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from training.models.base import Retriever


@dataclass(frozen=True)
class EpochLimits:
    """When a fit with epochs ends before its configured last one.

    Args:
        patience: epochs without a gain after which it stops; None never stops it.
        end_at: `time.time()` by which the fit, and a later refit of its best epoch, must be over; None sets no limit.
        refit_share: what an epoch of the refit takes of an epoch here: 0 without a refit, above 1 where it reads more rows.
    """

    patience: int | None = None
    end_at: float | None = None
    refit_share: float = 0.0


@dataclass
class EpochWatch:
    """Measures after the first epoch, and then whenever as much time went into training as the last measurement took: half of the
    time at most goes into measuring. The last epoch before a stop is always measured.

    Args:
        measure: the model as it stands -> its objective, on a sample of users; higher is better.
        limits: when to stop.
        folder: where the weights of the best epoch are saved; exists.
        report: told epoch, objective (None where it was not measured), training loss (None where the model has none) and seconds
            after each epoch that has something to tell.
    """

    measure: Callable[[Retriever], float]
    limits: EpochLimits
    folder: Path
    report: Callable[[int, float | None, float | None, float], None]
    last_epoch: int | None = None
    best_epoch: int | None = None
    best_value: float | None = None
    epoch_seconds: float = 0.0
    _started: float = field(default_factory=time.perf_counter)
    _resumed: float = 0.0
    _last_measuring: float = 0.0
    _measuring: float = 0.0
    _measured_epoch: int | None = None

    def __post_init__(self) -> None:
        self._resumed = self._started

    def on_epoch(self, epoch: int, fitted: Retriever) -> bool:
        """`ReportEpoch` of the fit."""
        self.last_epoch = epoch
        now = time.perf_counter()
        self.epoch_seconds = (now - self._started - self._measuring) / epoch
        over = self._time_is_up()
        if over or self._out_of_patience(epoch) or now - self._resumed >= self._last_measuring:
            self._look(epoch, fitted, fitted.training_loss)
        elif fitted.training_loss is not None:
            self.report(epoch, None, fitted.training_loss, now - self._started)
        return over or self._out_of_patience(epoch)

    def finish(self, fitted: Retriever) -> Retriever:
        """The model at its best epoch: the one given, or the one on disk. Without epochs, the one given."""
        if self.last_epoch is None:
            return fitted
        if self._measured_epoch != self.last_epoch:
            self._look(self.last_epoch, fitted, None)
        if self.best_epoch == self.last_epoch:
            return fitted
        return type(fitted).load(self.folder, fitted.config)

    def _look(self, epoch: int, fitted: Retriever, loss: float | None) -> None:
        began = time.perf_counter()
        value = self.measure(fitted)
        if self.best_value is None or value > self.best_value:
            self.best_epoch, self.best_value = epoch, value
            for old in self.folder.iterdir():
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            fitted.save(self.folder)
        self._measured_epoch = epoch
        self.report(epoch, value, loss, began - self._started)
        self._resumed = time.perf_counter()
        self._last_measuring = self._resumed - began
        self._measuring += self._last_measuring

    def _out_of_patience(self, epoch: int) -> bool:
        patience = self.limits.patience
        return patience is not None and self.best_epoch is not None and epoch - self.best_epoch >= patience

    def _time_is_up(self) -> bool:
        """Whether one more epoch, and the refit of the best one so far, would be too late."""
        if self.limits.end_at is None:
            return False
        refit = self.limits.refit_share * self.epoch_seconds * (self.best_epoch or self.last_epoch or 1)
        return time.time() + self.epoch_seconds + refit > self.limits.end_at
