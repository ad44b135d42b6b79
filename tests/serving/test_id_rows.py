"""Rows by id: as a dict would tell them."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import pytest

from serving.id_rows import IdRows, id_hashes


def test_ids_have_the_rows_that_a_dict_would_tell() -> None:
    drawn = np.random.default_rng(3).permutation(5_000)
    ids = np.array([f"item {number}" for number in drawn] + ["", "ä", "一"], dtype=object)
    rows, expected = IdRows(ids), {item_id: row for row, item_id in enumerate(ids.tolist())}
    assert dict(rows) == expected
    assert len(rows) == len(expected)
    assert [rows.get(one) for one in ("item", "item 5000", "\x00", "Ä", "\ud800")] == [None] * 5
    assert "item 17" in rows
    asked = [*ids.tolist(), "item", "Ä", *ids[:3].tolist()]
    assert rows.find(asked).tolist() == [expected.get(one, -1) for one in asked]
    with pytest.raises(KeyError, match="no such"):
        rows["no such"]


def test_ids_of_equal_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    alike = np.array(["plumless", "buckeroo"], dtype=object)  # CRC-32's own
    assert len(set(id_hashes(alike.tolist()))) == 1
    assert IdRows(alike).find(["buckeroo", "plumless", "other"]).tolist() == [1, 0, -1]
    monkeypatch.setattr("serving.id_rows.crc32", lambda data: 7)
    ids = np.array([f"i{number}" for number in range(40)], dtype=object)
    rows = IdRows(ids)
    assert [rows[one] for one in ids] == list(range(40))
    assert rows.find([*ids, "i40"]).tolist() == [*range(40), -1]
    assert "i40" not in rows
    assert sorted(rows.of_hashes(np.array([6, 7], np.uint32)).tolist()) == list(range(40))


def test_ids_that_come_later_are_found_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.array(["plumless", *(f"item {number}" for number in range(3_000)), "buckeroo", "ä"], dtype=object)
    before = IdRows(ids[:2_000])
    hashed = []
    monkeypatch.setattr("serving.id_rows.crc32", lambda data: hashed.append(data) or crc32(data))
    rows = IdRows(ids, before)
    assert len(hashed) == len(ids) - 2_000
    assert dict(rows) == {item_id: row for row, item_id in enumerate(ids.tolist())}
    assert rows.find([*ids.tolist(), "item 3000"]).tolist() == [*range(len(ids)), -1]
    asked = id_hashes(["item 5", "nothing", "buckeroo"])
    assert sorted(rows.of_hashes(asked).tolist()) == [0, 6, len(ids) - 2]


def test_no_ids_have_no_rows() -> None:
    rows = IdRows(np.array([], dtype=object))
    assert rows.get("i") is None
    assert rows.find(["i"]).tolist() == [-1]
    assert rows.of_hashes(id_hashes(["i"])).tolist() == []
