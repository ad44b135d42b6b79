"""A child process of the stack: started with a log file, ended with its parent, stopped politely and then firmly."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Before a process that died is started again: twice as long each time that it has not stayed for `STAYED_S`."""
STAYED_S = 120.0
_PR_SET_PDEATHSIG = 1
# Looked up here: between fork and exec, a lock of the loader may be held by a thread that is not there.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
END_WITH_PARENT = partial(_prctl, _PR_SET_PDEATHSIG, signal.SIGTERM) if _prctl is not None else None
"""For `preexec_fn`: the process is told to end (SIGTERM) when the one that started it is gone, however that ended. Linux alone."""


@dataclass
class Child:
    """One process that the stack owns.

    Args:
        name: short name, also of its log file.
        why: what it is for, shown by `status`.
        command: program and arguments.
        log_file: where stdout and stderr go.
        environment: added to this process's environment.
    """

    name: str
    why: str
    command: Sequence[str]
    log_file: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    _started_at: float = 0.0
    _pause_s: float = FIRST_PAUSE_S

    def start(self) -> None:
        """Start it in its own session, so that Ctrl-C reaches the stack alone, which then stops its children in order."""
        self._started_at = time.monotonic()
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                list(self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
                preexec_fn=END_WITH_PARENT,
            )

    @property
    def pid(self) -> int | None:
        """Process id while it was started."""
        return self.process.pid if self.process else None

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def next_pause_s(self) -> float:
        """How long to wait before it is started again, now that it has died."""
        if time.monotonic() - self._started_at > STAYED_S:
            self._pause_s = FIRST_PAUSE_S
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause_s

    def restart(self) -> None:
        """Start it again after it has died."""
        self.clear()
        self.restarts += 1
        self.start()

    def clear(self) -> None:
        """Kill what a process that died has left in its session: MLflow's own worker lives on when its parent is killed, and
        would keep the port from the next one."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def stop(self, seconds: float = 10.0) -> None:
        """Terminate, wait, and kill what is left of its session."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(5)

    def log_tail(self, lines: int = 5) -> str:
        """The last lines of its log, for messages."""
        try:
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""
