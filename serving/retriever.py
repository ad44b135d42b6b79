"""The retrieval half of a version: a user's history as of now, the filters as a mask, candidates.

Legend: `N` items, `L` entries of a history.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from feature_repo.request_columns import SECOND_US
from features.events import OTHER_ACTION_CODE
from serving.cached_list import decode_list
from serving.explained_list import ExplainedList
from serving.item_table import ItemTable
from serving.known_histories import KnownHistories
from serving.messages import ComputeRequest
from serving.online_users import OnlineUser
from serving.recent_activity import RecentActivity, RecentEvent
from serving.schemas import ALL_SEEN, Seen, Selection
from training.candidates import CandidateSet, RankedLists
from training.excluded_items import ExcludedItems
from training.explain import explained
from training.interactions import BoolArray, IntArray, LongArray
from training.pipeline import Pipeline
from training.queries import QueryBatch, queries_from_histories
from training.similar import similar_items

MAX_HISTORY = 5_000
"""Newest entries of a history that models see: no user of real data reaches it, so that answers equal the evaluation's."""
FEW_LEFT_OUT = 256
"""Items that a request leaves out beside its history up to which the models are told of them; more become a mask of its own, with
which it shares no batch."""
FIRST_REAL_TIME_US = 10**12
"""Times below (the first days of 1970) are places in an order: the dataset has no times."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What is left out of an answer for what its user did, or because the request says so.

    Args:
        history: all items of the query's history, which the models leave out themselves: the mask stays the one of all users.
        rows: (R,) int32 items beside that are more than a query can say (`FEW_LEFT_OUT`).
    """

    history: bool
    rows: IntArray


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
    ) -> tuple[QueryBatch, LeftOut]:
        """The user's history as of now, and what is left out of the answer.

        History as of training, then the recent events that are not in it (from the online store and from the gateway, which knows
        those of a moment ago), then the caller's own items.

        Returns:
            One query, which says itself what few items beside its history are left out, and what else is.
        """
        query, left_out = self._query(request, activity, now_us, online)
        gone = np.concatenate([left_out.rows, self._trained(self.items.rows(request.exclude))])
        if len(gone) > FEW_LEFT_OUT:
            return query, replace(left_out, rows=gone)
        out = ExcludedItems(np.zeros(len(gone), dtype=np.int32), gone.astype(np.int32))
        return replace(query, left_out=out), replace(left_out, rows=gone[:0])

    def _query(
        self, request: ComputeRequest, activity: RecentActivity, now_us: int, online: OnlineUser | None
    ) -> tuple[QueryBatch, LeftOut]:
        """The query, and all that is left out for what the user did: rejected, or met so that it is not shown again."""
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
        rejected = self._trained(self.items.rows([event.item_id for event in activity.events if not event.positive]))
        if histories.rejected is not None:
            rejected = np.concatenate([rejected, histories.rejected.of_user(int(user))])
        if request.seen is None:
            return query, LeftOut(False, rejected)
        if request.seen == ALL_SEEN and len(item_idx) <= MAX_HISTORY:
            return query, LeftOut(True, rejected)
        if request.seen.actions is None:
            return query, LeftOut(False, np.concatenate([rejected, _met(query, request.seen)]))
        codes, meant = histories.action[known], np.array([OTHER_ACTION_CODE, *request.seen.actions])
        met = np.isin(codes, meant) & (histories.time_us[known] >= request.seen.since_us(asked_us))
        left_out = [one.item_id for one in events if request.seen.counts(one.action, one.time_us, asked_us)]
        left_out += request.recent_items
        of_history, recent = histories.item_idx[known][met], self._trained(self.items.rows(left_out))
        return query, LeftOut(False, np.concatenate([rejected, of_history, recent]))

    def retrieve(self, request: ComputeRequest, query: QueryBatch, left_out: LeftOut) -> CandidateSet:
        """Candidates that the request's filters, availability, exclusions and the user's own activity leave."""
        allowed = self.allowed(request, left_out)
        return self.pipeline.retrieve(query.truncated(MAX_HISTORY), allowed, request.k, exclude_history=left_out.history)

    def similar(self, request: ComputeRequest) -> RankedLists:
        """Items like `request.similar_to`; none where the version does not know it."""
        allowed = self.items.trained_mask(request.selection)
        return similar_items(self.pipeline, self.items.row(request.similar_to or ""), request.k, allowed)

    def explained(
        self,
        request: ComputeRequest,
        query: QueryBatch,
        left_out: LeftOut,
        found: Sequence[tuple[Selection, IntArray]],
        blob: bytes,
    ) -> bytes:
        """A list with where its scores come from (`serving.explained_list`).

        Args:
            request: whose list it is.
            query: of the request.
            left_out: of the request.
            found: the selections that were tried and the items that each has added. Among the candidates of a wider one, those of
                a narrower may be missing, and their scores would be others.
            blob: the list.
        """
        ranked = decode_list(blob)
        assert ranked is not None
        short = query.truncated(MAX_HISTORY)
        told = []
        for selection, item_idx in found:
            candidates = self.retrieve(replace(request, selection=selection), query, left_out)
            there = item_idx[np.isin(item_idx, candidates.item_idx[0]) & (item_idx >= 0)]
            told.append((there, explained(self.pipeline, short, candidates, there)))
        kept = np.isin(ranked.item_idx, np.concatenate([there for there, _ in told]))
        parts = np.concatenate([one.parts for _, one in told])
        because = np.concatenate([one.because for _, one in told]).tolist()
        return ExplainedList(
            replace(ranked, item_idx=ranked.item_idx[kept], score=parts.sum(axis=1), source=ranked.source[kept]),
            told[0][1].names,
            parts,
            [None if row < 0 else str(self.items.item_ids[row]) for row in because],
        ).encode()

    def allowed(self, request: ComputeRequest, left_out: LeftOut) -> BoolArray:
        """The mask of what may be retrieved: the selection's own, the same object for all, unless it has to be changed."""
        allowed = self.items.trained_mask(request.selection)
        if request.candidates is not None:
            wanted = np.zeros(len(allowed), dtype=bool)
            wanted[self._trained(self.items.rows(request.candidates))] = True
            allowed = allowed & wanted
        if len(left_out.rows):
            allowed = allowed.copy()
            allowed[left_out.rows] = False
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
