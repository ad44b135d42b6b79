"""Trending items: counts of positive events that fade, overall and by the region and language of the event and the item's category.

The worker keeps `TrendingCounts` level with the activity store and posts a `TrendingBoard` on the Redis board; whoever answers
`/v1/trending` reads it:

    reader = RedisBoard(config.features_url, config.dataset, site=config.site)
    board = TrendingBoard.decode(reader.get(TRENDING))        # None, or a board; some ms: in a thread, every few seconds
    item_ids, scores = board.top("1d", region="es")           # best first, (n,) each

`top` of a segment that nobody acted in is empty: then fall back to popular items. A segment keeps its 2,000 (overall) or 300 items
of each window, so narrow filters are better asked of the segment that they name (`category="Comedy"`).

A count fades by half in half its window: an event counts 1 at first, 1/4 after one window, 1/1024 after five. Counts are kept as
of one moment and brought to another by one factor, so the order of arrival does not matter and nothing has to be swept: the same
sum whether events come one by one or all at once. Events without a region or language count for their other segments alone.

Legend: `E` events, `R` rows (segment, item), `W` windows.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.activity_log import positive_events
from features.aggregates import ItemCategories

TRENDING = "trending"
"""Name of the board's value."""

WINDOWS_S: dict[str, int] = {"1h": 3_600, "1d": 86_400, "7d": 7 * 86_400}
"""Windows by name, in seconds; their half-lives are half of that."""

TOLERANCE_US = 300_000_000
"""An event dated later than this in the future is the fault of a clock, and would outshine all others."""

MAX_ROWS = 500_000
"""Segments x items kept, about 250 bytes each; beyond it those that faded furthest go."""

TOP_OVERALL = 2_000
TOP_OF_SEGMENT = 300
MAX_SEGMENTS = 400
"""Segments on the board, the busiest."""

OVERALL = ""
_HALF_LIVES_US = np.array([seconds * 500_000 for seconds in WINDOWS_S.values()], dtype=np.float64)
_LEAST = 2.0**-20
"""A count below this in all windows is forgotten."""
_MOVE_AT = 64.0
"""Half-lives of the shortest window after which counts are brought to a later moment: floats stay far from their limits."""
_FAINT = -1000.0

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.object_]


def segment(*, region: str | None = None, language: str | None = None, category: str | None = None) -> str:
    """Name of a segment; the first that is given counts."""
    for kind, value in (("region", region), ("language", language), ("category", category)):
        if value is not None:
            return f"{kind}={value}"
    return OVERALL


class TrendingCounts:
    """Faded counts of every segment and item. A state for `features.store_follower`.

    Args:
        categories: item_id -> categories now.
        now_us: the clock.
    """

    columns = ("item_id", "action", "flag", "timestamp", "context")

    def __init__(self, categories: Callable[[], ItemCategories], now_us: Callable[[], int]) -> None:
        self._categories, self._now_us = categories, now_us
        self.added = 0
        """Events counted; a change tells that the board is another."""
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._row_of: dict[tuple[str, str], int] = {}
        self._counts: FloatArray = np.zeros((1024, len(WINDOWS_S)))
        self._as_of_us = 0
        self._newest_us = 0

    def add(self, events: pa.Table) -> None:
        """Count events: `columns` of EVENT_SCHEMA."""
        events = positive_events(events)
        time_us = pc.cast(events["timestamp"], pa.int64()).to_numpy()
        known = time_us <= self._now_us() + TOLERANCE_US
        if not known.any():
            return
        events, time_us = events.filter(pa.array(known)), time_us[known]
        self.added += len(events)
        newest = int(time_us.max())
        self._newest_us = max(self._newest_us, newest)
        self._move_to(newest)
        age = np.maximum((time_us - self._as_of_us)[:, None] / _HALF_LIVES_US, _FAINT)
        keys, event = self._keys(events)
        rows = np.fromiter((self._row(key) for key in keys), dtype=np.int64, count=len(keys))
        np.add.at(self._counts, rows, np.exp2(age)[event])
        if len(self._row_of) > MAX_ROWS:
            self._forget()

    def board(self) -> TrendingBoard:
        """What is trending as of now, or as of the newest event where all are old."""
        names: dict[str, list[tuple[str, int]]] = {}
        for (of_segment, item), row in self._row_of.items():
            names.setdefault(of_segment, []).append((item, row))
        busiest = sorted(names, key=lambda name: (name != OVERALL, -len(names[name]), name))[: MAX_SEGMENTS + 1]
        segments, items, counts = list[str](), list[str](), list[FloatArray]()
        for name in busiest:
            members = self._counts[[row for _, row in names[name]]]
            kept = _best_of_each(members, TOP_OVERALL if name == OVERALL else TOP_OF_SEGMENT)
            segments += [name] * len(kept)
            items += [names[name][position][0] for position in kept]
            counts.append(members[kept])
        rows = np.concatenate(counts) if counts else np.empty((0, len(WINDOWS_S)))
        as_of_us = max(self._newest_us, self._as_of_us)
        faded = rows * np.exp2((self._as_of_us - as_of_us) / _HALF_LIVES_US)
        table = pa.table({"segment": segments, "item_id": items, **{name: faded[:, w] for w, name in enumerate(WINDOWS_S)}})
        return TrendingBoard(as_of_us, table)

    def _keys(self, events: pa.Table) -> tuple[list[tuple[str, str]], npt.NDArray[np.int64]]:
        """(segment, item) pairs that the events count for, and the number of the event behind each."""
        categories = self._categories()
        keys, numbers = list[tuple[str, str]](), list[int]()
        contexts = {text: _segments_of(text) for text in events["context"].unique().to_pylist()}
        of_item = {
            item: [segment(category=name) for name in categories.get(item, ())] for item in events["item_id"].unique().to_pylist()
        }
        for number, (item, context) in enumerate(zip(events["item_id"].to_pylist(), events["context"].to_pylist(), strict=True)):
            for name in (OVERALL, *contexts[context], *of_item[item]):
                keys.append((name, item))
                numbers.append(number)
        return keys, np.array(numbers, dtype=np.int64)

    def _row(self, key: tuple[str, str]) -> int:
        row = self._row_of.setdefault(key, len(self._row_of))
        if row == len(self._counts):
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        return row

    def _move_to(self, newest_us: int) -> None:
        if newest_us - self._as_of_us > _MOVE_AT * _HALF_LIVES_US.min():
            self._counts *= np.exp2(np.maximum((self._as_of_us - newest_us) / _HALF_LIVES_US, _FAINT))
            self._as_of_us = newest_us
            self._forget()

    def _forget(self) -> None:
        """Drop rows that have faded away, and the faintest where there are still too many."""
        used = len(self._row_of)
        strength = self._counts[:used].max(axis=1, initial=0.0)
        least = _LEAST
        if used > MAX_ROWS:
            least = max(least, float(np.partition(strength, used - MAX_ROWS // 2)[used - MAX_ROWS // 2]))
        kept = [(key, row) for key, row in self._row_of.items() if strength[row] >= least]
        counts = self._counts[[row for _, row in kept]]
        self._row_of = {key: row for row, (key, _) in enumerate(kept)}
        self._counts = np.concatenate([counts, np.zeros((max(1024, len(counts)), len(WINDOWS_S)))])


@dataclass(frozen=True)
class TrendingBoard:
    """What is trending as of one moment.

    Args:
        as_of_us: the moment, of the newest event.
        table: `segment`, `item_id` and one faded count a window.
    """

    as_of_us: int
    table: pa.Table

    def encode(self) -> bytes:
        """As bytes for the board."""
        table = self.table.replace_schema_metadata({"as_of_us": str(self.as_of_us)})
        table = table.set_column(0, "segment", table["segment"].dictionary_encode())
        out = io.BytesIO()
        with pa.ipc.new_stream(out, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table)
        return out.getvalue()

    @classmethod
    def decode(cls, value: bytes | None) -> TrendingBoard | None:
        """What `encode` wrote; None for nothing or for what cannot be read."""
        if not value:
            return None
        try:
            table = pa.ipc.open_stream(value).read_all()
            as_of_us = int((table.schema.metadata or {})[b"as_of_us"])
            table = table.set_column(0, "segment", table["segment"].cast(pa.string()))
        except (pa.ArrowException, KeyError, ValueError, OSError):
            return None
        return cls(as_of_us, table)

    def top(
        self, window: str, *, region: str | None = None, language: str | None = None, category: str | None = None
    ) -> tuple[IdArray, FloatArray]:
        """Items of one segment with their counts, best first; equal counts by id. Give at most one of region, language, category.

        Args:
            window: a key of `WINDOWS_S`.
            region, language: where the events came from, not what the item is for.
            category: of the item.

        Raises:
            KeyError: no such window.
        """
        found = self._segments.get(segment(region=region, language=language, category=category))
        if found is None:
            return np.empty(0, dtype=np.object_), np.empty(0)
        items = self.table["item_id"].take(pa.array(found)).to_numpy(zero_copy_only=False)
        counts = self.table[window].take(pa.array(found)).to_numpy()
        order = np.lexsort((items.astype(str), -counts))
        order = order[counts[order] >= _LEAST]
        return np.asarray(items[order], dtype=np.object_), counts[order]

    @cached_property
    def _segments(self) -> Mapping[str, npt.NDArray[np.int64]]:
        names = self.table["segment"].to_numpy(zero_copy_only=False)
        return {str(name): np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())}


def _segments_of(context: str | None) -> Sequence[str]:
    """Segments that an event's context names."""
    if not context:
        return ()
    given = json.loads(context)
    values = [(kind, given.get(kind)) for kind in ("region", "language")]
    return [f"{kind}={value}" for kind, value in values if isinstance(value, str) and 0 < len(value) <= 64]


def _best_of_each(counts: FloatArray, top: int) -> npt.NDArray[np.int64]:
    """Rows that are among the `top` largest of any window."""
    if len(counts) <= top:
        return np.arange(len(counts))
    return np.unique(np.argpartition(-counts, top - 1, axis=0)[:top])
