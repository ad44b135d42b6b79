"""The log of a study's trials on disk: one JSON line a trial, written when it ends. What `--resume` continues from.

A line is flushed to the disk before the next trial is proposed, so a killed study loses the trials that were running and no other.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from training.errors import StudyError

Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial that ended.

    Args:
        source, model, number: which trial.
        params: the searched parameters; config: all that were given to the model.
        status: `stopped` by the scheduler before its last epoch; `failed` with `reason`.
        value: the objective, None for failed ones.
        metrics: last reported metrics.
        seconds: wall time.
        run_id: its MLflow run.
    """

    source: str
    model: str
    number: int
    params: dict[str, Any]
    config: dict[str, Any]
    status: Status
    value: float | None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str | None = None
    run_id: str | None = None

    @property
    def name(self) -> str:
        """Name of the trial and of its run."""
        return f"{self.source}-{self.number:03d}"

    @property
    def run_status(self) -> str:
        """MLflow's status of its run."""
        return "FAILED" if self.status == "failed" else "FINISHED"


class TrialLog:
    """A study's folder: `study.json` says which study on which data, `trials.jsonl` holds its trials.

    Args:
        folder: of this study on this dataset; created by `begin`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._head, self._lines = folder / "study.json", folder / "trials.jsonl"

    def begin(self, head: dict[str, str]) -> None:
        """Start anew: what was logged before goes away."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lines.write_text("")
        temporary = self._head.with_suffix(".tmp")
        temporary.write_text(json.dumps(head, indent=2) + "\n")
        os.replace(temporary, self._head)

    def head(self) -> dict[str, str] | None:
        """What `begin` was given, None where no study was begun."""
        try:
            found: dict[str, str] = json.loads(self._head.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StudyError(f"{self._head} cannot be read ({error}): start the study without --resume") from error
        return found

    def begun_at(self) -> datetime | None:
        """When `begin` was called last, None where no study was begun."""
        try:
            return datetime.fromtimestamp(self._head.stat().st_mtime, UTC)
        except FileNotFoundError:
            return None

    def append(self, record: TrialRecord) -> None:
        """Add a trial; on disk when this returns."""
        with self._lines.open("a+b") as lines:
            size = lines.seek(0, os.SEEK_END)
            if size:
                lines.seek(size - 1)
            # A crash may have left half a line: this one must not become its other half.
            mend = b"\n" if size and lines.read(1) != b"\n" else b""
            lines.write(mend + json.dumps(asdict(record), default=str).encode() + b"\n")
            lines.flush()
            os.fsync(lines.fileno())

    def records(self) -> list[TrialRecord]:
        """The trials, in the order in which they ended. A last line cut short by a crash is left out."""
        found = []
        for line in self._lines.read_text().splitlines() if self._lines.exists() else []:
            try:
                found.append(TrialRecord(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return found
