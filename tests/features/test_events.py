"""The event on the wire: what is taken, what becomes of odd times, and what is refused by name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from features.errors import EventError
from features.events import Event, parse_event

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
GOOD = {"user_id": "u", "item_id": "i", "action": "click"}


def parse(**changes: object) -> Event:
    return parse_event(GOOD | changes, dataset="d", now=NOW)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("2026-11-24T11:59:59.5Z", NOW - timedelta(seconds=0.5)),
        ("2026-11-24T13:30:00+02:00", NOW - timedelta(minutes=30)),
        ("2026-11-24 11:00:00", NOW - timedelta(hours=1)),
        (NOW.timestamp() - 60, NOW - timedelta(minutes=1)),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        ("1900-01-01", datetime(1900, 1, 1, tzinfo=UTC)),
        # A client's clock that is ahead, by seconds or by a wrong time zone: the receiver's time.
        ("2026-11-24T12:00:03Z", NOW),
        ("2026-11-25T11:59:59Z", NOW),
    ],
)
def test_a_time_is_taken_as_given_and_never_lies_in_the_future(given: object, kept: datetime) -> None:
    assert parse(timestamp=given).timestamp == kept


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("2026-11-25T12:00:01Z", "more than a day ahead"),
        ("2199-01-01", "more than a day ahead"),
        (1_764_000_000_000, "outside the years 1900 to 2200; is it in milliseconds"),
        ("1899-12-31", "outside the years"),
        (-1e15, "outside the years"),
        ("yesterday", "neither ISO 8601 nor epoch seconds"),
        (True, "neither ISO 8601 nor epoch seconds"),
        ([2026], "neither ISO 8601 nor epoch seconds"),
    ],
)
def test_a_time_that_cannot_be_meant_is_refused(given: object, message: str) -> None:
    with pytest.raises(EventError, match=message) as caught:
        parse(timestamp=given)
    assert caught.value.field == "timestamp"


def test_an_id_derived_from_the_fields_repeats_although_the_clock_moves_on() -> None:
    ahead = GOOD | {"timestamp": "2026-11-24T12:30:00Z"}
    first = parse_event(ahead, dataset="d", now=NOW)
    later = parse_event(ahead, dataset="d", now=NOW + timedelta(minutes=5))
    assert first.event_id == later.event_id
    assert first.timestamp < later.timestamp
    for other in ({"action": "view"}, {"item_id": "j"}, {"value": 1}, {"user_id": "v"}):
        assert parse_event(ahead | other, dataset="d", now=NOW).event_id != first.event_id
    assert parse_event(ahead, dataset="e", now=NOW).event_id != first.event_id


def test_without_a_time_each_call_is_a_new_event() -> None:
    assert parse().event_id != parse().event_id
    assert parse().timestamp == NOW


def test_an_unknown_action_is_kept_with_a_flag_and_a_configured_one_without() -> None:
    assert parse(action="wishlist").flag == "unknown_action"
    assert parse_event(GOOD | {"action": "wishlist"}, dataset="d", now=NOW, extra_actions=frozenset({"wishlist"})).flag is None
    assert parse().flag is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"item_id": None}, "item_id"),
        ({"item_id": ""}, "item_id"),
        ({"item_id": "x" * 257}, "item_id"),
        ({"item_id": "\ud800"}, "item_id"),
        ({"item_id": "a\0b"}, "item_id"),
        ({"user_id": "\0"}, "user_id"),
        ({"item_id": ["i"]}, "item_id"),
        ({"item_id": True}, "item_id"),
        ({"user_id": None}, "user_id"),
        ({"action": None}, "action"),
        ({"value": float("nan")}, "value"),
        ({"value": "5"}, "value"),
        ({"position": -1}, "position"),
        ({"position": 1.0}, "position"),
        ({"context": "phone"}, "context"),
        ({"context": {"a": "x" * 4096}}, "context"),
        ({"context": {"a": 1 << 70}}, "context"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_field_is_refused_by_name(changes: dict[str, object], field: str) -> None:
    with pytest.raises(EventError) as caught:
        parse(**changes)
    assert caught.value.field == field
