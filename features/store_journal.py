"""Transactions of an activity store: what was decided is carried out, whatever dies meanwhile.

Files are written aside; then a journal entry that names their final places is renamed into being, which is the moment of truth;
then they are put there and the id index takes the new ids. A writer that dies before that moment leaves nothing but scratch files;
one that dies after it leaves an entry that the next writer carries out first. Every step may be done twice. Owns journal and
scratch below the state folder; which files a transaction writes is `activity_store`'s business.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.event_index import EventIndex
from features.store_files import PartFolder, write_durably, write_synced

_SEGMENT = "added-{:010d}.npy"


@dataclass
class Transaction:
    """One change being prepared: files written below `scratch`, and where they go.

    Args:
        sequence: its number.
        scratch: folder for its files; made by `Journal.begin`.
        moves: (file name in scratch, place below the store's root).
        removals: places that are deleted.
        files: by how many the number of current files changes.
        segment: ids that the index takes, a file name in scratch; None for none.
    """

    sequence: int
    scratch: Path
    moves: list[tuple[str, str]] = field(default_factory=list)
    removals: list[str] = field(default_factory=list)
    files: int = 0
    segment: str | None = None

    def aside(self, where: str) -> Path:
        """A file of the transaction that will be put at a place below the root."""
        name = f"{len(self.moves):05d}.parquet"
        self.moves.append((name, where))
        return self.scratch / name

    def add_ids(self, index: EventIndex, keys: npt.NDArray[np.uint64]) -> None:
        """Write (2, n) keys for the index to take."""
        self.segment = _SEGMENT.format(self.sequence)
        index.write_segment(keys, self.scratch / self.segment)


class Journal:
    """The journal of one store. All calls are under the writer's lock.

    Args:
        state: folder of journal, scratch and index, on this machine.
        folder: where parts go.
        index: of the store's ids.
    """

    def __init__(self, state: Path, folder: PartFolder, index: EventIndex) -> None:
        self._entries, self._scratch = state / "journal", state / "scratch"
        self._folder, self._index = folder, index

    def begin(self) -> Transaction:
        """Start a transaction."""
        sequence = self._index.manifest.next_sequence
        scratch = self._scratch / f"{sequence:010d}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        return Transaction(sequence, scratch)

    def commit(self, transaction: Transaction) -> None:
        """Decide it and carry it out."""
        write_synced([transaction.scratch / name for name, _ in transaction.moves])
        self._entries.mkdir(parents=True, exist_ok=True)
        entry = self._entries / f"{transaction.sequence:010d}.json"
        decision = {name: value for name, value in asdict(transaction).items() if name != "scratch"}
        write_durably(entry, json.dumps(decision).encode())
        self._carry_out(entry)

    def finish_pending(self, *, index_lost: bool) -> None:
        """Carry out what dead writers had decided.

        Args:
            index_lost: the index was reset: it takes their ids when it is rebuilt from the files.
        """
        for entry in sorted(self._entries.glob("*.json")) if self._entries.is_dir() else []:
            if index_lost:
                self._index.manifest.next_sequence = json.loads(entry.read_text())["sequence"] + 1
            self._carry_out(entry)

    def sweep(self) -> None:
        """Delete scratch files that dead writers left."""
        if self._scratch.is_dir():
            shutil.rmtree(self._scratch)

    def _carry_out(self, entry: Path) -> None:
        decided = json.loads(entry.read_text())
        sequence: int = decided["sequence"]
        scratch = self._scratch / f"{sequence:010d}"
        for name, where in decided["moves"]:
            if (scratch / name).exists():
                self._folder.put(scratch / name, where)
        for where in decided["removals"]:
            self._folder.remove(where)
        if self._index.manifest.next_sequence <= sequence:
            segment = decided["segment"]
            if segment is not None and (scratch / segment).exists():
                os.replace(scratch / segment, self._index.folder / segment)
            self._index.commit(segment, files_added=decided["files"], next_sequence=sequence + 1)
        entry.unlink()
        shutil.rmtree(scratch, ignore_errors=True)
