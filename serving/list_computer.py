"""Lists of several requests, computed together as far as they ask among the same items."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from serving.feature_log import FeatureLog
from serving.messages import ComputeRequest
from serving.online_users import OnlineUser
from serving.ranker import RankerStage
from serving.recent_activity import RecentActivity, decode_activity
from serving.retriever import MAX_HISTORY, LeftOut, RetrieverStage
from serving.schemas import Selection
from serving.version_lists import anonymous_answer, encode_answer, joined, one_list
from training.candidates import RankedLists
from training.interactions import BoolArray, IntArray
from training.queries import QueryBatch, joined_queries


@dataclass(slots=True)
class _Job:
    """A request on its way to its list.

    Args:
        steps: selections that are still to be tried, each wider than the one before.
        lists: found so far.
        found: each selection that was tried, with what it has added to the lists.
        answer: the list as bytes, or why there is none; None while it is computed.
    """

    request: ComputeRequest
    activity: RecentActivity
    query: QueryBatch
    left_out: LeftOut
    steps: list[Selection]
    lists: RankedLists | None = None
    found: list[tuple[Selection, IntArray]] = field(default_factory=list)
    answer: bytes | Exception | None = None

    @property
    def has_enough(self) -> bool:
        """Whether no wider step is to be tried."""
        found = 0 if self.lists is None else int((self.lists.item_idx[0] >= 0).sum())
        return not self.steps or found >= max(self.request.top_k, 1)


class ListComputer:
    """Computes lists with one version's retrievers and ranker.

    Args:
        stage: the retrievers.
        ranker: in this process, or a handle to `serving.ranker.Ranker` replicas.
        log: gets the feature values of the lists that are to be logged.
        deadline_s: of a ranker in another process; who asked has given up by then.
    """

    def __init__(self, stage: RetrieverStage, ranker: Any, log: FeatureLog, deadline_s: float = 1.0) -> None:
        self._stage, self._ranker, self._log, self._deadline_s = stage, ranker, log, deadline_s

    async def compute(
        self, requests: Sequence[ComputeRequest], online: Sequence[OnlineUser | None], now_us: int
    ) -> list[bytes | Exception]:
        """A list as bytes (`serving.cached_list`) for each request, or why there is none."""
        jobs = [self._job(request, user, now_us) for request, user in zip(requests, online, strict=True)]
        while waiting := [job for job in jobs if isinstance(job, _Job) and job.answer is None]:
            for group, allowed in self._groups(waiting):
                await self._advance(group, allowed, now_us)
        return [answer for job in jobs if (answer := job.answer if isinstance(job, _Job) else job) is not None]

    def _job(self, request: ComputeRequest, user: OnlineUser | None, now_us: int) -> _Job | bytes | Exception:
        """The request's job; or its answer, where that needs no computing."""
        try:
            activity = decode_activity(request.activity)
            query, left_out = self._stage.query(request, activity, now_us, user)
        except Exception as error:
            return error
        if len(query.item_idx) == 0 and request.candidates is None:
            return anonymous_answer(activity, now_us, explain=request.explain)
        return _Job(request, activity, query, left_out, list(request.selection.steps))

    def _groups(self, jobs: Sequence[_Job]) -> Iterator[tuple[list[_Job], BoolArray]]:
        """Jobs whose next step is among the same items, with the mask of these. A job without a mask is answered with the error."""
        groups: dict[tuple[Any, ...], tuple[list[_Job], BoolArray]] = {}
        for job in jobs:
            try:
                allowed = self._stage.allowed(replace(job.request, selection=job.steps[0]), job.left_out)
            except Exception as error:
                job.answer = error
                continue
            # The mask of a selection is one object; one that a request needs for itself is another each time, and kept here.
            key = (id(allowed), job.left_out.history, job.request.k, bool(job.query.user_features))
            groups.setdefault(key, ([], allowed))[0].append(job)
        yield from groups.values()

    async def _advance(self, group: list[_Job], allowed: BoolArray, now_us: int) -> None:
        """Take one step with a group, and answer those of it that are done. One that fails takes no other with it."""
        try:
            found = await self._ranked(group, allowed, now_us)
        except Exception as error:
            if len(group) == 1 or isinstance(error, TimeoutError):  # a ranker that hangs hangs for each of them
                for job in group:
                    job.answer = error
                return
            for job in group:
                await self._advance([job], allowed, now_us)
            return
        for job, lists in zip(group, found, strict=True):
            known = 0 if job.lists is None else int((job.lists.item_idx[0] >= 0).sum())  # joining drops what only fills up
            job.lists = lists if job.lists is None else joined(job.lists, lists)
            job.found.append((job.steps.pop(0), job.lists.item_idx[0][known:]))
            if job.has_enough:
                try:
                    job.answer = self._encoded(job, job.lists, now_us)
                except Exception as error:
                    job.answer = error

    async def _ranked(self, group: list[_Job], allowed: BoolArray, now_us: int) -> list[RankedLists]:
        queries = joined_queries([job.query.truncated(MAX_HISTORY) for job in group])
        k, exclude_history = group[0].request.k, group[0].left_out.history
        candidates = self._stage.pipeline.retrieve(queries, allowed, k, exclude_history=exclude_history)
        if isinstance(self._ranker, RankerStage):
            lists = self._ranker.rank(queries, candidates, k)
        else:
            # Lists are computed one batch at a time: one ranker that hangs must not hold up what another would answer.
            async with asyncio.timeout(self._deadline_s):
                lists = await self._ranker.rank.remote(queries, candidates, k)
        found = [one_list(lists, b) for b in range(len(group))]
        for b, job in enumerate(group):
            if job.request.log_as is not None:
                query, own = queries.slice(b, b + 1), candidates.slice(b, b + 1)
                self._log.note(replace(job.request, selection=job.steps[0]), query, own, found[b], now_us)
        return found

    def _encoded(self, job: _Job, lists: RankedLists, now_us: int) -> bytes:
        blob = encode_answer(lists, job.activity, now_us, job.request.k)
        return self._stage.explained(job.request, job.query, job.left_out, job.found, blob) if job.request.explain else blob
