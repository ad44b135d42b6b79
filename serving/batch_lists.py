"""Ranked lists of many users at once: the same steps as a request's, in blocks.

Legend: `B` users of a block, `N` items, `k` list length.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.bus import SERVED_FEATURES
from features.control_store import ControlStore
from features.errors import BusFullError, BusUnavailableError
from features.event_codec import to_microseconds
from features.redis_bus import RedisStreamBus
from features.served import is_sampled
from serving.cache import user_unit
from serving.cached_list import CachedList
from serving.config import ServingConfig
from serving.feature_rows import feature_rows
from serving.item_changes import as_of_now
from serving.item_table import ItemTable
from serving.retriever import MAX_HISTORY
from serving.schemas import NO_SELECTION
from training.candidates import CandidateSet, RankedLists
from training.interactions import IntArray
from training.pipeline import Pipeline
from training.queries import QueryBatch

_log = logging.getLogger("shortlist.serving")

BLOCK_CELLS = 16_000_000
"""Scores of a block at once: 64 MB of float32."""
MAX_BLOCK = 1024


class BatchLists:
    """Lists of a version's own users. A class of its own, so that Ray Data can keep one a process.

    Args:
        config_json: ServingConfig as JSON.
        bundle_folder: the version's bundle.
        k: list length.
        version: its number, under which the feature values of sampled users are logged; None logs nothing.
    """

    def __init__(self, config_json: str, bundle_folder: str, k: int, version: str | None = None) -> None:
        self._config = config = ServingConfig.model_validate_json(config_json)
        self.pipeline = Pipeline.load(Path(bundle_folder), expected_dataset=config.dataset)
        self._items = ItemTable.from_bundle(Path(bundle_folder))
        as_of_now(self._items, ControlStore(config.control_url).create(), config.dataset, None)
        # A list is stale from the first event after this on; a history that ends in the future would keep it fresh for ever.
        known_until_us = None if self.pipeline.manifest is None else to_microseconds(self.pipeline.manifest.known_until)
        end_us = self.pipeline.histories.end_us
        self._activity_at_us = end_us if known_until_us is None else min(end_us, known_until_us)
        self._k = min(k, len(self._items))
        self._version = version
        self._bus: RedisStreamBus | None = None
        if version is not None and config.feature_log_rate > 0:
            self._bus = RedisStreamBus(config.bus_url, config.dataset, site=config.site)

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
        # Each asked after the own last entry alone: one row dated in the future must not make everybody's last week old.
        asked_us = np.maximum(histories.time_us[histories.indptr[user_rows + 1] - 1] + 1, now_us).astype(np.int64)
        queries = histories.queries(user_rows, asked_us)
        short = queries.truncated(MAX_HISTORY)
        allowed = self._items.trained_mask(NO_SELECTION)
        # One mask for all of them, as requests have it: a mask a user would have every item looked at and scored.
        models_see_all = len(short.item_idx) == len(queries.item_idx)
        if not models_see_all:
            allowed = np.repeat(allowed[None, :], len(user_rows), axis=0)
            allowed[queries.row, queries.item_idx] = False
        candidates = self.pipeline.retrieve(short, allowed, self._k, exclude_history=models_see_all)
        ranked = self.pipeline.rank(short, candidates, self._k)
        self._log(user_rows, short, candidates, ranked, now_us)
        lengths = (ranked.item_idx >= 0).sum(axis=1)
        return [
            CachedList(
                item_idx=ranked.item_idx[b, :length],
                score=ranked.score[b, :length],
                source=ranked.source[b, :length].astype(np.uint8),
                computed_at_us=now_us,
                activity_at_us=self._activity_at_us,
                complete=bool(length < self._k),
            ).encode()
            for b, length in enumerate(lengths.tolist())
        ]

    def _log(self, user_rows: IntArray, queries: QueryBatch, candidates: CandidateSet, ranked: RankedLists, now_us: int) -> None:
        """Put the feature values of sampled users' lists on the bus; a bus that is away costs a warning, not the lists."""
        if self._bus is None or self._version is None:
            return
        users = self.pipeline.histories.user_ids[user_rows].tolist()
        rate = self._config.feature_log_rate
        chosen = np.array([b for b, user in enumerate(users) if is_sampled(user_unit(user), rate)], dtype=np.int64)
        if not len(chosen):
            return
        lists = RankedLists(ranked.sources, ranked.item_idx[chosen], ranked.score[chosen], ranked.source[chosen])
        units = [(user_unit(users[b]), users[b]) for b in chosen.tolist()]
        of_chosen = (queries.take(chosen), candidates.take(chosen), lists)
        rows = feature_rows(self._config, self.pipeline, self._version, units, *of_chosen, now_us)
        try:
            self._bus.publish(SERVED_FEATURES, [row.encode() for row in rows], [row.key for row in rows])
        except (BusUnavailableError, BusFullError) as error:
            _log.warning("feature values of %d precomputed lists are not logged: %s", len(rows), error)
