"""EASE's dense fit against a scipy inverse of the same size, and its local solve, in processor time of one run."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import linalg

from training.dataset import from_frame
from training.models.base import TrainingData
from training.models.ease import DOUBLE_UP_TO, Ease, EaseConfig


def measure_ease(items: int, rounds: int) -> dict[str, float]:
    """Seconds of processor time, the best of `rounds`, on a simulated world of `items` items with ten interactions each."""
    rng = np.random.default_rng(0)
    events = 10 * items
    favourite = np.concatenate([np.arange(items), (items * rng.random(events - items) ** 2).astype(np.int64)])
    frame = pd.DataFrame({"user_id": rng.integers(0, max(items // 2, 2), events), "item_id": favourite})
    data = TrainingData(from_frame(frame.drop_duplicates()))
    matrix = data.interactions.to_csr()
    gram = (matrix.T @ matrix).toarray().astype(np.float64 if items <= DOUBLE_UP_TO else np.float32)
    gram[np.diag_indices(items)] += 200.0
    found = {
        "scipy_inv_s": min(_seconds(lambda: linalg.inv(gram)) for _ in range(rounds)),
        "scipy_inv_pos_s": min(_seconds(lambda: linalg.inv(gram, assume_a="pos")) for _ in range(rounds)),
        "dense_fit_s": min(_seconds(lambda: Ease(EaseConfig(dense_up_to=60_000)).fit(data)) for _ in range(rounds)),
        "local_fit_s": min(_seconds(lambda: Ease(EaseConfig(dense_up_to=0)).fit(data)) for _ in range(rounds)),
    }
    return {name: round(value, 3) for name, value in found.items()} | {
        "fit_over_inv": round(found["dense_fit_s"] / found["scipy_inv_s"], 3),
        "fit_over_inv_pos": round(found["dense_fit_s"] / found["scipy_inv_pos_s"], 3),
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
