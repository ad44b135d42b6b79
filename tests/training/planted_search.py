"""A search over planted models on a real Ray, run as a program: `python planted_search.py FOLDER MLFLOW_URL`.

A program of its own, because what `__main__` defines travels to Ray's workers by value, and because it is killed in one test.
The models: `learner` gets better with every epoch, up to a height that its configuration gives, and with every member; `fragile`
raises, kills its process, takes memory or time without end or gives NaN for some of its configurations.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import ray

from training.budget import Budget
from training.dataset import from_frame
from training.interactions import FloatArray
from training.models.base import ModelConfig, ReportEpoch, Retriever, TrainingData
from training.queries import QueryBatch
from training.search import Finished, StudySearch
from training.splits import leave_one_out
from training.study import Study
from training.tracking import Run, TrialRuns, connect, experiment_id
from training.trial import TrialTask
from training.trial_log import TrialLog
from training.tune import run_search
from training.weights import WeightStore


class Planted(Retriever):
    """Ranks the true next item first for the share `self.height` of users."""

    height = 1.0

    def score(self, queries: QueryBatch) -> FloatArray:
        last = queries.item_idx[queries.indptr[1:] - 1]
        distance = ((np.arange(self.num_items)[None, :] - last[:, None] - 1) % self.num_items).astype(np.float32)
        knows = (queries.user_idx % 100) / 100 < self.height
        return np.where(knows[:, None], -distance, distance)

    def save(self, folder: Path) -> None:
        (folder / "planted.json").write_text(json.dumps([self.num_items, self.height]))

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        fitted = cls(config)
        fitted.num_items, fitted.height = json.loads((folder / "planted.json").read_text())
        return fitted


class LearnerConfig(ModelConfig):
    epochs: int = 10
    height: float = 0.5
    seconds: float = 0.0
    members: int = 1


class Learner(Planted):
    name: ClassVar[str] = "learner"
    Config: ClassVar[type[ModelConfig]] = LearnerConfig
    epochs_parameter: ClassVar[str | None] = "epochs"
    members_parameter: ClassVar[str | None] = "members"
    slow: ClassVar[bool] = True

    def fit(self, data: TrainingData, *, seed: int = 0, on_epoch: ReportEpoch | None = None) -> Self:
        self.num_items = data.interactions.num_items
        for epoch in range(1, self.config.epochs + 1):
            self.height = min(1.0, self.config.height * epoch / 10 * (0.9 + 0.1 * self.config.members))
            self.training_loss = 1.0 / epoch
            time.sleep(self.config.seconds)
            if on_epoch is not None and on_epoch(epoch, self):
                break
        return self


class FragileConfig(ModelConfig):
    outcome: Literal["raises", "dies", "grows", "lasts", "nan", "good"] = "good"


class Fragile(Planted):
    name: ClassVar[str] = "fragile"
    Config: ClassVar[type[ModelConfig]] = FragileConfig

    def fit(self, data: TrainingData, *, seed: int = 0, on_epoch: ReportEpoch | None = None) -> Self:
        self.num_items = data.interactions.num_items
        if self.config.outcome == "raises":
            raise ValueError("a planted failure")
        if self.config.outcome == "dies":
            os._exit(1)
        if self.config.outcome == "grows":
            held = []
            for _ in range(80):  # 10 GB, unless somebody steps in
                held.append(np.ones(2**24))
                time.sleep(0.1)
        if self.config.outcome == "lasts":
            re.match(r"(a+)+$", "a" * 60 + "b")  # years, in one call that lets no other thread run
        return self

    def score(self, queries: QueryBatch) -> FloatArray:
        return super().score(queries) * np.float32("nan" if self.config.outcome == "nan" else 1.0)


def plant() -> None:
    # Imported here: a global of this program would travel to the worker as a copy.
    from training.models.registry import MODELS

    MODELS.update({"learner": Learner, "fragile": Fragile})


def rebuilt(*parts: Any) -> PlantedTask:
    plant()
    return PlantedTask(*parts)


@dataclass(frozen=True)
class PlantedTask(TrialTask):
    """Brings the planted models along when it is unpickled in a worker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuilt, (self.data, self.fold, self.metric, self.seed, self.patience, self.weights, self.data_sha256)


def main(folder: Path, uri: str, raw_study: dict[str, Any]) -> None:
    plant()
    study = Study.model_validate(raw_study)
    rows = [(f"u{u:03d}", f"i{(u + step) % 40:02d}", step) for u in range(200) for step in range(5)]
    interactions = from_frame(pd.DataFrame(rows, columns=["user_id", "item_id", "position"]))
    client = connect(uri)
    log = TrialLog(folder)
    head = log.head()
    if head is None:
        run = Run.create(client, experiment_id(client, folder.name), study.name, tags={})
        log.begin({"run_id": run.run_id})
    else:
        run = Run(client, head["run_id"])
        run.reopen()
    runs = TrialRuns(client, run, {"shortlist.seed": "0"}, lambda reason: sys.exit(reason))
    runs.end_abandoned({r.run_id: (r.run_status, r.reason) for r in log.records() if r.run_id})
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"})
    with tempfile.TemporaryDirectory(prefix="sl-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=scratch
        )
        finished = [Finished(r.source, r.number, r.params, r.value) for r in log.records()]
        weights = WeightStore(folder / "weights")
        task = PlantedTask(TrainingData(interactions), leave_one_out(interactions), study.metric, 0, None, weights, "planted")
        seen: list[tuple[int, int]] = []
        run_search(
            study,
            task,
            StudySearch(study, study.allocation(), finished),
            log,
            runs,
            budget=Budget(time.time(), study.minutes, 0.0),
            on_progress=lambda state: seen.append((state.ended, state.planned)),
        )
        ray.shutdown()
    run.end()
    (folder / "progress.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
