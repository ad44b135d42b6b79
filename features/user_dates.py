"""On which days a user or an anonymous session has events: what bounds the first look at somebody to a few files of the store.

An entry is 12 bytes: a 64-bit hash of the id and the day. Entries stand in sorted runs whose sizes fall geometrically, so adding is
cheap and a look-up is a few binary searches. A collision of hashes costs a look into a file too many and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.request_columns import DAY_US

Keys = npt.NDArray[np.uint64]
Days = npt.NDArray[np.int32]
_EPOCH = date(1970, 1, 1)
_SESSION = "\x1f"
"""Sets keys of sessions apart from those of users."""


class UserDates:
    """The days of everybody. A state for `features.store_follower`; hold its lock while asking."""

    columns = ("user_id", "session_id", "timestamp")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._runs: list[tuple[Keys, Days]] = []

    def add(self, events: pa.Table) -> None:
        """Note the days of events."""
        anonymous = pc.binary_join_element_wise(_SESSION, events["session_id"], "", null_handling="replace", null_replacement="")
        names = pc.coalesce(events["user_id"], anonymous).to_numpy(zero_copy_only=False)
        self._note(_hashes(names), (pc.cast(events["timestamp"], pa.int64()).to_numpy() // DAY_US).astype(np.int32))

    def join(self, session_id: str, user_id: str) -> None:
        """A session's days are the user's too."""
        days = self._days([_SESSION + session_id])
        if len(days):
            self._note(np.repeat(_hashes(np.array([user_id], dtype=object)), len(days)), days)

    def dates(self, user_ids: Sequence[str]) -> list[str]:
        """Days, as YYYY-MM-DD, on which any of the users has events."""
        return [(_EPOCH + timedelta(days=int(day))).isoformat() for day in self._days(user_ids)]

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._runs)

    def _days(self, names: Iterable[str]) -> Days:
        wanted = _hashes(np.array(list(names), dtype=object))
        found = []
        for keys, days in self._runs:
            first, last = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
            found += [days[lo:hi] for lo, hi in zip(first, last, strict=True) if lo < hi]
        return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int32)

    def _note(self, keys: Keys, days: Days) -> None:
        self._runs.append(_sorted(keys, days))
        while len(self._runs) >= 2 and len(self._runs[-2][0]) <= 2 * len(self._runs[-1][0]):
            (newer_keys, newer_days), (older_keys, older_days) = self._runs.pop(), self._runs.pop()
            self._runs.append(_sorted(np.concatenate([older_keys, newer_keys]), np.concatenate([older_days, newer_days])))


def _hashes(names: npt.NDArray[np.object_]) -> Keys:
    return np.asarray(pd.util.hash_array(names, categorize=False), dtype=np.uint64) if len(names) else np.empty(0, np.uint64)


def _sorted(keys: Keys, days: Days) -> tuple[Keys, Days]:
    """Each pair once, by key and day."""
    order = np.lexsort((days, keys))
    keys, days = keys[order], days[order]
    new = np.ones(len(keys), dtype=np.bool_)
    new[1:] = (keys[1:] != keys[:-1]) | (days[1:] != days[:-1])
    return keys[new], days[new]


class LockedDates:
    """Asks and changes dates under the lock of whoever feeds them."""

    def __init__(self, dates: UserDates, lock: AbstractContextManager[object]) -> None:
        self._dates, self._lock = dates, lock

    def dates(self, user_ids: Sequence[str]) -> list[str]:
        """See `UserDates.dates`."""
        with self._lock:
            return self._dates.dates(user_ids)

    def join(self, session_id: str, user_id: str) -> None:
        """See `UserDates.join`."""
        with self._lock:
            self._dates.join(session_id, user_id)
