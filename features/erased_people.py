"""Who was erased, without saying whom: keyed hashes and the moment of the erasure, in one small file beside the events.

An event of an erased person that happened until then is not stored again, wherever it comes from: the bus, a client that sends
late, an import of old files. What happens afterwards is new activity of somebody who came back.

A hash is two keyed SipHash-64 lanes of the id, with a random key per store: it tells whether an id that is at hand was erased, and
does not give ids away to somebody without the store.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.store_files import PartFolder

_KEYS = ("user", "session")


class ErasedPeople:
    """The erasures of one store.

    Args:
        folder: of the store.
        name: of the file in it.
    """

    def __init__(self, folder: PartFolder, name: str) -> None:
        self._folder, self._name = folder, name
        self._content: bytes | None = None
        self._hash_key = secrets.token_hex(16)
        self._at_us: dict[str, dict[tuple[int, int], int]] = {kind: {} for kind in _KEYS}
        self._count = 0

    def count(self) -> int:
        """How many erasures there have been."""
        self._load()
        return self._count

    def stand_in(self, user_id: str) -> str:
        """The hash of an id: the same for this store at any time after its first erasure."""
        self._load()
        ((high, low),) = self._lanes(pa.array([user_id], pa.string()))
        return f"{high:016x}{low:016x}"

    def add(self, user_ids: Sequence[str], session_ids: Sequence[str], at: datetime) -> None:
        """Note an erasure; durable when this returns."""
        self._load()
        at_us = int(at.astimezone(UTC).timestamp() * 1e6)
        for kind, ids in zip(_KEYS, (user_ids, session_ids), strict=True):
            for lanes in self._lanes(pa.array(ids, pa.string())):
                self._at_us[kind][lanes] = max(at_us, self._at_us[kind].get(lanes, at_us))
        self._count += 1
        people = {kind: {f"{high:016x}{low:016x}": at for (high, low), at in self._at_us[kind].items()} for kind in _KEYS}
        self._folder.write_note(self._name, json.dumps({"hash_key": self._hash_key, "count": self._count, **people}).encode())

    def among(self, user_ids: Sequence[str]) -> set[str]:
        """Those of the ids that were erased at any time."""
        self._load()
        known = self._at_us["user"]
        return {one for one, lanes in zip(user_ids, self._lanes(pa.array(user_ids, pa.string())), strict=True) if lanes in known}

    def without(self, events: pa.Table) -> pa.Table:
        """The events that did not happen before their person was erased."""
        self._load()
        gone = self.happened_before(events)
        return events.filter(pa.array(~gone)) if gone.any() else events

    def reread(self) -> bool:
        """Learn of erasures by other processes; whether there has been any at all."""
        self._load()
        return any(self._at_us.values())

    def happened_before(self, events: pa.Table) -> npt.NDArray[np.bool_]:
        """(n,) bool: whether an event happened before its person was erased, as far as erasures are known; reads no file.

        Args:
            events: n rows with `user_id`, `session_id` and `timestamp`.
        """
        if not any(self._at_us.values()) or not events.num_rows:
            return np.zeros(events.num_rows, dtype=np.bool_)
        time_us = pc.cast(events["timestamp"], pa.int64()).to_numpy()
        user_until, session_until = (self._erased_until(events[f"{kind}_id"], self._at_us[kind]) for kind in _KEYS)
        anonymous = events["user_id"].combine_chunks().is_null().to_numpy(zero_copy_only=False)
        return np.asarray(time_us <= np.where(anonymous, session_until, user_until))

    def _erased_until(self, ids: pa.ChunkedArray, known: dict[tuple[int, int], int]) -> npt.NDArray[np.int64]:
        """(n,) int64: when the person of each row was erased; the least number where never."""
        never = np.iinfo(np.int64).min
        encoded = ids.combine_chunks().dictionary_encode()
        until = [known.get(lanes, never) for lanes in self._lanes(encoded.dictionary)] if known else []
        if not known:
            return np.full(len(ids), never)
        codes = pc.fill_null(encoded.indices, len(until)).to_numpy(zero_copy_only=False)
        return np.array([*until, never], dtype=np.int64)[codes]

    def _lanes(self, ids: pa.Array) -> list[tuple[int, int]]:
        if not len(ids):
            return []
        texts = ids.to_numpy(zero_copy_only=False)
        keys = (self._hash_key[:16], self._hash_key[16:])
        high, low = (pd.util.hash_array(texts, hash_key=key, categorize=False).tolist() for key in keys)
        return list(zip(high, low, strict=True))

    def _load(self) -> None:
        content = self._folder.note(self._name)
        if content is None or content == self._content:
            return
        told = json.loads(content)
        self._content, self._hash_key, self._count = content, told["hash_key"], int(told["count"])
        self._at_us = {kind: {(int(one[:16], 16), int(one[16:], 16)): at for one, at in told[kind].items()} for kind in _KEYS}
