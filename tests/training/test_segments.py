"""Accuracy in parts: groups of items by hand, and an evaluation whose parts are known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from training.candidates import Retrieved
from training.dataset import from_frame
from training.evaluate import evaluate
from training.queries import QueryBatch
from training.segments import GROUPS, item_groups
from training.splits import given


def test_items_are_grouped_by_their_share_of_the_interactions() -> None:
    groups = [GROUPS[g] for g in item_groups(np.array([50, 20, 20, 5, 5, 0]))]
    assert groups == ["items_head", "items_mid", "items_mid", "items_tail", "items_tail", "items_new"]
    assert {GROUPS[g] for g in item_groups(np.array([3, 3, 3]))} == {"items_head"}
    assert {GROUPS[g] for g in item_groups(np.zeros(3, dtype=np.int64))} == {"items_new"}


@pytest.fixture
def rows() -> pd.DataFrame:
    """Ten users who took `pop`; `a` took six items more. Tests: `a` and `b` one popular and one rare item each, `c` a new one."""
    fit = [(f"u{u}", "pop", "train") for u in range(60)] + [(name, "pop", "train") for name in "abc"]
    fit += [(f"u{u}", "often", "train") for u in range(40)] + [("u2", "rare", "train")]
    fit += [("a", f"f{i}", "train") for i in range(6)]
    test = [("a", "often", "test"), ("a", "rare", "test"), ("b", "rare", "test"), ("c", "never", "test")]
    return pd.DataFrame(fit + test, columns=["user_id", "item_id", "split"])


def test_an_evaluation_in_parts(rows: pd.DataFrame) -> None:
    fold = given(from_frame(rows), "test")
    items = {name: i for i, name in enumerate(fold.fit.item_ids)}

    def recommend(queries: QueryBatch, k: int) -> Retrieved:
        ranked = [items["often"], items["rare"], *(i for name, i in items.items() if name not in ("often", "rare", "never"))]
        item_idx = np.full((len(queries), k), -1, dtype=np.int32)
        item_idx[:, : len(ranked)] = ranked
        score = np.where(item_idx >= 0, -np.arange(k), -np.inf).astype(np.float32)
        return Retrieved(item_idx, score)

    found = evaluate(recommend, fold).segments
    assert found["items_mid"].users == 1  # `often`, of user a
    assert found["items_mid"].metrics["ndcg@10"] == pytest.approx(1.0)
    assert found["items_tail"].users == 2  # `rare`, second behind `often`
    assert found["items_tail"].metrics["ndcg@10"] == pytest.approx(1 / math.log2(3))
    assert found["items_new"].users == 1
    assert found["items_new"].metrics == {"ndcg@10": 0.0, "hr@10": 0.0, "recall@10": 0.0}
    assert "items_head" not in found
    assert found["history_0_5"].users == 2
    assert found["history_0_5"].metrics["hr@10"] == pytest.approx(0.5)
    assert found["history_6_20"].users == 1
    assert found["history_6_20"].metrics["recall@10"] == pytest.approx(1.0)
    assert evaluate(recommend, fold, ks=(5,)).segments == {}
