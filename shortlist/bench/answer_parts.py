"""A computed answer whole and in its parts, each run alone over the same users."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from serving.item_table import ItemTable
from serving.messages import ComputeRequest
from serving.online_users import OnlineUser, ReadUsers, parse_user
from serving.ranker import RankerStage
from serving.recent_activity import RecentActivity
from serving.retriever import RetrieverStage
from serving.schemas import NO_SELECTION, Selection
from serving.version_lists import encode_answer
from training.candidates import Retrieved
from training.pipeline import Pipeline, Source
from training.ranked_lists import best_lists
from training.union import unite

QUERIES = 100
PACE_S = 0.004
WARM_UP = 4
"""Answers that do not count: the first compile the filter and touch the pages."""

Each = Callable[[Callable[[int], Any]], tuple[list[Any], float]]


def paced(count: int) -> Each:
    """Times parts by the clock as requests meet them: one every few milliseconds, while the machine does something else in between.

    In a loop that does nothing else a part finds its code and data in the core's caches, as no request does.
    """

    def each(run: Callable[[int], Any]) -> tuple[list[Any], float]:
        results, seconds = [], 0.0
        for number in range(count):
            time.sleep(PACE_S)
            started = time.perf_counter()
            results.append(run(number))
            seconds += time.perf_counter() - started
        return results, seconds / count * 1e3

    return each


def path_figures(
    pipeline: Pipeline,
    items: ItemTable,
    selection: Selection,
    k: int = 40,
    among: Sequence[str] | None = None,
    read_users: ReadUsers | None = None,
    each: Each | None = None,
) -> dict[str, Any]:
    """A computed answer in one replica, whole and in its parts, each run alone over the same users.

    Args:
        pipeline: of the version.
        items: of the version.
        selection: which items may be shown.
        k: length of the lists.
        among: users to ask for; drawn from all where None.
        read_users: reads users' features online; from the history where None.
        each: runs a part for the numbers of all users and gives its results and milliseconds; processor time in a loop where None.
    """
    stage, ranker = RetrieverStage(pipeline, items), RankerStage(pipeline)
    drawn = pipeline.histories.user_ids[some_users(pipeline)] if among is None else among[:QUERIES]
    users = [str(user) for user in drawn]
    requests = [ComputeRequest(user_id=user, k=k, selection=selection, seen=None) for user in users]
    each = each or partial(in_a_loop, len(users))
    activity, now_us = RecentActivity(), time.time_ns() // 1000

    def online(b: int) -> OnlineUser | None:
        return parse_user(read_users([users[b]])) if read_users is not None else None

    def whole(b: int) -> bytes:
        return _answer(stage, ranker, requests[b], now_us, online(b))

    whole(0)
    whole(1)
    _, whole_ms = each(whole)
    known, online_ms = each(online)
    asked, query_ms = each(lambda b: stage.query(requests[b], activity, now_us, known[b])[0])
    allowed, mask_ms = each(lambda _: items.trained_mask(selection))
    parts = {"online features": online_ms, "query": query_ms, "mask": mask_ms}
    lists: list[list[Retrieved]] = []
    for source in pipeline.sources:

        def retrieved(b: int, source: Source = source) -> Retrieved:
            return source.retriever.retrieve(asked[b], source.quota, allowed[b], exclude_history=False)

        found, parts[source.name] = each(retrieved)
        lists.append(found)
    names = [source.name for source in pipeline.sources]
    candidates, parts["union"] = each(lambda b: unite(names, [found[b] for found in lists]))
    if pipeline.stage is not None:
        stage_of, blend = pipeline.stage, pipeline.blend
        reaching, parts["blend"] = each(lambda b: pipeline.reaching(candidates[b])[0])
        batches, parts["features"] = each(lambda b: stage_of.features.batch(asked[b], reaching[b], blend, pipeline.timeline))
        scored, parts["ranker"] = each(lambda b: stage_of.ranker.score(batches[b]))
        _, parts["order"] = each(lambda b: best_lists(reaching[b], scored[b], k, pipeline.source_names))
    total = sum(parts.values())
    return {
        "whole_ms": round(whole_ms, 3),
        "parts_ms": {name: round(ms, 3) for name, ms in parts.items()},
        "sum_of_parts_ms": round(total, 3),
        "ratio": round(whole_ms / total, 3),
        "candidates": round(float(np.mean([one.valid.sum() for one in candidates]))),
    }


def filter_adds_ms(pipeline: Pipeline, items: ItemTable, selection: Selection, k: int, users: Sequence[str]) -> float:
    """Processor time that a selection adds to a computed answer: the median over users of with minus without, each pair at once."""
    stage, ranker = RetrieverStage(pipeline, items), RankerStage(pipeline)
    now_us, added = time.time_ns() // 1000, []
    for number, user in enumerate(users[:QUERIES]):
        spent = {}
        for one in (NO_SELECTION, selection)[:: 1 if number % 2 else -1]:
            request = ComputeRequest(user_id=user, k=k, selection=one, seen=None)
            started = time.process_time()
            _answer(stage, ranker, request, now_us, None)
            spent[one] = time.process_time() - started
        if number >= WARM_UP:
            added.append(spent[selection] - spent[NO_SELECTION])
    return float(np.median(added)) * 1e3


def _answer(stage: RetrieverStage, ranker: RankerStage, request: ComputeRequest, now_us: int, online: OnlineUser | None) -> bytes:
    activity = RecentActivity()
    query, left_out = stage.query(request, activity, now_us, online)
    ranked = ranker.rank(query, stage.retrieve(request, query, left_out), request.k)
    return encode_answer(ranked, activity, now_us, request.k)


def in_a_loop(count: int, run: Callable[[int], Any]) -> tuple[list[Any], float]:
    """What `run` gives for 0 to count - 1, and the median of its CPU times in ms."""
    results, times = [], []
    for number in range(count):
        started = time.process_time()
        results.append(run(number))
        times.append(time.process_time() - started)
    return results, float(np.median(times)) * 1e3


def some_users(pipeline: Pipeline) -> Any:
    """Rows of users with a history, drawn by a fixed seed."""
    active = np.flatnonzero(np.diff(pipeline.histories.indptr))
    return np.sort(np.random.default_rng(2).permutation(active)[:QUERIES]).astype(np.int32)
