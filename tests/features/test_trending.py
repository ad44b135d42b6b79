"""Trending: counts that fade by a known law, alike in stream and batch, over the real store and a real Redis."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features import trending
from features.activity_store import ActivityStore
from features.event_codec import decode_event, encode_event, event_table
from features.events import Event
from features.redis_board import RedisBoard
from features.store_follower import StoreFollower
from features.trending import TRENDING, TrendingBoard, TrendingCounts

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
NOW_US = int(NOW.timestamp() * 1e6)
CATEGORIES = {"a": ["Comedy"], "b": ["Drama", "Noir"], "c": ["Comedy"]}


def event(item: str, ago: timedelta, *, action: str = "click", **context: str) -> Event:
    return Event(uuid.uuid4().hex, item, action, NOW - ago, "u", context=context)


def rows(events: list[Event]) -> pa.Table:
    return event_table([decode_event(encode_event(one, received_at=NOW)) for one in events])


def counts() -> TrendingCounts:
    return TrendingCounts(lambda: CATEGORIES, lambda: NOW_US)


def random_events(rng: np.random.Generator, number: int) -> list[Event]:
    regions = ["es", "de"]
    return [
        event(str(rng.choice(list("abcd"))), timedelta(hours=float(rng.exponential(30))), region=str(rng.choice(regions)))
        for _ in range(number)
    ]


def test_a_count_fades_by_half_in_half_its_window() -> None:
    state = counts()
    state.add(
        rows(
            [
                event("a", timedelta(0)),
                event("b", timedelta(hours=12)),
                event("b", timedelta(hours=24)),
                event("c", timedelta(days=7)),
            ]
        )
    )
    items, score = state.board().top("1d")
    assert items.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(score, [1, 1 / 2 + 1 / 4, 2.0**-14], rtol=1e-12)
    items, score = state.board().top("7d")
    assert items.tolist() == ["b", "a", "c"]
    np.testing.assert_allclose(score[2], 1 / 4)


def test_segments_are_where_events_come_from_and_what_items_are() -> None:
    state = counts()
    given = [("a", "es"), ("a", "es"), ("b", "es"), ("b", "de"), ("b", "de"), ("c", "de")]
    state.add(rows([event(item, timedelta(0), region=region, language=region) for item, region in given]))
    board = state.board()
    assert board.top("1h", region="es")[0].tolist() == ["a", "b"]
    assert board.top("1h", language="de")[0].tolist() == ["b", "c"]
    assert board.top("1h", category="Comedy")[0].tolist() == ["a", "c"]
    assert board.top("1h")[0].tolist() == ["b", "a", "c"]
    assert board.top("1h", region="fr")[0].tolist() == []


def test_what_is_no_interest_or_from_the_future_does_not_count() -> None:
    state = counts()
    state.add(
        rows([event("a", timedelta(0), action="impression"), event("b", timedelta(days=-400)), event("c", timedelta(hours=1))])
    )
    assert state.board().top("1d")[0].tolist() == ["c"]


def test_stream_and_batch_give_equal_counts_whatever_comes_twice(tmp_path: Path, rng: np.random.Generator) -> None:
    events = random_events(rng, 500)
    store, state = ActivityStore(tmp_path), counts()
    follower = StoreFollower(store, [state])
    follower.load()
    for start in range(0, 500, 50):
        follower(store.append(rows(events[max(0, start - 20) : start + 50])))  # 20 of them again
    batch = counts()
    StoreFollower(store, [batch]).load()
    for window in trending.WINDOWS_S:
        for chosen in ({}, {"region": "es"}, {"category": "Noir"}):
            (items, score), (expected, sums) = state.board().top(window, **chosen), batch.board().top(window, **chosen)
            assert items.tolist() == expected.tolist()
            np.testing.assert_allclose(score, sums, rtol=1e-9)
    one = batch.board().top("7d")
    ages = {
        item: [(NOW_US_of(events) - int(e.timestamp.timestamp() * 1e6)) / 1e6 for e in events if e.item_id == item]
        for item in "abcd"
    }
    expected_a = sum(2.0 ** (-age / (3.5 * 86_400)) for age in ages["a"])
    np.testing.assert_allclose(dict(zip(*one, strict=True))["a"], expected_a, rtol=1e-6)


def NOW_US_of(events: list[Event]) -> int:
    return max(int(one.timestamp.timestamp() * 1e6) for one in events)


def test_what_another_process_stored_is_loaded(tmp_path: Path) -> None:
    store, state = ActivityStore(tmp_path), counts()
    follower = StoreFollower(store, [state])
    follower.load()
    follower(store.append(rows([event("a", timedelta(0))])))
    ActivityStore(tmp_path).append(rows([event("b", timedelta(0)), event("b", timedelta(0))]))
    follower(store.append(rows([event("c", timedelta(0))])))
    items, score = state.board().top("1d")
    assert items.tolist() == ["b", "a", "c"]
    np.testing.assert_allclose(score, [2, 1, 1])


def test_faded_rows_are_forgotten_and_a_long_silence_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    state = counts()
    state.add(rows([event("a", timedelta(days=3000)), event("b", timedelta(days=2000))]))
    assert state.board().top("7d")[0].tolist() == ["b"]
    state.add(rows([event("c", timedelta(0))]))
    assert state.board().top("7d")[0].tolist() == ["c"]
    monkeypatch.setattr(trending, "MAX_ROWS", 20)
    state.add(rows([event(f"i{number}", timedelta(seconds=number)) for number in range(100)]))
    assert state.board().top("1h")[0].tolist()[:5] == ["c", "i0", "i1", "i2", "i3"]
    assert len(state.board().table) <= 21


@pytest.mark.integration
def test_the_board_travels_over_redis(redis_server: str, rng: np.random.Generator) -> None:
    state = counts()
    state.add(rows(random_events(rng, 200)))
    board = RedisBoard(redis_server, f"trend-{uuid.uuid4().hex[:8]}")
    assert TrendingBoard.decode(board.get(TRENDING)) is None
    board.put(TRENDING, state.board().encode(), ttl_s=60)
    read = TrendingBoard.decode(board.get(TRENDING))
    assert read is not None
    assert read.as_of_us == state.board().as_of_us
    for chosen in ({}, {"region": "de"}, {"category": "Comedy"}):
        assert read.top("1d", **chosen)[0].tolist() == state.board().top("1d", **chosen)[0].tolist()
    assert TrendingBoard.decode(b"not a board") is None
    board.close()
