"""Events survive the bus bit for bit; what is not an event is refused by name."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import EventError
from features.event_codec import decode_event, encode_event, event_table, to_microseconds
from features.events import EVENT_SCHEMA, Event

NOW = datetime(2026, 11, 23, 8, 0, 0, 123457, UTC)
ids = st.text(alphabet='aZ09é中😀 |"\\\x00', min_size=1, max_size=8)
times = st.datetimes(datetime(1900, 1, 1), datetime(2199, 1, 1), timezones=st.just(UTC))


@settings(max_examples=50)
@given(
    event=st.builds(
        Event,
        event_id=ids,
        item_id=ids,
        action=ids,
        timestamp=times,
        user_id=ids,
        session_id=st.none() | ids,
        value=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        recommendation_id=st.none() | ids,
        position=st.none() | st.integers(0, 99_999),
        context=st.dictionaries(ids, ids, max_size=3),
        flag=st.none() | ids,
    ),
    received_at=times,
)
def test_a_row_survives_the_bus(event: Event, received_at: datetime) -> None:
    row = decode_event(encode_event(event, received_at=received_at, site="north"))
    table = event_table([row])
    assert table.schema == EVENT_SCHEMA
    expected = event.to_row(received_at=received_at, site="north")
    assert table.to_pylist() == [expected]


@given(times)
def test_microseconds_are_exact(moment: datetime) -> None:
    assert pa.array([to_microseconds(moment)], pa.timestamp("us", tz="UTC")).to_pylist() == [moment]


GOOD = json.loads(encode_event(Event("e", "i", "view", NOW, user_id="u", value=1.5), received_at=NOW))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"event_id":"e"}', "site is missing"),
        ({**GOOD, "item_id": 7}, "item_id 7 is not str"),
        ({**GOOD, "timestamp": "now"}, "timestamp 'now' is not int"),
        ({**GOOD, "timestamp": True}, "timestamp True is not int"),
        ({**GOOD, "timestamp": 1 << 70}, "is not int"),
        ({**GOOD, "timestamp": (1 << 64) - 1}, "out of range"),
        ({**GOOD, "position": 1 << 31}, "out of range"),
        ({**GOOD, "value": "high"}, "value 'high' is not float"),
        ({**GOOD, "colour": "red"}, "unknown column 'colour'"),
        ({name: value for name, value in GOOD.items() if name != "user_id"}, "one of user_id and session_id"),
    ],
)
def test_what_is_not_an_event_is_refused_by_name(payload: bytes | dict[str, object], message: str) -> None:
    with pytest.raises(EventError, match=message):
        decode_event(payload if isinstance(payload, bytes) else json.dumps(payload).encode())


def test_an_integer_value_is_a_number() -> None:
    assert event_table([decode_event(json.dumps({**GOOD, "value": 4}).encode())])["value"].to_pylist() == [4.0]
