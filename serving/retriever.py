"""The retrieval half of a version: a user's history as of now, the filters as a mask, candidates; and its Serve deployment.

`RetrieverStage` is plain Python and holds the logic. `Retriever` is the deployment around it: with a ranker in its own process
it is the fused graph, with a handle to `Ranker` replicas the separate one; the seam is `CandidateSet` both times.

Legend: `N` items, `L` entries of a history.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.request_columns import SECOND_US
from features.control_store import ControlStore
from features.errors import FeaturesError
from features.events import OTHER_ACTION_CODE
from serving.audit import AuditLog
from serving.cached_list import decode_list
from serving.config import ServingConfig
from serving.explained_list import ExplainedList
from serving.feature_log import FeatureLog
from serving.item_changes import ItemChanges, as_of_now
from serving.item_table import ItemTable
from serving.known_histories import KnownHistories
from serving.logs import log_to_file
from serving.messages import ComputeRequest
from serving.online_users import OnlineUser, OnlineUsers
from serving.process import give_back_memory, shorten_pauses
from serving.ranker import RankerStage
from serving.recent_activity import RecentActivity, RecentEvent, decode_activity
from serving.request_id import begin
from serving.schemas import Seen
from serving.version_lists import anonymous_answer, encode_answer, joined
from training.candidates import CandidateSet, RankedLists
from training.explain import explained
from training.interactions import BoolArray, IntArray, LongArray
from training.pipeline import Pipeline
from training.queries import QueryBatch, queries_from_histories
from training.similar import similar_items

MAX_HISTORY = 5_000
"""Newest entries of a history that models see: no user of real data reaches it, so that answers equal the evaluation's."""
FIRST_REAL_TIME_US = 10**12
"""Times below (the first days of 1970) are places in an order: the dataset has no times."""
_log = logging.getLogger("shortlist.serving")


class RetrieverStage:
    """Histories, filters and candidates of one version.

    Args:
        pipeline: the loaded bundle.
        items: its items, whose availability the owner keeps current.
        folder: of the bundle, whose users are read again when an erasure has changed them; None for a pipeline in memory.
    """

    def __init__(self, pipeline: Pipeline, items: ItemTable, folder: Path | None = None) -> None:
        self.pipeline = pipeline
        self.items = items
        self._histories = KnownHistories(pipeline.histories, folder)

    def query(
        self, request: ComputeRequest, activity: RecentActivity, now_us: int, online: OnlineUser | None = None
    ) -> tuple[QueryBatch, IntArray]:
        """The user's history as of now, and the items that are left out of the answer for what the user did with them.

        History as of training, then the recent events that are not in it (from the online store and from the gateway, which knows
        those of a moment ago), then the caller's own items.

        Returns:
            One query, and (R,) int32 rows of items that the user rejected, or met so that the request leaves them out.
        """
        histories = self._histories.current()
        user = histories.users.rows([request.user_id])[0] if request.user_id is not None else np.int32(-1)
        known = slice(int(histories.indptr[user]), int(histories.indptr[user + 1])) if user >= 0 else slice(0, 0)
        events = (*(online.events if online is not None else ()), *activity.events)
        item_idx, time_us = self._with_recent(histories.item_idx[known], histories.time_us[known], events)
        if request.recent_items:
            own = self._trained(self.items.rows(request.recent_items))
            start = max(now_us, int(time_us[-1]) + 1 if len(time_us) else 0)
            item_idx = np.concatenate([item_idx, own]).astype(np.int32)
            time_us = np.concatenate([time_us, start + np.arange(len(own))]).astype(np.int64)
        asked_us = max(now_us, int(time_us[-1]) + 1 if len(time_us) else 0)
        query = queries_from_histories(
            [item_idx], times_us=[time_us], request_time_us=np.array([asked_us]), user_idx=np.array([user], dtype=np.int32)
        )
        if online is not None and not request.recent_items and _is_current(online, activity, len(item_idx)):
            names = self.pipeline.user_feature_names
            query = replace(query, user_features={name: online.features[name] for name in names})
        left_out = [event.item_id for event in activity.events if not event.positive]
        if request.seen is None:
            return query, self._trained(self.items.rows(left_out))
        if request.seen.actions is None:
            return query, np.concatenate([self._trained(self.items.rows(left_out)), _met(query, request.seen)])
        codes, meant = histories.action[known], np.array([OTHER_ACTION_CODE, *request.seen.actions])
        met = np.isin(codes, meant) & (histories.time_us[known] >= request.seen.since_us(asked_us))
        left_out += [one.item_id for one in events if request.seen.counts(one.action, one.time_us, asked_us)]
        left_out += request.recent_items
        return query, np.concatenate([histories.item_idx[known][met], self._trained(self.items.rows(left_out))])

    def retrieve(self, request: ComputeRequest, query: QueryBatch, left_out: IntArray) -> CandidateSet:
        """Candidates that the request's filters, availability, exclusions and the user's own activity leave."""
        allowed = self._allowed(request, left_out)
        return self.pipeline.retrieve(query.truncated(MAX_HISTORY), allowed, request.k, exclude_history=False)

    def similar(self, request: ComputeRequest) -> RankedLists:
        """Items like `request.similar_to`; none where the version does not know it."""
        allowed = self.items.trained_mask(request.selection)
        return similar_items(self.pipeline, self.items.row(request.similar_to or ""), request.k, allowed)

    def explained(self, request: ComputeRequest, query: QueryBatch, left_out: IntArray, lists: RankedLists, blob: bytes) -> bytes:
        """A list with where its scores come from (`serving.explained_list`)."""
        candidates = self.retrieve(request, query, left_out)
        keep = np.isin(lists.item_idx[0], candidates.item_idx[0]) & (lists.item_idx[0] >= 0)
        found = explained(self.pipeline, query.truncated(MAX_HISTORY), candidates, lists.item_idx[0][keep])
        because = [None if row < 0 else str(self.items.item_ids[row]) for row in found.because.tolist()]
        ranked = decode_list(blob)
        assert ranked is not None
        kept = replace(
            ranked,
            item_idx=lists.item_idx[0][keep],
            score=found.parts.sum(axis=1),
            source=lists.source[0][keep].astype(np.uint8),
        )
        return ExplainedList(kept, found.names, found.parts, because).encode()

    def _allowed(self, request: ComputeRequest, left_out: IntArray) -> BoolArray:
        """The mask of what may be retrieved: the selection's own, read-only and known to indexes, unless it has to be changed."""
        allowed = self.items.trained_mask(request.selection)
        if request.candidates is not None:
            wanted = np.zeros(len(allowed), dtype=bool)
            wanted[self._trained(self.items.rows(request.candidates))] = True
            allowed = allowed & wanted
        left_out = np.concatenate([left_out, self._trained(self.items.rows(request.exclude))])
        if len(left_out):
            allowed = allowed.copy()
            allowed[left_out] = False
        return allowed

    def _trained(self, rows: IntArray) -> IntArray:
        """Those of the rows that the version's models know."""
        return rows[rows < self.items.num_trained]

    def _with_recent(self, item_idx: IntArray, time_us: LongArray, events: Sequence[RecentEvent]) -> tuple[IntArray, LongArray]:
        """A history with the recent positive events that it lacks, in the order of time. Unknown items are left out."""
        # An event is known by its second and item: online features say no more of its time. Later in `events` is more exact.
        recent: dict[tuple[int, int], int] = {}
        for event in events:
            row = self.items.row(event.item_id)
            if event.positive and 0 <= row < self.items.num_trained:
                recent[event.time_us // SECOND_US, row] = event.time_us
        repeated = self._tail(item_idx, time_us, recent)
        fresh = sorted((at, one[1]) for one, at in recent.items() if one not in repeated)
        if not fresh:
            return np.asarray(item_idx, dtype=np.int32), np.asarray(time_us, dtype=np.int64)
        times = np.concatenate([time_us, [one[0] for one in fresh]]).astype(np.int64)
        items = np.concatenate([item_idx, [one[1] for one in fresh]]).astype(np.int32)
        order = np.argsort(times, kind="stable")
        return items[order], times[order]

    @staticmethod
    def _tail(item_idx: IntArray, time_us: LongArray, recent: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
        """Seconds and items of a history that recent events may repeat: those no older than the oldest of them."""
        if not recent:
            return set()
        if len(time_us) and time_us[-1] < FIRST_REAL_TIME_US:  # an order and no times: told apart by item alone
            known = set(item_idx.tolist())
            return {one for one in recent if one[1] in known}
        start = int(np.searchsorted(time_us, min(one[0] for one in recent) * SECOND_US))
        return set(zip((time_us[start:] // SECOND_US).tolist(), item_idx[start:].tolist(), strict=True))


def _met(query: QueryBatch, seen: Seen) -> IntArray:
    """Rows of the history's items that are left out, by whatever action they were met."""
    return query.item_idx[query.time_us >= seen.since_us(int(query.request_time_us[0]))]


def _is_current(online: OnlineUser, activity: RecentActivity, num_history: int) -> bool:
    """Whether online features say no less than the history: else the ranker takes them from the history."""
    newest_us = max((event.time_us for event in activity.events if event.positive), default=0)
    return online.num_events >= num_history and online.last_event_us >= newest_us


def _follow_items(changes: ItemChanges, stage: RetrieverStage, every_s: float) -> None:
    """Keep candidates from being spent on items that the gateway would take out of the answer anyway."""
    while True:
        time.sleep(every_s)
        try:
            (stage.items,) = changes.apply([stage.items])
        except FeaturesError as error:
            _log.warning("availability not refreshed, the gateway's own still holds: %s", error)


class Retriever:
    """Serve deployment: one version's entry.

    Args:
        config_json: ServingConfig as JSON.
        bundle_folder: the version's bundle.
        ranker: handle of the ranker deployment; None ranks in this process.
    """

    def __init__(self, config_json: str, bundle_folder: str, ranker: Any = None) -> None:
        config = ServingConfig.model_validate_json(config_json)
        shorten_pauses()
        log_to_file(config, f"retriever-{os.getpid()}")
        folder = Path(bundle_folder)
        pipeline = Pipeline.load(folder, expected_dataset=config.dataset)
        items = ItemTable.from_arrow(pipeline.items, np.array(pipeline.by_popularity))
        pipeline = pipeline.without_attributes()
        store = ControlStore(config.control_url).create()
        changes = ItemChanges(AuditLog(store, config.dataset))
        manifest = pipeline.manifest
        read_at = None if manifest is None else manifest.fingerprint.as_of or manifest.created_at
        self._stage = RetrieverStage(pipeline, as_of_now(items, store, config.dataset, read_at), folder)
        follow = threading.Thread(target=_follow_items, args=(changes, self._stage, config.reread_s), name="items", daemon=True)
        follow.start()
        self._online = OnlineUsers(config, with_ranking=bool(pipeline.user_feature_names))
        self._online.start()
        self._feature_log = FeatureLog(config, pipeline)
        self._remote_ranker = ranker
        self._local_ranker = RankerStage(pipeline) if ranker is None else None
        self._answers, self._seconds = 0, 0.0
        give_back_memory()

    @property
    def items(self) -> ItemTable:
        """The version's items as of now."""
        return self._stage.items

    async def compute(self, request: ComputeRequest) -> bytes:
        """One list as bytes (`serving.cached_list`)."""
        started = time.perf_counter()
        begin(None if request.request_id is None else request.request_id.encode())
        blob = await self._compute(request)
        self._answers, self._seconds = self._answers + 1, self._seconds + time.perf_counter() - started
        return blob

    async def timing(self) -> tuple[int, float]:
        """Lists computed by this replica so far, and the seconds between their requests' coming and the lists' being there."""
        return self._answers, self._seconds

    async def _compute(self, request: ComputeRequest) -> bytes:
        now_us = time.time_ns() // 1000
        activity = decode_activity(request.activity)
        if request.similar_to is not None:
            return encode_answer(self._stage.similar(request), activity, now_us, request.k)
        online = await self._online.read(request.user_id) if request.user_id is not None else None
        query, left_out = self._stage.query(request, activity, now_us, online)
        if len(query.item_idx) == 0 and request.candidates is None:
            return anonymous_answer(activity, now_us)
        lists = None
        for step in request.selection.steps:
            found = await self._ranked(replace(request, selection=step), query, left_out, now_us)
            lists = found if lists is None else joined(lists, found)
            if int((lists.item_idx[0] >= 0).sum()) >= max(request.top_k, 1):
                break
        assert lists is not None
        if request.explain:
            return self._stage.explained(request, query, left_out, lists, encode_answer(lists, activity, now_us, request.k))
        return encode_answer(lists, activity, now_us, request.k)

    async def _ranked(self, request: ComputeRequest, query: QueryBatch, left_out: IntArray, now_us: int) -> RankedLists:
        candidates = self._stage.retrieve(request, query, left_out)
        query = query.truncated(MAX_HISTORY)
        if self._local_ranker is not None:
            lists = self._local_ranker.rank(query, candidates, request.k)
        else:
            lists = await self._remote_ranker.rank.remote(query, candidates, request.k)
        if request.log_as is not None:
            self._feature_log.note(request, query, candidates, lists, now_us)
        return lists
