"""Live user features: equal to the batch's, whatever comes twice, late or after a crash; pushed through Feast into a real Redis."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.services import ENGAGEMENT_V1
from features.activity_log import activity_log
from features.activity_store import ActivityStore
from features.aggregates import ItemStates, UserStates
from features.bus import EVENTS, FEATURES_GROUP, STORE_GROUP
from features.consumer import BatchResult, Consumer, ConsumerConfig
from features.engagement import EngagementStates, click_through
from features.errors import FeatureStoreError, StoreError
from features.event_codec import decode_event, encode_event, event_table
from features.events import Event
from features.ingest import KnownItems, StoreEvents
from features.item_totals import ItemTotals, LockedTotals
from features.live_features import UpdateFeatures, UserHistories
from features.paths import DatasetPaths
from features.redis_bus import RedisStreamBus
from features.schema import DatasetSchema
from features.store import Features
from features.store_follower import StoreFollower
from features.user_dates import LockedDates, UserDates

pytestmark = pytest.mark.integration
START = datetime(2026, 11, 1, tzinfo=UTC)
CATEGORIES = {f"i{number}": [f"c{number % 3}", f"c{number % 5}"] for number in range(40)}


class Pushed:
    """Keeps the last state of every user; fails while `failing` is above 0."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, Any]] = {}
        self.items: dict[str, dict[str, Any]] = {}
        self.engagement: dict[str, dict[str, Any]] = {}
        self.failing = 0

    def push_users(self, states: pa.Table) -> None:
        if self.failing > 0:
            self.failing -= 1
            raise FeatureStoreError("Redis is gone")
        self.states |= {row["user_id"]: row for row in states.to_pylist()}

    def push_items(self, states: pa.Table) -> None:
        self.items |= {row["item_id"]: row for row in states.to_pylist()}

    def push_engagement(self, states: pa.Table) -> None:
        self.engagement |= {row["item_id"]: row for row in states.to_pylist()}


@pytest.fixture
def bus(redis_server: str) -> Iterator[RedisStreamBus]:
    bus = RedisStreamBus(redis_server, f"live-{uuid.uuid4().hex[:8]}")
    bus.ensure_groups(EVENTS)
    yield bus
    bus.close()


def make_events(rng: np.random.Generator, count: int, users: int = 12) -> list[Event]:
    actions = ["click", "view", "rating", "impression", "dismiss"]
    return [
        Event(
            event_id=f"e{number}",
            item_id=f"i{rng.integers(40)}",
            action=str(rng.choice(actions)),
            timestamp=START + timedelta(minutes=float(rng.uniform(0, 60 * 24 * 40))),
            user_id=f"u{rng.integers(users)}" if rng.random() < 0.9 else None,
            session_id="s1",
            value=float(rng.integers(1, 6)) if rng.random() < 0.3 else None,
            recommendation_id="r" if rng.random() < 0.7 else None,
        )
        for number in range(count)
    ]


def publish(bus: RedisStreamBus, events: list[Event]) -> None:
    bus.publish(EVENTS, [encode_event(event, received_at=START) for event in events])


def batch_states(store: ActivityStore) -> dict[str, dict[str, Any]]:
    """What `features build` would say of the users."""
    log = activity_log(store.read(), "user")
    blocks = UserStates(log, CATEGORIES).after(np.arange(len(log.ids)), log.indptr[1:])
    return {row["user_id"]: row for block in blocks for row in block.to_pylist()}


def item_states(store: ActivityStore) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """What `features build` would say of the items: activity and engagement."""
    events = store.read()
    made = []
    for states in (ItemStates(activity_log(events, "item")), EngagementStates(events)):
        blocks = states.after(np.arange(len(states.log.ids)), states.log.indptr[1:])
        made.append({row["item_id"]: row for block in blocks for row in block.to_pylist()})
    return made[0], made[1]


def same_items(pushed: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    """Means are rounded by the order of merging, all else is exact."""
    assert pushed.keys() == expected.keys()
    for item, row in expected.items():
        assert {name: rounded(value) for name, value in pushed[item].items()} == {
            name: rounded(value) for name, value in row.items()
        }


def rounded(value: Any) -> Any:
    return round(value, 9) if isinstance(value, float) else value


def consumers(bus: RedisStreamBus, store: ActivityStore, sink: Any, **options: Any) -> tuple[Consumer, Consumer]:
    known = KnownItems(lambda ids: set(ids) & set(CATEGORIES))
    totals, dates = ItemTotals(lambda: True), UserDates()
    follower = StoreFollower(store, [totals, dates])
    follower.load()
    histories = UserHistories(store, dates=LockedDates(dates, follower.lock).dates, **options)
    update = UpdateFeatures(
        histories,
        lambda: sink,
        lambda: CATEGORIES,
        known,
        lambda entry: bus.has_finished(EVENTS, STORE_GROUP, entry),
        patience_s=0.2,
        items=LockedTotals(totals, follower.lock),
    )
    config = ConsumerConfig(EVENTS, STORE_GROUP, "worker", max_entries=37, block_ms=1)
    features = ConsumerConfig(EVENTS, FEATURES_GROUP, "worker", max_entries=23, block_ms=1)
    return Consumer(bus, config, StoreEvents(store, known, follower)), Consumer(bus, features, update)


def drain(*readers: Consumer) -> None:
    for reader in readers:
        while reader.step():
            pass


@pytest.mark.parametrize("max_events", [10**6, 30], ids=["kept", "forgotten at once"])
def test_stream_and_batch_give_equal_values(bus: RedisStreamBus, tmp_path: Path, rng: np.random.Generator, max_events: int) -> None:
    store, sink = ActivityStore(tmp_path), Pushed()
    events = make_events(rng, 300)
    reader, updater = consumers(bus, store, sink, max_events=max_events)
    for start in range(0, 300, 60):  # in arrival order, which is not the order of time
        publish(bus, events[start : start + 60])
        publish(bus, events[max(0, start - 20) : start])  # again
        drain(reader, updater)
    assert len(sink.states) == 12
    assert sink.states == batch_states(store)
    activity, engagement = item_states(store)
    same_items(sink.items, activity)
    same_items(sink.engagement, engagement)
    assert sum(row["item_clicks"] for row in engagement.values()) > 20


def test_history_from_before_the_stream_counts(bus: RedisStreamBus, tmp_path: Path, rng: np.random.Generator) -> None:
    store, sink = ActivityStore(tmp_path), Pushed()
    reader, updater = consumers(bus, store, sink)
    publish(bus, make_events(rng, 200))
    drain(reader)
    _, fresh = consumers(bus, store, sink)
    drain(fresh)
    assert sink.states == batch_states(store)
    assert updater.totals.entries == 0


def test_a_crash_between_push_and_acknowledgement_repeats_nothing(
    bus: RedisStreamBus, tmp_path: Path, rng: np.random.Generator
) -> None:
    store, sink = ActivityStore(tmp_path), Pushed()
    publish(bus, make_events(rng, 100))
    reader, updater = consumers(bus, store, sink)
    drain(reader)

    def dies(entries: Any) -> BatchResult:
        updater.process(entries)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Consumer(bus, updater.config, dies).step()
    bus._resumed_from.clear()  # as a new process has it
    _, again = consumers(bus, store, sink)
    drain(again)
    assert sink.states == batch_states(store)
    activity, engagement = item_states(store)
    same_items(sink.items, activity)
    same_items(sink.engagement, engagement)


def test_events_wait_for_the_store_and_for_redis(bus: RedisStreamBus, tmp_path: Path, rng: np.random.Generator) -> None:
    store, sink = ActivityStore(tmp_path), Pushed()
    publish(bus, make_events(rng, 50))
    reader, updater = consumers(bus, store, sink)
    with pytest.raises(StoreError, match="has not stored bus entry"):
        updater.step()
    assert sink.states == {}
    drain(reader)
    sink.failing = 1
    with pytest.raises(FeatureStoreError):
        updater.step()
    drain(updater)
    assert sink.states == batch_states(store)
    assert bus.dead(EVENTS, 10) == []


def test_what_an_erased_person_did_before_makes_no_features(bus: RedisStreamBus, tmp_path: Path) -> None:
    store, sink = ActivityStore(tmp_path), Pushed()
    readers = consumers(bus, store, sink)
    store.erase("gone", at=START)
    hour = timedelta(hours=1)
    for user, at, known in (("gone", -hour, set()), ("other", -hour, {"other"}), ("gone", hour, {"gone", "other"})):
        publish(bus, [Event(f"{user}{at}", "i1", "click", START + at, user)])
        drain(*readers)
        assert sink.states.keys() == known
    assert sink.states == batch_states(store)
    assert bus.dead(EVENTS, 10) == []


def test_events_of_unknown_items_do_not_count(bus: RedisStreamBus, tmp_path: Path) -> None:
    store, sink = ActivityStore(tmp_path), Pushed()
    publish(bus, [Event("a", "i1", "click", START, "u"), Event("b", "nowhere", "click", START + timedelta(hours=1), "u")])
    drain(*consumers(bus, store, sink))
    assert sink.states["u"]["recent_items"] == ["i1"]
    assert sink.states == batch_states(store)


def test_an_import_shows_in_a_kept_history_after_a_while(bus: RedisStreamBus, tmp_path: Path, rng: np.random.Generator) -> None:
    store, sink = ActivityStore(tmp_path), Pushed()
    events = make_events(rng, 80, users=3)
    reader, updater = consumers(bus, store, sink, seconds=0.0)
    publish(bus, events[:40])
    drain(reader, updater)
    imported = [decode_event(encode_event(event, received_at=START)) for event in events[40:]]
    store.append(event_table(imported))  # not over the bus
    publish(bus, [Event(f"last-{user}", "i1", "click", START + timedelta(days=50), user) for user in ("u0", "u1", "u2")])
    drain(reader, updater)
    assert sink.states == batch_states(store)


def test_without_an_applied_store_events_wait_for_nobody(bus: RedisStreamBus, tmp_path: Path, rng: np.random.Generator) -> None:
    publish(bus, make_events(rng, 20))
    _, updater = consumers(bus, ActivityStore(tmp_path), None)
    drain(updater)
    assert next(group for group in bus.lag(EVENTS).groups if group.group == FEATURES_GROUP).entries == 0


def test_feast_serves_what_was_pushed(bus: RedisStreamBus, redis_server: str, tmp_path: Path, rng: np.random.Generator) -> None:
    paths = DatasetPaths(tmp_path, f"live-{uuid.uuid4().hex[:8]}")
    features = Features(paths, DatasetSchema(paths.dataset), redis_server)
    features.apply()
    store = ActivityStore(paths.activity)
    reader, updater = consumers(bus, store, features)
    publish(bus, make_events(rng, 150))
    drain(reader, updater)
    expected = batch_states(store)
    users = sorted(expected)
    online = features.online_users(users)
    assert online["user_events"].tolist() == [expected[user]["user_events"] for user in users]
    assert [list(items) for items in online["recent_items"]] == [expected[user]["recent_items"] for user in users]
    np.testing.assert_array_equal(online["user_day_tiles"], np.array([expected[user]["user_day_tiles"] for user in users]))
    activity, engagement = item_states(store)
    items = sorted(engagement)
    shown = features.online_items(items, ENGAGEMENT_V1)
    for name in ("item_impressions", "item_clicks"):
        assert shown[name].tolist() == [engagement[item][name] for item in items]
    now_us = max(int(row["item_click_last_us"] or 0) for row in engagement.values())
    rates = click_through(shown, now_us, 30)
    first = datetime.fromtimestamp((now_us // 86_400_000_000 - 29) * 86_400, UTC)
    recent = [one for one in store.read().to_pylist() if one["recommendation_id"] and one["timestamp"] >= first]
    clicks, impressions = (sum(one["action"] == action for one in recent) for action in ("click", "impression"))
    chosen = items[0]
    own = [sum(one["action"] == action and one["item_id"] == chosen for one in recent) for action in ("click", "impression")]
    assert rates[0] == pytest.approx((own[0] + 50 * clicks / impressions) / (own[1] + 50), rel=1e-5)
    events = [activity.get(item, {"item_events": 0})["item_events"] for item in items]
    assert features.online_items(items)["item_events"].tolist() == events
