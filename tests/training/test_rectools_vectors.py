"""Every accuracy metric equals RecTools' on stored lists; `tests/benchmarks/rectools_agreement.py` compares on real data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training.metrics import METRICS, pessimistic_hits

VECTORS = json.loads(Path(__file__).with_name("rectools_vectors.json").read_text())


@pytest.mark.parametrize("name", sorted(VECTORS["per_user"]))
def test_equals_rectools(name: str) -> None:
    metric, _, k = name.partition("@")
    item_idx = np.array(VECTORS["lists"], dtype=np.int32)
    score = np.broadcast_to(-np.arange(item_idx.shape[1], dtype=np.float32), item_idx.shape)
    counts = np.array([len(targets) for targets in VECTORS["targets"]])
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    targets = np.concatenate(VECTORS["targets"]).astype(np.int32)
    hits = pessimistic_hits(item_idx, score, indptr, targets, VECTORS["num_items"], complete=False)
    np.testing.assert_allclose(METRICS[metric](hits, counts, int(k)), VECTORS["per_user"][name], atol=1e-12)
