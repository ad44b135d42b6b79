"""Session merges: whose event is whose after logins, in the store as read and in the live features."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from features.activity_log import activity_log
from features.activity_store import ActivityStore
from features.aggregates import UserStates
from features.bus import EVENTS, FEATURES_GROUP, SESSIONS, STORE_GROUP
from features.consumer import Consumer, ConsumerConfig
from features.errors import EventError, StoreError
from features.event_codec import decode_event, encode_event, event_table
from features.events import Event
from features.ingest import StoreEvents, StoreRows
from features.live_features import RefreshMergedUsers, UpdateFeatures, UserHistories
from features.redis_bus import RedisStreamBus
from features.session_merges import decode_merges, encode_merge, merge_log
from features.store_follower import StoreFollower
from features.user_dates import UserDates

START = datetime(2026, 11, 1, tzinfo=UTC)


def event(number: int, at: int, *, user: str | None = None, session: str | None = "s") -> bytes:
    moment = START + timedelta(minutes=at)
    made = Event(f"e{number}", f"i{number}", "click", moment, user, session, recommendation_id="r1", position=number)
    return encode_event(made, received_at=moment)


def merge(session: str, user: str, at: int) -> bytes:
    return encode_merge(uuid.uuid4().hex, session, user, int((START + timedelta(minutes=at)).timestamp() * 1e6))


def filled(root: Path, events: list[bytes], merges: list[bytes]) -> ActivityStore:
    store = ActivityStore(root)
    store.append(event_table([decode_event(one) for one in events]))
    if merges:
        merge_log(root, root / "_state").append(decode_merges(merges))
    return store


EVENTS_OF_A_DAY = [
    event(0, 0),
    event(1, 1),
    event(2, 5),
    event(3, 6, user="other"),
    event(4, 20),
    event(5, 2, session="elsewhere"),
    event(6, 3, user="u", session=None),
]


def test_what_was_received_until_the_login_is_the_accounts(tmp_path: Path) -> None:
    store = filled(tmp_path, EVENTS_OF_A_DAY, [merge("s", "u", 3), merge("s", "v", 10), merge("s", "u", 4), merge("x", "y", 5)])
    read = store.read(["event_id", "user_id", "session_id", "recommendation_id", "position"]).to_pylist()
    users = {row["event_id"]: row["user_id"] for row in read}
    assert users == {"e0": "u", "e1": "u", "e2": "v", "e3": "other", "e4": None, "e5": None, "e6": "u"}
    assert len(read) == 7
    kept = {row["event_id"]: (row["session_id"], row["recommendation_id"], row["position"]) for row in read}
    assert kept["e0"] == ("s", "r1", 0)
    assert store.read(["event_id"], user_ids=["u"])["event_id"].to_pylist() == ["e0", "e1", "e6"]
    assert store.read(["event_id"], user_ids=["u"], since=START + timedelta(minutes=1))["event_id"].to_pylist() == ["e1", "e6"]


def test_without_merges_nothing_changes(tmp_path: Path) -> None:
    store = filled(tmp_path, EVENTS_OF_A_DAY, [])
    assert store.read(["user_id"])["user_id"].to_pylist() == ["other", "u"] + [None] * 5


@pytest.mark.parametrize("payload", [b"?", b"[]", b"{}", b'{"session_id": "s", "user_id": 3}'])
def test_a_payload_that_is_no_merge(payload: bytes) -> None:
    with pytest.raises(EventError, match="not a session merge"):
        decode_merges([payload])


@pytest.mark.integration
def test_live_features_have_the_sessions_activity(redis_server: str, tmp_path: Path) -> None:
    bus = RedisStreamBus(redis_server, f"merge-{uuid.uuid4().hex[:8]}")
    pushed: dict[str, dict[str, object]] = {}

    class Sink:
        def push_users(self, states) -> None:
            pushed.update({row["user_id"]: row for row in states.to_pylist()})

    store = ActivityStore(tmp_path)
    dates = UserDates()
    follower = StoreFollower(store, [dates])

    def is_stored(entry: str) -> bool:
        return bus.has_finished(EVENTS, STORE_GROUP, entry)

    update = UpdateFeatures(UserHistories(store, dates=dates.dates), Sink, dict, None, is_stored, patience_s=0.1)
    until = START

    def reader(stream: str, group: str, process) -> Consumer:
        return Consumer(bus, ConsumerConfig(stream, group, "w", block_ms=1), process)

    store_events = reader(EVENTS, STORE_GROUP, StoreEvents(store, None, follower))
    features = reader(EVENTS, FEATURES_GROUP, update)
    store_merges = reader(SESSIONS, STORE_GROUP, StoreRows(merge_log(tmp_path, tmp_path / "_state"), decode_merges, EventError))
    refresh = RefreshMergedUsers(
        update,
        lambda entry: bus.has_finished(SESSIONS, STORE_GROUP, entry),
        lambda: int(until.timestamp() * 1e6),
        patience_s=0.05,
        joined=dates.join,
    )
    accounts = reader(SESSIONS, FEATURES_GROUP, refresh)
    for one in (EVENTS, SESSIONS):
        bus.ensure_groups(one)
    bus.publish(EVENTS, EVENTS_OF_A_DAY)
    while store_events.step() or features.step():
        pass
    assert pushed["u"]["user_events"] == 1
    bus.publish(SESSIONS, [merge("s", "u", 4), b"?"])
    with pytest.raises(StoreError, match="merged sessions wait"):
        accounts.step()  # the merge itself is not stored yet
    store_merges.step()
    with pytest.raises(StoreError, match="merged sessions wait"):
        accounts.step()  # events from before the login may be on their way
    until = START + timedelta(minutes=4)
    accounts.step()
    assert pushed["u"]["recent_items"] == ["i0", "i1", "i6"]
    log = activity_log(store.read(), "user")
    batch = [row for block in UserStates(log, {}).after(np.arange(len(log.ids)), log.indptr[1:]) for row in block.to_pylist()]
    assert pushed["u"] == next(row for row in batch if row["user_id"] == "u")
    assert [letter.payload for letter in bus.dead(SESSIONS, 5)] == [b"?"]
    bus.close()
