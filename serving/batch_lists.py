"""Ranked lists of many users at once: the same steps as a request's, in blocks.

Legend: `B` users of a block, `N` items, `k` list length.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.control_store import ControlStore
from serving.cached_list import CachedList
from serving.config import ServingConfig
from serving.item_changes import as_of_now
from serving.item_table import ItemTable
from serving.retriever import MAX_HISTORY
from training.interactions import IntArray
from training.pipeline import Pipeline

BLOCK_CELLS = 16_000_000
"""Scores of a block at once: 64 MB of float32."""
MAX_BLOCK = 1024


class BatchLists:
    """Lists of a version's own users. A class of its own, so that Ray Data can keep one a process.

    Args:
        config_json: ServingConfig as JSON.
        bundle_folder: the version's bundle.
        k: list length.
    """

    def __init__(self, config_json: str, bundle_folder: str, k: int) -> None:
        config = ServingConfig.model_validate_json(config_json)
        self.pipeline = Pipeline.load(Path(bundle_folder), expected_dataset=config.dataset)
        self._items = ItemTable.from_bundle(Path(bundle_folder))
        as_of_now(self._items, ControlStore(config.control_url).create(), config.dataset, None)
        self._k = min(k, len(self._items))

    @property
    def block_size(self) -> int:
        """Users of a block that keep memory bounded."""
        return max(1, min(MAX_BLOCK, BLOCK_CELLS // max(len(self._items), 1)))

    def __call__(self, batch: dict[str, npt.NDArray[np.generic]]) -> dict[str, npt.NDArray[np.object_]]:
        """Rows of users (`id` (B,) int) to `user_id` (B,) str and `list` (B,) bytes; users without a history are left out."""
        rows = np.asarray(batch["id"]).astype(np.int32)
        rows = rows[self.pipeline.histories.indptr[rows + 1] > self.pipeline.histories.indptr[rows]]
        user_ids, blobs = [], []
        for start in range(0, len(rows), self.block_size):
            block = rows[start : start + self.block_size]
            user_ids += self.pipeline.histories.user_ids[block].tolist()
            blobs += self.lists(block)
        return {"user_id": np.array(user_ids, dtype=object), "list": np.array([*blobs, None], dtype=object)[:-1]}

    def lists(self, user_rows: IntArray) -> list[bytes]:
        """Encoded lists of (B,) rows of users with histories."""
        now_us = time.time_ns() // 1000
        histories = self.pipeline.histories
        asked_us = np.full(len(user_rows), max(now_us, histories.end_us + 1), dtype=np.int64)
        queries = histories.queries(user_rows, asked_us)
        allowed = np.repeat(self._items.available[None, :], len(user_rows), axis=0)
        allowed[queries.row, queries.item_idx] = False
        short = queries.truncated(MAX_HISTORY)
        ranked = self.pipeline.rank(short, self.pipeline.retrieve(short, allowed, self._k, exclude_history=False), self._k)
        lengths = (ranked.item_idx >= 0).sum(axis=1)
        return [
            CachedList(
                item_idx=ranked.item_idx[b, :length],
                score=ranked.score[b, :length],
                source=ranked.source[b, :length].astype(np.uint8),
                computed_at_us=now_us,
                activity_at_us=histories.end_us,
                complete=bool(length < self._k),
            ).encode()
            for b, length in enumerate(lengths.tolist())
        ]
