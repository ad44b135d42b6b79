"""Requests of all kinds, computed together, have the lists that each has alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.events import ACTION_CODES
from serving.cached_list import CachedList, decode_list
from serving.errors import FilterError
from serving.explained_list import decode_explained
from serving.feature_log import FeatureLog
from serving.item_table import ItemTable
from serving.list_computer import ListComputer
from serving.messages import ComputeRequest
from serving.ranker import RankerStage
from serving.recent_activity import RecentActivity
from serving.retriever import RetrieverStage
from serving.schemas import Seen, Selection
from training.pipeline import Pipeline

NOW_US = 1_800_000_000_000_000
OLD = Selection(filter="year < 1990")


class Log(FeatureLog):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.noted: list[tuple[Any, ...]] = []

    def note(self, *told: Any) -> None:
        self.noted.append(told)


@pytest.fixture(params=["blend", "ranker"])
def stage(request: pytest.FixtureRequest) -> RetrieverStage:
    folder: Path = request.getfixturevalue("bundle" if request.param == "blend" else "ranked_bundle")
    return RetrieverStage(Pipeline.load(folder), ItemTable.from_bundle(folder))


def computed(stage: RetrieverStage, requests: Sequence[ComputeRequest], log: FeatureLog | None = None) -> list[bytes | Exception]:
    computer = ListComputer(stage, RankerStage(stage.pipeline), log or Log())
    return asyncio.run(computer.compute(requests, [None] * len(requests), NOW_US))


def of(blob: bytes | Exception) -> CachedList:
    assert isinstance(blob, bytes), blob
    found = decode_list(blob)
    assert found is not None
    return found


def test_together_as_alone(stage: RetrieverStage) -> None:
    chain = Selection(region=("FR", "DE"))
    requests = [
        *(ComputeRequest(f"u{n}", 10) for n in range(6)),
        *(ComputeRequest(f"u{n}", 10, seen=None) for n in range(6)),
        *(ComputeRequest(f"u{n}", 10, selection=OLD) for n in range(3)),
        ComputeRequest("u7", 25),
        ComputeRequest("u7", 10, exclude=("i003",)),
        ComputeRequest("u7", 10, candidates=("i002", "i012")),
        ComputeRequest("u7", 10, seen=Seen(actions=frozenset({ACTION_CODES["purchase"]}))),
        ComputeRequest("u8", 10, recent_items=("i044",)),
        ComputeRequest("u9", 40, top_k=40, selection=chain),
        ComputeRequest("nobody", 10),
    ]
    for alone, together in zip([computed(stage, [one])[0] for one in requests], computed(stage, requests), strict=True):
        alone, together = of(alone), of(together)
        assert together.item_idx.tolist() == alone.item_idx.tolist()
        np.testing.assert_allclose(together.score, alone.score, rtol=1e-4, atol=1e-5)
        assert together.source.tolist() == alone.source.tolist()
        assert (together.complete, together.anonymous) == (alone.complete, alone.anonymous)


def test_a_user_of_whom_nothing_is_known_is_answered_in_the_form_that_was_asked_for(stage: RetrieverStage) -> None:
    plain, explained = computed(stage, [ComputeRequest("nobody", 10), ComputeRequest("nobody", 10, explain=True)])
    assert isinstance(explained, bytes)
    found = decode_explained(explained)
    assert found is not None
    assert found.ranked.anonymous
    assert found.ranked.encode() == plain


def test_an_explained_list_is_the_list_also_along_a_chain(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle("transition_knn", "popularity", quota=5)  # few: candidates of a wider step are not those of a narrower
    stage = RetrieverStage(Pipeline.load(folder), ItemTable.from_bundle(folder))
    short = Selection(region=("AT", "DE"), language=("es", "fr"), filter="year >= 2025 || year < 1982")
    for chain in (Selection(region=("AT", "DE")), Selection(region=("AT", "DE"), category=("Drama",)), short):
        for user, top_k in (("u3", 4), ("u19", 4), ("u45", 6), ("u45", 12)):
            asked = ComputeRequest(user, 12, top_k=top_k, selection=chain)
            plain, explained = computed(stage, [asked, replace(asked, explain=True)])
            assert isinstance(explained, bytes)
            found = decode_explained(explained)
            assert found is not None
            assert found.ranked.item_idx.tolist() == of(plain).item_idx.tolist()
            np.testing.assert_allclose(found.ranked.score, of(plain).score, rtol=1e-4, atol=1e-5)
            assert found.ranked.source.tolist() == of(plain).source.tolist()


def test_leaving_out_the_history_equals_a_mask_without_it(stage: RetrieverStage) -> None:
    histories = stage.pipeline.histories
    for user in ("u3", "u17"):
        row = histories.users.rows([user])[0]
        met = histories.item_idx[histories.indptr[row] : histories.indptr[row + 1]]
        masked = ComputeRequest(user, 20, seen=None, exclude=tuple(str(one) for one in stage.items.item_ids[np.unique(met)]))
        by_history, by_mask = (of(blob) for blob in computed(stage, [ComputeRequest(user, 20), masked]))
        assert by_history.item_idx.tolist() == by_mask.item_idx.tolist()
        assert set(by_history.item_idx.tolist()).isdisjoint(met.tolist())


def test_one_that_fails_takes_no_other_with_it(stage: RetrieverStage, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [ComputeRequest(f"u{n}", 10) for n in range(4)]
    requests.insert(1, ComputeRequest("u1", 10, selection=Selection(filter="year <")))
    expected = [of(blob).item_idx.tolist() for blob in computed(stage, [requests[0], *requests[2:]])]
    bad = stage.pipeline.histories.users.rows(["u2"])[0]
    retrieve = Pipeline.retrieve

    def fails(self: Pipeline, queries: Any, *others: Any, **options: Any) -> Any:
        if bad in queries.user_idx:
            raise RuntimeError("this user breaks it")
        return retrieve(self, queries, *others, **options)

    monkeypatch.setattr(Pipeline, "retrieve", fails)
    first, no_filter, second, broken, last = computed(stage, requests)
    assert isinstance(no_filter, FilterError)
    assert isinstance(broken, RuntimeError)
    assert [of(blob).item_idx.tolist() for blob in (first, second, last)] == [expected[n] for n in (0, 1, 3)]


def test_feature_values_are_logged_of_those_that_ask_for_it(stage: RetrieverStage) -> None:
    log = Log()
    requests = [ComputeRequest("u1", 10), ComputeRequest("u2", 10, log_as=("u:u2", "7")), ComputeRequest("u3", 10)]
    answers = computed(stage, requests, log)
    ((request, query, candidates, lists, at_us),) = log.noted
    assert (request.user_id, at_us, len(query)) == ("u2", NOW_US, 1)
    assert query.history(0).tolist() == stage.query(requests[1], RecentActivity(), NOW_US)[0].history(0).tolist()
    assert candidates.item_idx.shape[0] == 1
    assert lists.item_idx[0][lists.item_idx[0] >= 0].tolist() == of(answers[1]).item_idx.tolist()


class HangingRanker:
    """A handle to rankers of which the first call never comes back."""

    def __init__(self, ranker: RankerStage) -> None:
        self._ranker, self.asked = ranker, 0
        self.rank = self

    async def remote(self, *arguments: Any) -> Any:
        self.asked += 1
        if self.asked == 1:
            await asyncio.sleep(3600)
        return self._ranker.rank(*arguments)


def test_a_ranker_that_hangs_is_given_up_once_for_all_of_a_batch(stage: RetrieverStage) -> None:
    ranker = HangingRanker(RankerStage(stage.pipeline))
    computer = ListComputer(stage, ranker, Log(), deadline_s=0.05)
    requests = [ComputeRequest(f"u{n}", 10) for n in range(4)]

    async def twice() -> tuple[list[bytes | Exception], list[bytes | Exception]]:
        return await computer.compute(requests, [None] * 4, NOW_US), await computer.compute(requests, [None] * 4, NOW_US)

    given_up, found = asyncio.run(twice())
    assert all(isinstance(one, TimeoutError) for one in given_up)
    assert ranker.asked == 2
    assert [of(one).item_idx.tolist() for one in found] == [of(one).item_idx.tolist() for one in computed(stage, requests)]
