"""One trial: what it reports, and that a model which diverges is an error and not a number."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import pytest

from training.dataset import from_frame
from training.errors import StudyError
from training.interactions import FloatArray
from training.models.base import ModelConfig, ReportEpoch, Retriever, TrainingData
from training.models.registry import MODELS
from training.queries import QueryBatch
from training.splits import leave_one_out
from training.trial import TrialDivergedError, TrialTask, run_trial, with_epochs
from training.weights import WeightStore


class LearnerConfig(ModelConfig):
    epochs: int = 4
    best: int = 99
    seconds: float = 0.2
    diverges_at: int = 99
    loss: float | None = None


class Learner(Retriever):
    """Knows the planted next item better with every epoch until `best`, then worse; from `diverges_at` on its scores are NaN."""

    name: ClassVar[str] = "learner"
    Config: ClassVar[type[ModelConfig]] = LearnerConfig
    epochs_parameter: ClassVar[str | None] = "epochs"
    config: LearnerConfig

    def fit(self, data: TrainingData, *, seed: int = 0, on_epoch: ReportEpoch | None = None) -> Self:
        self.num_items = data.interactions.num_items
        self.epoch = 0
        for epoch in range(1, self.config.epochs + 1):
            self.epoch = epoch
            self.training_loss = self.config.loss and self.config.loss / epoch
            time.sleep(self.config.seconds)
            if on_epoch is not None and on_epoch(epoch, self):
                break
        return self

    def score(self, queries: QueryBatch) -> FloatArray:
        last = queries.item_idx[queries.indptr[1:] - 1]
        distance = (np.arange(self.num_items)[None, :] - last[:, None] - 1) % self.num_items
        height = self.epoch if self.epoch <= self.config.best else 2 * self.config.best - self.epoch
        knows = np.arange(len(queries)) % min(self.config.epochs, self.config.best) < height
        scores = np.where(knows[:, None], -distance, distance).astype(np.float32)
        return scores * np.float32("nan") if self.epoch >= self.config.diverges_at else scores

    def save(self, folder: Path) -> None:
        (folder / "state.json").write_text(json.dumps([self.num_items, self.epoch]))

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        fitted = cls(config)
        fitted.num_items, fitted.epoch = json.loads((folder / "state.json").read_text())
        return fitted


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> TrialTask:
    """Every user walks a ring of 30 items in order: the next item is always the following one."""
    monkeypatch.setitem(MODELS, "learner", Learner)
    rows = [(f"u{u:02d}", f"i{(u + step) % 30:02d}", step) for u in range(40) for step in range(6)]
    interactions = from_frame(pd.DataFrame(rows, columns=["user_id", "item_id", "position"]))
    return TrialTask(TrainingData(interactions), leave_one_out(interactions), "ndcg@10", seed=0)


def run(
    task: TrialTask, model: str, *, end_at: float | None = None, refit_share: float = 0.0, **config: Any
) -> list[dict[str, float]]:
    reports: list[dict[str, float]] = []
    run_trial(task, model, config, reports.append, threads=1, end_at=end_at, refit_share=refit_share)
    return reports


def test_a_model_without_epochs_reports_once_with_everything(task: TrialTask) -> None:
    (report,) = run(task, "transition_knn")
    assert report["objective"] == report["ndcg@10"] == pytest.approx(1.0)
    assert report["final"] == 1
    assert "epoch" not in report
    assert report["peak_memory_mb"] > 10
    assert report["fit_seconds"] >= 0


def test_epochs_too_quick_to_be_measured_report_their_training_loss(task: TrialTask) -> None:
    reports = run(task, "learner", epochs=40, seconds=0.0, loss=2.0)
    losses = [r["curve.loss"] for r in reports if "curve.loss" in r]
    assert losses == pytest.approx([2.0 / epoch for epoch in range(1, 41)])
    measured = [r for r in reports if "objective" in r]
    assert len(measured) < 20 < len(reports)


def test_every_epoch_is_reported_and_the_last_again_in_full(task: TrialTask) -> None:
    # An epoch takes longer than a measurement of 40 users, on a busy machine too.
    reports = run(task, "learner", epochs=4, seconds=1.0)
    assert [r["epoch"] for r in reports] == [1, 2, 3, 4, 4]
    assert [r["objective"] for r in reports] == sorted(r["objective"] for r in reports)
    assert reports[-1]["objective"] == pytest.approx(1.0)
    assert [("final" in r) for r in reports] == [False] * 4 + [True]


def test_measuring_takes_half_of_the_time_at_most(task: TrialTask) -> None:
    reports = run(task, "learner", epochs=40, seconds=0.0)
    assert reports[0]["epoch"] == 1
    assert reports[-1]["epoch"] == 40
    assert len(reports) < 20


def test_scores_that_are_not_finite_end_the_trial(task: TrialTask) -> None:
    with pytest.raises(TrialDivergedError, match=r"learner diverged: .* scores are not finite"):
        run(task, "learner", diverges_at=3)


def test_what_counts_is_the_best_epoch(task: TrialTask, tmp_path: Path) -> None:
    keeping = replace(task, weights=WeightStore(tmp_path), data_sha256="planted")
    reports = run(keeping, "learner", epochs=8, best=5, seconds=0.5)
    assert reports[-1]["epoch"] == 5
    assert reports[-1]["epochs_run"] == 8
    assert reports[-1]["objective"] == pytest.approx(max(r["objective"] for r in reports))
    assert "curve.ndcg@10" in reports[0]
    assert "curve.ndcg@10" not in reports[-1]
    config = with_epochs("learner", {"epochs": 8, "best": 5, "seconds": 0.5}, reports[-1]["epoch"])
    assert config == {"epochs": 5, "best": 5, "seconds": 0.5}
    found = WeightStore(tmp_path).find("learner", config, "planted", 0)
    assert isinstance(found, Learner)
    assert found.epoch == 5
    assert WeightStore(tmp_path).find("learner", config, "other rows", 0) is None
    assert WeightStore(tmp_path).find("learner", config, "planted", 1) is None
    assert WeightStore(tmp_path).find("learner", {**config, "epochs": 6}, "planted", 0) is None


def test_a_fit_stops_after_epochs_without_a_gain(task: TrialTask) -> None:
    reports = run(replace(task, patience=2), "learner", epochs=50, best=4)
    # An epoch is not measured where the last measurement took longer than an epoch, as on a busy machine.
    assert reports[-1]["epoch"] in (3, 4, 5)
    assert reports[-1]["epochs_run"] == reports[-1]["epoch"] + 2


def test_a_fit_stops_where_its_refit_would_be_late(task: TrialTask) -> None:
    alone = run(task, "learner", epochs=50, end_at=time.time() + 3.0)[-1]["epochs_run"]
    with_refit = run(task, "learner", epochs=50, end_at=time.time() + 3.0, refit_share=3.0)[-1]["epochs_run"]
    assert 1 <= with_refit < alone < 50


def test_a_trial_that_fails_leaves_no_weights(task: TrialTask, tmp_path: Path) -> None:
    with pytest.raises(TrialDivergedError):
        run(replace(task, weights=WeightStore(tmp_path)), "learner", diverges_at=3)
    assert list(tmp_path.iterdir()) == []


def test_fast_fits_are_not_kept(task: TrialTask, tmp_path: Path) -> None:
    run(replace(task, weights=WeightStore(tmp_path)), "transition_knn")
    assert list(tmp_path.iterdir()) == []


def test_a_fit_of_the_best_epoch_is_what_the_search_kept(task: TrialTask, tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    report = run(replace(task, weights=store, data_sha256="planted"), "ials", iterations=8, factors=4, alpha=40.0)[-1]
    config = with_epochs("ials", {"iterations": 8, "factors": 4, "alpha": 40.0}, report["epoch"])
    kept = store.find("ials", config, "planted", 0)
    assert kept is not None
    fitted = MODELS["ials"](MODELS["ials"].Config(**config)).fit(TrainingData(task.fold.fit), seed=0)
    np.testing.assert_allclose(kept.score(task.fold.queries), fitted.score(task.fold.queries), atol=1e-5)


def test_an_unknown_parameter_is_named(task: TrialTask) -> None:
    with pytest.raises(StudyError, match="window_size"):
        run(task, "transition_knn", window_size=3)


def test_a_dense_model_announces_its_matrix(task: TrialTask) -> None:
    sparse = MODELS["transition_knn"].training_bytes(MODELS["transition_knn"].Config(), task.fold.fit)
    dense = MODELS["ease"].training_bytes(MODELS["ease"].Config(), task.fold.fit)
    assert dense - sparse == int(1.2 * 30 * 30 * 8)


@pytest.mark.parametrize("model", ["popularity", "transition_knn", "ease", "ials"])
def test_choosing_does_not_read_anybody_s_last_item(model: str, rng: np.random.Generator) -> None:
    frame = pd.DataFrame(
        [(f"u{u:02d}", f"i{item:02d}", place) for u in range(60) for place, item in enumerate(rng.permutation(40)[:8])],
        columns=["user_id", "item_id", "position"],
    )
    tampered = frame.copy()
    last = tampered["position"] == 7
    # Another item that the user has not taken; those left over keep the catalogue the same on both sides.
    for row in tampered.index[last]:
        taken = set(tampered.loc[tampered["user_id"] == tampered.loc[row, "user_id"], "item_id"])
        tampered.loc[row, "item_id"] = rng.choice(sorted(set(frame["item_id"]) - taken))
    catalogue = np.array(sorted(frame["item_id"].unique()), dtype=object)
    found = []
    for table in (frame, tampered):
        interactions = from_frame(table, item_ids=catalogue)
        reports = run(TrialTask(TrainingData(interactions), leave_one_out(interactions), "ndcg@10", seed=0), model)
        found.append({k: v for k, v in reports[-1].items() if "seconds" not in k and k != "peak_memory_mb"})
    assert found[0] == found[1]
