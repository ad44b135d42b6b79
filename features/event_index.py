"""The id index of an activity store: which event ids are stored, as sorted segments of 128-bit keys on disk.

Owns membership only. De-duplication is over all dates, so an append must not read the Parquet: it looks its ids up here. Segments
are memory-mapped and merged so that their sizes fall geometrically (log-structured), which keeps a lookup at O(log segments x log
rows) and rewrites each key O(log rows) times in its life. The index is a derived thing: `activity_store` rebuilds it from the
Parquet when it is missing or behind.

A key is two keyed SipHash-64 lanes of the id. With 10^9 ids the chance that any two share both lanes is below 10^-20, and the
hash key is random per store, so ids cannot be crafted to collide.

Legend: `n` ids asked or added, `S` ids of a segment. A segment file is uint64 (2, S), columns sorted by the first lane.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

KeyArray = npt.NDArray[np.uint64]

MAX_SEGMENT_IDS = 1 << 25
"""Segments are merged up to this size (512 MiB), so that a merge's memory is bounded."""

_MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass
class Manifest:
    """What the index holds.

    Args:
        hash_key: 32 hex digits; the keys of the two SipHash lanes.
        segments: file names, largest first.
        ids: number of ids in them.
        files: number of data files that they cover.
        next_sequence: number of the next transaction.
    """

    hash_key: str
    segments: list[str] = field(default_factory=list)
    ids: int = 0
    files: int = 0
    next_sequence: int = 1
    format: int = _FORMAT


class EventIndex:
    """The index in one folder. All writing happens under the store's lock; reading needs none.

    Args:
        folder: where the segments live.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest(secrets.token_hex(16))
        self._segments: dict[str, KeyArray] = {}

    def load(self) -> bool:
        """Read the manifest; False where it or a segment is missing or damaged, so that the index must be rebuilt."""
        try:
            manifest = Manifest(**json.loads((self.folder / _MANIFEST).read_text()))
            if manifest.format != _FORMAT:
                return False
            segments = {
                name: self._segments[name] if name in self._segments else np.load(self.folder / name, mmap_mode="r")
                for name in manifest.segments
            }
        except (OSError, EOFError, ValueError, TypeError):
            return False
        if sum(segment.shape[1] for segment in segments.values()) != manifest.ids:
            return False
        if manifest.ids and not manifest.files:
            return False  # a rebuild died half-way
        self.manifest, self._segments = manifest, segments
        return True

    def reset(self) -> None:
        """Start an empty index with a new hash key, keeping the transaction number."""
        sequence = self.manifest.next_sequence
        self._segments = {}
        self.manifest = Manifest(secrets.token_hex(16), next_sequence=sequence)
        self.folder.mkdir(parents=True, exist_ok=True)

    def sweep(self) -> None:
        """Delete segment files that the manifest does not name: what a dead writer left."""
        for path in self.folder.glob("*.npy*"):
            if path.name not in self.manifest.segments:
                path.unlink(missing_ok=True)

    def keys(self, event_ids: pa.ChunkedArray | pa.Array) -> KeyArray:
        """(2, n) uint64 keys of ids."""
        ids = event_ids.to_numpy(zero_copy_only=False)
        half = len(self.manifest.hash_key) // 2
        lanes = [
            pd.util.hash_array(ids, hash_key=key, categorize=False)
            for key in (self.manifest.hash_key[:half], self.manifest.hash_key[half:])
        ]
        return np.stack(lanes).astype(np.uint64)

    def contains(self, keys: KeyArray) -> npt.NDArray[np.bool_]:
        """(n,) bool: whether each key of (2, n) is stored."""
        order = np.argsort(keys[0])
        asked = keys[:, order]
        found = np.zeros(asked.shape[1], dtype=bool)
        for segment in self._segments.values():
            found |= _in_segment(asked, segment)
        result = np.empty_like(found)
        result[order] = found
        return result

    def write_segment(self, keys: KeyArray, path: Path) -> None:
        """Write keys (2, n) as a segment file, without making it part of the index yet."""
        _save(path, keys[:, np.argsort(keys[0])])

    def commit(self, segment: str | None, *, files_added: int, next_sequence: int) -> None:
        """Make a written segment part of the index, then merge segments that have become too many.

        Args:
            segment: its file name in the folder; None where only the number of data files changes.
            files_added: by how many the same transaction changed the number of data files.
            next_sequence: number of the next transaction.
        """
        manifest = self.manifest
        if segment is not None and segment not in manifest.segments:
            self._segments[segment] = np.load(self.folder / segment, mmap_mode="r")
            manifest.segments.append(segment)
            manifest.ids += self._segments[segment].shape[1]
        manifest.files += files_added
        manifest.next_sequence = next_sequence
        self.save()
        self._merge()

    def save(self) -> None:
        """Write the manifest atomically."""
        temporary = self.folder / (_MANIFEST + ".tmp")
        with temporary.open("w") as file:
            json.dump(self.manifest.__dict__, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / _MANIFEST)

    def _merge(self) -> None:
        """Merge the two smallest segments while the smaller is at least half of the larger, then drop the merged files."""
        names = sorted(self.manifest.segments, key=lambda name: -self._segments[name].shape[1])
        dropped: list[str] = []
        while len(names) >= 2:
            large, small = self._segments[names[-2]], self._segments[names[-1]]
            size = large.shape[1] + small.shape[1]
            if large.shape[1] > 2 * small.shape[1] or size > MAX_SEGMENT_IDS:
                break
            merged = np.concatenate([large, small], axis=1)
            name = f"merged-{secrets.token_hex(8)}.npy"
            # The stable sort finds the two sorted runs and merges them in linear time.
            _save(self.folder / name, merged[:, np.argsort(merged[0], kind="stable")])
            self._segments[name] = np.load(self.folder / name, mmap_mode="r")
            dropped += names[-2:]
            names[-2:] = [name]
        if dropped:
            self.manifest.segments = names
            self.save()
            for name in dropped:
                self._segments.pop(name)
                (self.folder / name).unlink(missing_ok=True)


def first_of_each(keys: KeyArray) -> npt.NDArray[np.bool_]:
    """(n,) bool: True for the first occurrence of each key of (2, n)."""
    order = np.argsort(keys[0], kind="stable")
    first_lane = keys[0, order]
    repeats = np.zeros(keys.shape[1], dtype=bool)
    if (first_lane[1:] != first_lane[:-1]).all():
        return ~repeats  # almost always: no two ids share even one lane
    order = np.lexsort((np.arange(keys.shape[1]), keys[1], keys[0]))
    repeats[order[1:]] = (keys[:, order[1:]] == keys[:, order[:-1]]).all(axis=0)
    return ~repeats


def _in_segment(asked: KeyArray, segment: KeyArray) -> npt.NDArray[np.bool_]:
    first, second = segment[0], segment[1]
    at = np.searchsorted(first, asked[0])
    found = np.zeros(asked.shape[1], dtype=bool)
    # Ids that share the first lane stand beside each other; almost always there is one, so this loop runs once or twice.
    open_rows = np.flatnonzero(at < len(first))
    while len(open_rows):
        same = first[at[open_rows]] == asked[0, open_rows]
        open_rows = open_rows[same]
        found[open_rows] |= second[at[open_rows]] == asked[1, open_rows]
        at[open_rows] += 1
        open_rows = open_rows[(at[open_rows] < len(first)) & ~found[open_rows]]
    return found


def _save(path: Path, keys: KeyArray) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.save(file, np.ascontiguousarray(keys))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
