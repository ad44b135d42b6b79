"""Rows by id: as a dict would tell them."""

from __future__ import annotations

import numpy as np
import pytest

from serving.id_rows import IdRows


class _Alike(str):
    """Words that all have one hash."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 7


def test_ids_have_the_rows_that_a_dict_would_tell() -> None:
    drawn = np.random.default_rng(3).permutation(5_000)
    ids = np.array([f"item {number}" for number in drawn] + ["", "ä", "一"], dtype=object)
    rows, expected = IdRows(ids), {item_id: row for row, item_id in enumerate(ids.tolist())}
    assert dict(rows) == expected
    assert len(rows) == len(expected)
    assert [rows.get(one) for one in ("item", "item 5000", "\x00", "Ä")] == [None] * 4
    assert "item 17" in rows
    asked = [*ids.tolist(), "item", "Ä", *ids[:3].tolist()]
    assert rows.find(asked).tolist() == [expected.get(one, -1) for one in asked]
    with pytest.raises(KeyError, match="no such"):
        rows["no such"]


def test_ids_of_equal_hash_are_told_apart() -> None:
    ids = np.array([_Alike(f"i{number}") for number in range(40)], dtype=object)
    rows = IdRows(ids)
    assert [rows[one] for one in ids] == list(range(40))
    assert rows.find([*ids, _Alike("i40")]).tolist() == [*range(40), -1]
    assert _Alike("i40") not in rows


def test_no_ids_have_no_rows() -> None:
    rows = IdRows(np.array([], dtype=object))
    assert rows.get("i") is None
    assert rows.find(["i"]).tolist() == [-1]
