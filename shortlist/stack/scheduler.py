"""Starts the pipeline of the served dataset when its schedule says so; a thread of the supervisor.

A run is a process of its own, so that nothing it does can harm serving. One that was interrupted with the stack is continued.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

from features.control_store import ControlStore
from features.errors import FeaturesError
from features.paths import DatasetPaths
from shortlist.commands.console import CommandError
from shortlist.pipeline.record import PipelineOptions, resumable
from shortlist.pipeline.schedule import Schedules
from shortlist.stack.process import Child

LOG = logging.getLogger(__name__)

LOOK_S = 5.0
"""Seconds between looks at the schedule."""


class Scheduler:
    """Runs one dataset's pipeline by its schedule.

    Args:
        paths: of the dataset.
        control_url: where the schedule is.
        overrides: `--set` strings that name the stack's home and addresses.
    """

    def __init__(self, paths: DatasetPaths, control_url: str, overrides: tuple[str, ...]) -> None:
        self._paths, self._overrides = paths, overrides
        self._schedules = Schedules(ControlStore(control_url).create(), paths.dataset)
        self._running: Child | None = None

    def run(self, stop: threading.Event) -> None:
        """Look and start until `stop` is set; a run under way is ended then, and continued after the next start."""
        self._continue_interrupted()
        while not stop.wait(LOOK_S):
            try:
                self.look(datetime.now(UTC))
            except (FeaturesError, CommandError) as error:
                LOG.warning("the schedule could not be followed: %s", error)
        if self._running is not None:
            self._running.stop()

    def look(self, now: datetime) -> bool:
        """Start a run if one is due and none is under way; returns whether it did.

        Raises:
            StoreError: the control store cannot be read.
        """
        found = self._schedules.get()
        if found is None or found.due_at > now or (self._running is not None and self._running.alive()):
            return False
        self._schedules.started(now)
        self._start(_words(found.options))
        return True

    def _continue_interrupted(self) -> None:
        try:
            left = resumable(self._paths)
            if left is not None and left.status in ("running", "interrupted") and self._schedules.get() is not None:
                self._start(("--resume",))
        except (FeaturesError, CommandError) as error:
            LOG.warning("no interrupted run is continued: %s", error)

    def _start(self, words: tuple[str, ...]) -> None:
        sets = [word for override in self._overrides for word in ("--set", override)]
        command = [sys.executable, "-m", "shortlist", "pipeline", "run", "--dataset", self._paths.dataset, *words, *sets]
        self._running = Child("pipeline", "the scheduled pipeline", command, _log_file(self._paths))
        LOG.info("starting: %s", subprocess.list2cmdline(command[1:]))
        self._running.start()


def _words(options: PipelineOptions) -> tuple[str, ...]:
    """Options as the command line takes them."""
    words = ["--study", options.study, "--mode", options.mode, "--attempts", str(options.attempts)]
    words += [] if options.minutes is None else ["--minutes", str(options.minutes)]
    words += ["--no-promote"] if options.alias is None else ["--alias", options.alias]
    return tuple(words)


def _log_file(paths: DatasetPaths) -> Path:
    return paths.home / "logs" / "pipeline.log"
