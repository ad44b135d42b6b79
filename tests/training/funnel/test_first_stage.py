"""Fitting the first stages of a funnel: what a trial has fitted is taken from where it was kept, as good as fitted anew."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from training.dataset import from_frame
from training.first_stage import fit_sources
from training.funnel_config import SourceConfig
from training.index import INDEX_FROM_ITEMS
from training.models.base import TrainingData
from training.models.ials import Ials
from training.splits import leave_one_out
from training.trial import TrialTask, run_trial, with_epochs
from training.weights import WeightStore, data_sha256


def test_a_source_kept_at_its_best_epoch_is_found_with_an_index(tmp_path: Path) -> None:
    item = pd.Series(range(INDEX_FROM_ITEMS + 10_000))
    events = pd.DataFrame({"user_id": "u" + (item // 50).astype(str), "item_id": "i" + item.astype(str), "position": item % 50})
    again = events.assign(user_id="v" + (item // 50).astype(str))
    fold = leave_one_out(from_frame(pd.concat([events, again], ignore_index=True)))
    data, store, config = TrainingData(fold.fit), WeightStore(tmp_path), {"factors": 4, "iterations": 2}
    task = TrialTask(data, fold, "ndcg@10", 0, weights=store, data_sha256=data_sha256(data))
    reports: list[dict[str, float]] = []
    run_trial(task, "ials", config, reports.append)
    best = SourceConfig(model="ials", quota=10, config=with_epochs("ials", config, reports[-1]["epoch"]))
    said: list[str] = []
    (source,) = fit_sources([best], data, seed=0, weights=store, progress=said.append)
    assert said == []  # nothing was fitted
    assert isinstance(source.retriever, Ials)
    assert source.retriever.index is not None
