"""The second half of an import: judged rows become events of the activity store, a group of whole users at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from features.activity_store import ActivityStore
from features.histories import FileTraits, to_events
from features.paths import DatasetPaths
from features.row_buffer import RowBuffer

Progress = Callable[[str, int, int | None], None]
"""Called with the stage (`reading`, `catalogue`, `writing`), rows done and rows expected (None where unknown)."""


@dataclass
class EventCounts:
    """Of the valid distinct interactions of a file; repeats within it, rows stored before, rows of erased people beside them.

    `unknown_actions` counts the interactions of each action that is not known.
    """

    users: int
    items: set[str]
    interactions: int
    repeated: int
    stored_before: int
    erased: int
    single_event_users: int
    unknown_actions: Counter[str]


def write_events(
    buffer: RowBuffer,
    traits: FileTraits,
    paths: DatasetPaths,
    started_at: datetime,
    known_actions: frozenset[str],
    progress: Progress,
) -> EventCounts:
    """Store the rows of a buffer.

    Args:
        buffer: all valid rows of the file.
        traits: of the whole file.
        paths: where the dataset lives.
        started_at: the moment of the import.
        known_actions: other actions are flagged.
        progress: told after each group.

    Raises:
        StoreError: the store refuses.
    """
    store = ActivityStore.of(paths)
    counts = EventCounts(0, set(), 0, 0, 0, 0, 0, Counter())
    done = 0
    progress("writing", 0, buffer.rows)
    for group in buffer.groups():
        events, repeated = to_events(group, traits, dataset=paths.dataset, received_at=started_at, known_actions=known_actions)
        lengths = pc.value_counts(pc.coalesce(events["user_id"], events["session_id"]).combine_chunks()).field("counts")
        counts.users += len(lengths)
        counts.single_event_users += int(pc.sum(pc.equal(lengths, 1)).as_py() or 0)
        counts.items.update(pc.unique(events["item_id"]).to_pylist())
        counts.interactions += events.num_rows
        counts.unknown_actions.update(_unknown(events["action"], known_actions))
        counts.repeated += repeated
        stored = store.append(events)
        counts.stored_before += stored.duplicates
        counts.erased += stored.erased
        done += group.num_rows
        progress("writing", done, buffer.rows)
    return counts


def _unknown(actions: pa.ChunkedArray, known: frozenset[str]) -> dict[str, int]:
    """Rows of each action that is not known."""
    counts = pc.value_counts(actions.combine_chunks())
    numbers = zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
    return {action: number for action, number in numbers if action not in known}
