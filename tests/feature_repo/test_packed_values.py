"""A view's row in one field: every value comes back as it was written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.packed_values import PackedLayout

KINDS = {
    "events": "count",
    "at": "time_us",
    "age": "integer",
    "mean": "number",
    "member": "flag",
    "items": "texts",
    "name": "text",
    "ages": "integers",
    "shares": "numbers",
    "tiles": "tiles",
}
LAYOUT = PackedLayout(KINDS)
FIELDS = {
    "count": "int64_val",
    "time_us": "int64_val",
    "integer": "int64_val",
    "number": "double_val",
    "flag": "bool_val",
    "text": "string_val",
    "texts": "string_list_val",
    "integers": "int64_list_val",
    "numbers": "float_list_val",
    "tiles": "int32_list_val",
}
LONGS = st.integers(-(2**63), 2**63 - 1)
DRAWN: dict[str, st.SearchStrategy[Any]] = {
    "count": st.integers(0, 2**40),
    "time_us": LONGS,
    "integer": LONGS,
    "number": st.floats(),
    "flag": st.booleans(),
    "text": st.text(max_size=9),
    "texts": st.lists(st.text(max_size=9), max_size=60),
    "integers": st.lists(st.integers(-(2**61), 2**61), max_size=9),  # differences are whole numbers of 63 bits too
    "numbers": st.lists(st.floats(width=32), max_size=9),
    "tiles": st.lists(st.integers(0, 2**31 - 1) | st.just(0), max_size=30),
}


def value(kind: str, plain: Any) -> Value:
    made = Value()
    if plain is not None:
        if FIELDS[kind].endswith("_list_val"):
            getattr(made, FIELDS[kind]).val.extend(plain)
            getattr(made, FIELDS[kind]).SetInParent()
        else:
            setattr(made, FIELDS[kind], plain)
    return made


@given(st.fixed_dictionaries({name: st.none() | DRAWN[kind] for name, kind in KINDS.items()}))
def test_a_row_comes_back_as_it_was_written(row: dict[str, Any]) -> None:
    values = {name: value(KINDS[name], plain) for name, plain in row.items()}
    packed = LAYOUT.pack(values)
    found = LAYOUT.unpack(packed, list(KINDS))
    assert found is not None
    for name, plain in row.items():
        if plain is None:
            assert found[name].WhichOneof("val") is None
        elif KINDS[name].startswith("number"):
            kept = found[name].double_val if KINDS[name] == "number" else found[name].float_list_val.val
            np.testing.assert_array_equal(kept, plain)
        else:
            kept = getattr(found[name], FIELDS[KINDS[name]])
            assert (list(kept.val) if FIELDS[KINDS[name]].endswith("_list_val") else kept) == plain
            assert found[name].WhichOneof("val") == FIELDS[KINDS[name]]
    some = LAYOUT.unpack(packed, ["name", "tiles"])
    assert some is not None
    assert some == {name: found[name] for name in ("name", "tiles")}


def test_a_row_of_another_layout_is_not_misread() -> None:
    packed = LAYOUT.pack({"events": value("count", 3)})
    others = [PackedLayout({**KINDS, "more": "count"}), PackedLayout(dict(reversed(list(KINDS.items()))))]
    assert [other.unpack(packed, ["events"]) for other in others] == [None, None]


def test_a_row_that_is_cut_short_is_an_error_and_not_a_value() -> None:
    packed = LAYOUT.pack({"ages": value("integers", [5, 4, 3])})
    with pytest.raises(IndexError):
        LAYOUT.unpack(packed[:-2], ["ages"])


ARROW = {
    "count": pa.int64(),
    "time_us": pa.int64(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "flag": pa.bool_(),
    "text": pa.string(),
    "texts": pa.list_(pa.string()),
    "integers": pa.list_(pa.int64()),
    "numbers": pa.list_(pa.float32()),
    "tiles": pa.list_(pa.int32()),
}


@given(st.lists(st.fixed_dictionaries({name: st.none() | DRAWN[kind] for name, kind in KINDS.items()}), max_size=5), st.data())
def test_tables_are_packed_as_values_are(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    table = pa.table({name: pa.array([row[name] for row in rows], ARROW[kind]) for name, kind in KINDS.items()})
    start = data.draw(st.integers(0, len(rows)))
    expected = [LAYOUT.pack({name: value(KINDS[name], row[name]) for name in KINDS}) for row in rows[start:]]
    assert LAYOUT.pack_table(table.slice(start)) == expected
