"""What a stack of a home left running when it was killed, and the lock that lets one supervisor of a home live at a time.

Redis, MLflow and the event worker end with the supervisor that started them. HAProxy, and what MLflow or Ray started in turn, may
not: they would keep the ports, and clients would be answered by a proxy with nothing behind it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from shortlist.stack.errors import StackError

MARK = "STACK_OF_SHORTLIST_HOME"
"""Environment variable that every process of a stack inherits: its home."""

PATIENCE_S = 5.0
"""How long a left process has for ending by itself."""


class HomeTakenError(StackError):
    """Another supervisor of the home runs."""


@contextmanager
def sole_supervisor(home: Path) -> Iterator[None]:
    """Hold the home's lock: two Redis servers on one append-only file would damage it. The lock ends with its process.

    Raises:
        HomeTakenError: another supervisor holds it.
    """
    path = home / "run" / "supervisor.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HomeTakenError(f"another stack of {home} starts, runs or stops: see shortlist status") from None
        yield
    finally:
        os.close(descriptor)


def mark_processes(home: Path) -> None:
    """Mark what this process starts from now on as the stack's of `home`."""
    os.environ[MARK] = str(home)


def end_leftovers(home: Path) -> list[int]:
    """End the processes of a stack of `home` whose supervisor is gone. Call it under the lock, before starting any.

    Returns:
        Their process ids.
    """
    left = list(_marked(str(home)))
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(left, timeout=PATIENCE_S)
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=PATIENCE_S)
    return [process.pid for process in left]


def _marked(home: str) -> Iterator[psutil.Process]:
    me = psutil.Process()
    own = {me.pid, *(parent.pid for parent in me.parents())}
    for process in psutil.process_iter():
        # Others' processes cannot be read, and one may end while it is looked at.
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in own and process.environ().get(MARK) == home:
                yield process
