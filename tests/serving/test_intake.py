"""Event intake when the bus or the cache is in trouble, exposures while the bus is gone, and who may call what."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from experiments.assignment import Assignment
from features.activity_store import ERASED_NOTE, ActivityStore
from features.bus import EVENTS, EXPOSURES
from features.errors import BusFullError, BusUnavailableError
from features.event_codec import decode_event
from features.events import ACTION_CODES
from serving.answers import Answer
from serving.cache import CacheRead
from serving.config import ServingConfig, hash_token
from serving.errors import RequestError
from serving.exposure_log import ExposureLog
from serving.http import authorize
from serving.intake import EventIntake
from serving.metrics import GatewayMetrics
from serving.recent_activity import RecentEvent, encode_events
from serving.schemas import RecommendationRequest
from serving.sessions import SessionMerger

GOOD = {"user_id": "u", "item_id": "i", "action": "click", "event_id": "e1"}


class StubBus:
    """Keeps what is published, knows keys, fails on demand."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.keys: set[str] = set()
        self.failure: Exception | None = None

    async def publish_async(self, stream: str, payloads: Sequence[bytes], keys: Sequence[str]) -> list[str | None]:
        if self.failure is not None:
            raise self.failure
        ids = [None if key in self.keys else "1-1" for key in keys]
        self.published += [(stream, payload) for payload, one in zip(payloads, ids, strict=True) if one]
        self.keys |= set(keys)
        return ids


class StubMarks:
    """Keeps what was appended."""

    def __init__(self, up: bool = True) -> None:
        self.up, self.appended = up, list[dict[str, list[RecentEvent]]]()

    async def append_activity(self, events: dict[str, list[RecentEvent]], now_us: int) -> bool:
        self.appended.append(events)
        return self.up

    async def read(self, version: str | None, unit: str) -> CacheRead:
        events = [event for appended in self.appended for event in appended.get(unit, [])]
        return CacheRead(None, b"%016d" % len(self.appended) + encode_events(events), self.up)


def take(intake: EventIntake, body: object):
    return asyncio.run(intake.take(body))


@pytest.fixture
def bus() -> StubBus:
    return StubBus()


@pytest.fixture
def marks() -> StubMarks:
    return StubMarks()


@pytest.fixture
def intake(make_config, bus: StubBus, marks: StubMarks) -> EventIntake:
    return EventIntake(make_config(), bus, marks, GatewayMetrics())  # type: ignore[arg-type]


def test_events_reach_the_bus_and_move_the_marks(intake: EventIntake, bus: StubBus, marks: StubMarks) -> None:
    shown = {"user_id": "u", "item_id": "j", "action": "impression", "timestamp": "2026-11-01T00:00:00Z"}
    visitor = {"session_id": "s", "item_id": "k", "action": "dislike", "timestamp": 1_700_000_000}
    receipt = take(intake, {"events": [GOOD, shown, {"action": "view"}, visitor, GOOD | {"item_id": "other"}]})
    assert (receipt.accepted, receipt.duplicate_ids) == (4, [])
    assert [one["index"] for one in receipt.rejected] == [2]
    assert [one is None for one in receipt.event_ids] == [False, False, True, False, False]
    assert {stream for stream, _ in bus.published} == {EVENTS}
    assert [decode_event(payload)["item_id"] for _, payload in bus.published] == ["i", "j", "k", "other"]
    moved = marks.appended[0]
    assert [(event.item_id, event.positive) for event in moved["u:u"]] == [("i", True), ("other", True)]
    assert moved["s:s"] == [RecentEvent("k", 1_700_000_000_000_000, False, ACTION_CODES["dislike"])]


def test_a_repeated_event_is_a_duplicate_and_moves_no_mark(intake: EventIntake, marks: StubMarks) -> None:
    assert take(intake, GOOD).duplicate_ids == []
    again = {"accepted": 1, "duplicates": 1, "rejected": [], "event_ids": ["e1"], "duplicate_ids": ["e1"]}
    assert take(intake, GOOD).to_json() == again
    assert len(marks.appended) == 1


def test_an_event_that_was_on_the_bus_though_nobody_could_say_so_moves_the_mark_when_it_is_sent_again(
    intake: EventIntake, bus: StubBus, marks: StubMarks
) -> None:
    take(intake, GOOD | {"event_id": "e0", "item_id": "h"})
    bus.failure = BusUnavailableError("it does not answer in time")
    with pytest.raises(RequestError):
        take(intake, GOOD)
    bus.failure = None
    bus.keys.add("e1")  # it went on, and has taken it
    for _ in range(2):
        assert take(intake, {"events": [GOOD, GOOD | {"event_id": "e0", "item_id": "h"}]}).duplicate_ids == ["e1", "e0"]
    assert [[event.item_id for event in moved["u:u"]] for moved in marks.appended] == [["h"], ["i"]]
    marks.up, marks.appended = False, []
    take(intake, GOOD)
    assert not marks.appended  # what the user has done last cannot be read


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [(BusFullError("full"), 429, "bus_full"), (BusUnavailableError("gone"), 503, "bus_unavailable")],
)
def test_what_the_bus_does_not_take_is_not_accepted(
    intake: EventIntake, bus: StubBus, marks: StubMarks, failure: Exception, status: int, code: str
) -> None:
    bus.failure = failure
    with pytest.raises(RequestError) as caught:
        take(intake, GOOD)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert caught.value.headers["Retry-After"] == "1"
    assert not marks.appended


@pytest.mark.parametrize(("failure", "status"), [(BusFullError("full"), 429), (BusUnavailableError("gone"), 503)])
def test_a_session_that_the_bus_does_not_take_is_refused_as_events_are(
    make_config, bus: StubBus, marks: StubMarks, failure: Exception, status: int
) -> None:
    bus.failure = failure
    sessions = SessionMerger(make_config(), bus, marks, GatewayMetrics())  # type: ignore[arg-type]
    with pytest.raises(RequestError) as caught:
        asyncio.run(sessions.merge("s", {"user_id": "u"}))
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (status, "1")


def test_a_cache_that_is_gone_costs_no_event(intake: EventIntake, marks: StubMarks) -> None:
    marks.up = False
    assert take(intake, GOOD).accepted == 1


def test_what_an_erased_person_did_before_is_taken_no_more_and_what_comes_after_is(
    make_config, bus: StubBus, marks: StubMarks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.erased_senders.REREAD_S", 0.0)
    config, moment = make_config(), datetime.now(UTC) - timedelta(minutes=10)
    intake = EventIntake(config, bus, marks, GatewayMetrics())  # type: ignore[arg-type]

    def event(minutes: float, **more: object) -> dict[str, object]:
        return {"item_id": "i", "action": "click", "timestamp": (moment + timedelta(minutes=minutes)).isoformat(), **more}

    before = take(intake, event(-1, user_id="u", event_id="e0"))
    assert before.accepted == 1
    ActivityStore.of(config.paths).erase("u", ["s"], at=moment)
    bus.published.clear()
    marks.appended.clear()
    with pytest.raises(RequestError, match="before its person was erased") as caught:
        take(intake, event(-1, user_id="u", event_id="e0"))
    assert (caught.value.status, caught.value.field) == (422, "timestamp")
    late = [event(-1, user_id="u"), event(-1, session_id="s"), {"user_id": "v"}]
    good = [event(-1, user_id="v"), event(1, user_id="u"), event(-1, user_id="v", session_id="s"), event(1, session_id="s")]
    receipt = take(intake, {"events": [*late, *good]})
    assert [one["index"] for one in receipt.rejected] == [0, 1, 2]
    assert receipt.accepted == len(good) == len(bus.published)
    assert [one is None for one in receipt.event_ids] == [True] * 3 + [False] * 4
    assert {unit: len(events) for unit, events in marks.appended[0].items()} == {"u:v": 2, "u:u": 1, "s:s": 1}


def test_erasures_that_cannot_be_read_keep_no_event_out(
    make_config, bus: StubBus, marks: StubMarks, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config()
    intake = EventIntake(config, bus, marks, GatewayMetrics())  # type: ignore[arg-type]
    (config.paths.activity / ERASED_NOTE).mkdir(parents=True)  # no file to read
    assert take(intake, GOOD).accepted == 1
    assert "erasures cannot be read" in caplog.text


@pytest.mark.parametrize("body", [None, 5, [], {"events": {}}, {"events": [], "more": 1}, {}, {"events": [{}]}])
def test_no_valid_event_is_a_422(intake: EventIntake, body: object) -> None:
    with pytest.raises(RequestError) as caught:
        take(intake, body)
    assert caught.value.status == 422


def test_exposures_wait_for_the_bus_and_are_sent_once(make_config, bus: StubBus) -> None:
    assigned = [Assignment("e", "a", "user_id", "u", "1", None), Assignment("f", "b", "user_id", "u", None, {})]
    request = RecommendationRequest(user_id="u")
    answers = [Answer(f"r{n}", request, [{"item_id": "i"}], 1, "1", assigned, "cache", False, 0.1) for n in range(3)]

    async def run() -> None:
        log = ExposureLog(make_config(), bus, GatewayMetrics())  # type: ignore[arg-type]
        bus.failure = BusUnavailableError("gone")
        log.start()
        for answer in answers:
            log.add(answer)
        await asyncio.sleep(0.1)
        assert not bus.published
        bus.failure = None
        await log.stop()

    asyncio.run(run())
    assert [stream for stream, _ in bus.published] == [EXPOSURES] * 6
    assert bus.keys == {f"r{n}:{name}" for n in range(3) for name in "ef"}


TOKENS = {"read_token_sha256": hash_token("r"), "write_token_sha256": hash_token("w"), "admin_token_sha256": hash_token("a")}


def answered(config: ServingConfig, token: str | None, wanted: str) -> str | int:
    """The scope that a call is let through with, or the status of its refusal."""
    headers = [] if token is None else [(b"authorization", b"Bearer " + token.encode())]
    try:
        return authorize(config, {"headers": headers}, wanted)  # type: ignore[arg-type]
    except RequestError as error:
        return error.status


@pytest.mark.parametrize(
    ("token", "allowed"),
    [("r", {"read"}), ("w", {"read", "write"}), ("a", {"read", "write", "admin"}), ("x", set()), (None, set())],
)
@pytest.mark.parametrize("wanted", ["read", "write", "admin"])
def test_scopes(make_config, token: str | None, allowed: set[str], wanted: str) -> None:
    outcome = answered(make_config(open_loopback=False, **TOKENS), token, wanted)
    if wanted in allowed:
        assert outcome in {"read", "write", "admin"}
    else:
        assert outcome == (403 if allowed else 401)


@pytest.mark.parametrize("token", ["r", "w", "a", "x", None])
@pytest.mark.parametrize("wanted", ["read", "write", "admin"])
@pytest.mark.parametrize("kept", [(), ("read",), ("write",), ("read", "write")])
def test_a_scope_is_open_on_loopback_as_long_as_it_has_no_token(
    make_config, token: str | None, wanted: str, kept: tuple[str, ...]
) -> None:
    """`kept` scopes have a token, which is asked for on loopback too; one that is sent must be known everywhere."""
    scopes = {"r": "read", "w": "write", "a": "admin"}
    known = {scope: TOKENS[f"{scope}_token_sha256"] for scope in (*kept, "admin")}
    config = make_config(open_loopback=True, **{f"{scope}_token_sha256": digest for scope, digest in known.items()})
    outcome = answered(config, token, wanted)
    sent = scopes.get(token or "")
    if token is not None and sent not in known:
        assert outcome == 401
    elif wanted != "admin" and wanted not in kept:
        assert outcome == (sent or "loopback")
    elif token is None:
        assert outcome == 401
    else:
        assert outcome == (sent if ["read", "write", "admin"].index(str(sent)) >= ["read", "write", "admin"].index(wanted) else 403)
