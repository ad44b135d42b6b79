"""One worker a dataset: a second one stands by until the first is gone, however that ended.

Two would undo nothing, because all that a worker does may be done twice, but each would take the other's writes for a stranger's
and load its aggregates anew all the time.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOG = logging.getLogger(__name__)

LOOK_S = 0.5
"""Seconds between looks whether the other is gone."""


@contextmanager
def sole_worker(path: Path, stop: threading.Event) -> Iterator[bool]:
    """Wait for the dataset's lock and hold it; False where `stop` was set before it was free. It ends with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        held = _taken(descriptor)
        if not held:
            holder = os.pread(descriptor, 20, 0).decode()
            LOG.warning("another worker of this dataset runs (process %s): standing by until it ends", holder)
        while not held and not stop.wait(LOOK_S):
            held = _taken(descriptor)
        if held:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield held
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
