"""Odd datasets and sources that do not work out: a clear outcome each, and the study goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from training.bundle import fingerprint
from training.dataset import from_frame
from training.errors import ProtocolError, StudyError
from training.evaluate import Evaluation
from training.funnel import FunnelConfig, SourceConfig, fit_funnel
from training.models.base import TrainingData
from training.models.ease import Ease
from training.splits import leave_one_out, temporal
from training.study import Study, parse_study
from training.study_data import StudyData
from training.trial import TrialTask, run_trial
from training.trial_log import TrialRecord
from training.tune_study import chosen_configs, fitting_sources

CHEAP = ("popularity", "transition_knn", "ease", "ials")


def walks(users: int = 40, length: int = 6, items: int = 30, **columns: Any) -> pd.DataFrame:
    """Every user walks a ring of items; no times, no attributes."""
    rows = [(f"u{u:02d}", f"i{(u + step) % items:02d}", step) for u in range(users) for step in range(length)]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "position"]).assign(**columns)


def trial(frame: pd.DataFrame, model: str, **attributes: Any) -> Evaluation:
    interactions = from_frame(frame)
    data = TrainingData(interactions, item_attributes=attributes)
    return run_trial(TrialTask(data, leave_one_out(interactions), "ndcg@10", seed=0), model, {}, lambda _: None, threads=1)


@pytest.mark.parametrize("model", CHEAP)
def test_without_times_and_attributes_every_cheap_model_is_trained(model: str) -> None:
    found = trial(walks(), model)
    assert np.isfinite(found.metrics["ndcg@10"])
    assert len(found.per_user) == 40


def test_without_times_the_temporal_protocol_is_refused() -> None:
    with pytest.raises(ProtocolError, match="time"):
        temporal(from_frame(walks()), "test")


def test_one_item_leaves_nothing_to_recommend() -> None:
    with pytest.raises(ProtocolError, match="needs a user with 2 distinct items"):
        leave_one_out(from_frame(walks(items=1)), "test")


def test_users_of_length_one_are_learnt_from_and_counted_as_not_asked() -> None:
    frame = pd.concat([walks(), pd.DataFrame([(f"v{v}", "i05", 0) for v in range(7)], columns=["user_id", "item_id", "position"])])
    interactions = from_frame(frame)
    fold = leave_one_out(interactions, "test")
    assert len(fold.queries) == 40
    assert sum(fold.not_evaluated.values()) == 7
    assert fold.fit.num_users == 47
    with pytest.raises(ProtocolError, match="needs a user with 2 distinct items"):
        leave_one_out(from_frame(walks(length=1)), "test")


@pytest.mark.parametrize("model", CHEAP)
def test_an_item_in_every_history_is_recommended_to_nobody(model: str) -> None:
    everywhere = pd.DataFrame([(f"u{u:02d}", "all", -1) for u in range(40)], columns=["user_id", "item_id", "position"])
    interactions = from_frame(pd.concat([everywhere, walks()]))
    fold = leave_one_out(interactions)
    config = FunnelConfig(sources=(SourceConfig(model=model),))
    fitted = fit_funnel(config, TrainingData(interactions), fold, dataset="odd", rankers=[])
    lists = fitted.pipeline.recommend(fold.queries, 10, exclude_history=True)
    assert int(np.flatnonzero(interactions.item_ids == "all")[0]) not in lists.item_idx
    assert np.isfinite(fitted.evaluation.metrics["ndcg@10"])


def test_attributes_with_holes_are_learnt_from_and_without_any_popularity_answers() -> None:
    titles = np.array([f"red thing {i % 3}" if i % 2 else None for i in range(30)], dtype=object)
    prices = np.where(np.arange(30) % 3 == 0, np.nan, 1.0)
    assert np.isfinite(trial(walks(), "content", title=titles, price=prices).metrics["ndcg@10"])
    assert np.isfinite(trial(walks(), "content").metrics["ndcg@10"])  # by popularity alone
    assert np.isfinite(trial(walks(), "content", title=np.array([None] * 30, dtype=object)).metrics["ndcg@10"])


@pytest.fixture
def study() -> Study:
    sources = [{"model": "content", "optional": True}, {"model": "transition_knn"}, {"model": "sequential", "optional": True}]
    return parse_study({"name": "odd", "sources": sources}, "odd.toml")


def failed(model: str, reason: str) -> TrialRecord:
    return TrialRecord(model, model, 0, {}, {}, "failed", None, reason=reason)


def test_an_optional_source_that_fails_is_left_out_and_named(study: Study) -> None:
    told: list[str] = []
    knn = TrialRecord("transition_knn", "transition_knn", 0, {}, {"window": 4}, "finished", 0.2)
    found = chosen_configs(study, [failed("content", "NotTrainableError: no attributes"), knn], told.append, limited=True)
    assert found == {"transition_knn": {"window": 4}}
    assert told == [
        "source content left out: every trial of it failed, the last with: NotTrainableError: no attributes",
        "source sequential left out: there was no time for a trial of it",
    ]
    assert set(chosen_configs(study, [knn], told.append, limited=False)) == {"content", "transition_knn", "sequential"}


def test_a_source_that_must_be_there_is_an_error(study: Study) -> None:
    with pytest.raises(StudyError, match=r"every trial of source 'transition_knn' failed.*out of memory.*optional = true"):
        chosen_configs(study, [failed("transition_knn", "out of memory")], lambda _: None, limited=True)
    alone = study.model_copy(update={"sources": study.sources[:1]})
    with pytest.raises(StudyError, match="no source of this study could be trained"):
        chosen_configs(alone, [failed("content", "NotTrainableError: no attributes")], lambda _: None, limited=True)


def test_sources_that_do_not_fit_in_memory_are_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    interactions = from_frame(walks())
    trace = fingerprint(interactions, trained_on="all", includes_test_rows=True)
    found = StudyData(TrainingData(interactions), leave_one_out(interactions), trace, None)
    raw = {"name": "big", "sources": [{"model": "ease", "optional": True}, {"model": "transition_knn", "optional": True}]}
    big = parse_study(raw, "big.toml")
    monkeypatch.setattr(Ease, "training_bytes", classmethod(lambda cls, config, interactions: 2**50))
    told: list[str] = []
    assert [s.source for s in fitting_sources(big, found, told.append).sources] == ["transition_knn"]
    assert told[0].startswith("source ease left out: it needs 1048576.0 GB, and ")
    with pytest.raises(StudyError, match="no source of this study fits in memory"):
        fitting_sources(big.model_copy(update={"sources": big.sources[:1]}), replace(found), told.append)
