"""What a pipeline run has done so far: one JSON file a run, written after every change, so that a run continues after a crash.

Also the lock that lets one run of a dataset go on at a time. What the steps do is `shortlist.pipeline.steps`'s.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from features.paths import DatasetPaths
from shortlist.commands.console import CommandError

RunStatus = Literal["running", "done", "refused", "failed", "interrupted"]
"""`refused`: everything was done and the gate did not let the version take the champion's place. `interrupted`: it was stopped."""

STATUS_READ_S = 1.0
"""How long a run waits for the lock: `pipeline status` holds it while it reads."""


class PipelineOptions(BaseModel):
    """What a run is asked to do; the schedule keeps the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    """Path of a study file."""
    mode: Literal["tune", "refit"] = "tune"
    """`refit` trains what the study's last search chose on today's data; without such a search it tunes."""
    minutes: float | None = Field(default=None, gt=0)
    """Time for tuning in place of the study's."""
    alias: str | None = "champion"
    """Alias that the version gets when the gate passes it; None registers it and moves nothing."""
    attempts: int = Field(default=3, ge=1, le=10)
    """How often a step is tried before the run fails."""


class StepRecord(BaseModel):
    """How far one step is."""

    status: Literal["waiting", "running", "done", "failed", "skipped", "interrupted"] = "waiting"
    attempts: int = 0
    seconds: float = 0.0
    result: dict[str, Any] = Field(default_factory=dict)
    error: str | None = None


class PipelineRecord(BaseModel):
    """One run.

    `as_of` is the cutoff of its features: a continued run uses the same, so that its steps agree.
    """

    run_id: str
    dataset: str
    options: PipelineOptions
    started_at: datetime
    status: RunStatus = "running"
    error: str | None = None
    """Why it failed before its first step, None where it did not. What became of a step is in the step."""
    mlflow_run_id: str | None = None
    steps: dict[str, StepRecord] = Field(default_factory=dict)

    @property
    def as_of(self) -> datetime:
        """Cutoff of the run's features."""
        return self.started_at

    def result_of(self, step: str) -> dict[str, Any]:
        """What a finished step returned."""
        return self.steps[step].result

    def interrupt(self) -> None:
        """Say that it stopped in the middle, and so did its step under way."""
        self.status = "interrupted"
        for step in self.steps.values():
            if step.status == "running":
                step.status = "interrupted"

    def save(self, paths: DatasetPaths) -> None:
        """Write it, whole or not at all."""
        path = _folder(paths) / f"{self.run_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(self.model_dump_json(indent=2) + "\n")
        os.replace(temporary, path)


def records(paths: DatasetPaths) -> list[PipelineRecord]:
    """All runs of a dataset as they are recorded, oldest first.

    A killed run could not say so and stays `running` here, until the next one takes the lock. `present_records` sees through that.

    Raises:
        CommandError: a record cannot be read.
    """
    found = []
    for path in sorted(_folder(paths).glob("*.json")):
        try:
            found.append(PipelineRecord.model_validate_json(path.read_text()))
        except (OSError, ValidationError, json.JSONDecodeError) as error:
            raise CommandError(f"pipeline record {path} cannot be read ({error.__class__.__name__}): move it away") from error
    return found


def present_records(paths: DatasetPaths) -> list[PipelineRecord]:
    """All runs of a dataset, oldest first; `running` only where a process is at it. Writes nothing.

    Raises:
        CommandError: a record cannot be read.
    """
    if not _folder(paths).exists():
        return []
    with (_folder(paths) / "lock").open("a") as lock:
        nobody = _locked(lock, fcntl.LOCK_SH)  # held while reading, so that none begins meanwhile
        found = records(paths)
    for record in found if nobody else found[:-1]:
        if record.status == "running":
            record.interrupt()
    return found


def resumable(paths: DatasetPaths) -> PipelineRecord | None:
    """The newest run, if it was interrupted or failed; None otherwise."""
    found = records(paths)
    return found[-1] if found and found[-1].status in ("running", "interrupted", "failed") else None


@contextmanager
def only_run(paths: DatasetPaths) -> Iterator[None]:
    """Holds the dataset's pipeline; the lock ends with the process.

    Raises:
        CommandError: another run is under way.
    """
    _folder(paths).mkdir(parents=True, exist_ok=True)
    with (_folder(paths) / "lock").open("w") as lock:
        until = time.monotonic() + STATUS_READ_S
        while not (mine := _locked(lock, fcntl.LOCK_EX)) and time.monotonic() < until:
            time.sleep(0.05)
        if not mine:
            raise CommandError(
                f"another pipeline run of dataset {paths.dataset!r} is under way: see `shortlist pipeline status --dataset "
                f"{paths.dataset}`"
            )
        yield


def _locked(lock: IO[str], kind: int) -> bool:
    """Take the lock if it is free, for as long as the file is open; whether it was."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _folder(paths: DatasetPaths) -> Path:
    return paths.root / "pipeline"
