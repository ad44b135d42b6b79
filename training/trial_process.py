"""The process of a trial: its manners beside others, when the system ends it, and what its end is told as. Knows nothing of Ray."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NICENESS = 15
"""Of trials: a stack that serves on the same cores keeps its latency (378 requests/s beside trials, 241 without)."""
TOO_LONG = "it took longer than the time limit leaves to a trial, and was ended"
"""Reason of a trial that the system ended at its `over_at`."""


@contextmanager
def trial_process(over_at: float) -> Iterator[Callable[[], None]]:
    """What a trial does within has a low priority, ends at a given time, and leaves no memory behind.

    Args:
        over_at: `time.time()` at which the system ends this process, even in a long call into a library, which hears nothing else;
            infinite sets no end.

    Yields:
        What takes that end away: to be called once it is known that the trial will be in time.
    """
    os.nice(max(0, NICENESS - os.nice(0)))
    if math.isfinite(over_at):
        signal.setitimer(signal.ITIMER_REAL, max(over_at - time.time(), 1e-3))
    try:
        yield _without_end
    finally:
        _without_end()
        _give_memory_back()


def failure_reason(error_file: str | None, over_at: float) -> str:
    """Why a trial failed, in one line.

    Args:
        error_file: where Tune keeps its text.
        over_at: as in `trial_process`; infinite once that end was taken away.
    """
    try:
        text = Path(error_file or "").read_text()
    except OSError:
        return "no reason was kept"
    if "OutOfMemoryError" in text or "running low on memory" in text:
        return "out of memory: Ray ended the trial's process"
    if "ActorDiedError" in text or "The actor died" in text:
        if over_at <= time.time():
            return TOO_LONG
        return "the trial's process died (killed, or out of memory)"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt): ", line)]
    last = (named or lines or ["no reason was kept"])[-1]
    return re.sub(r"^(?:\w+\.)+(?=\w+: )", "", last)[:500]


def _without_end() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)


def _give_memory_back() -> None:
    """Hand freed memory to the system: a worker runs many trials, each on a new thread, and glibc keeps what each of them freed."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
