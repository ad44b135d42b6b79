"""A stack for whoever watches the process that he started: systemd, a container, a terminal. It ends with that process."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from shortlist.stack.control import stop_stack
from shortlist.stack.errors import StackError
from shortlist.stack.state import StackState

LOOK_S = 0.5


class _Told(BaseException):
    """This process was told to end. No `except Exception` on the way keeps it."""


def serve_in_foreground(home: Path, start: Callable[[], StackState]) -> None:
    """Start a stack and stay until this process is told to end (SIGTERM, Ctrl-C), then stop the stack.

    Args:
        home: of the stack.
        start: starts it, or finds it running, and says so to the user.

    Raises:
        StackError: it cannot start, or has ended by itself.
    """
    try:
        with _told_by_signals():
            state = start()
            while state.alive():
                time.sleep(LOOK_S)
    except _Told:
        stop_stack(home)
        return
    raise StackError(f"the stack has ended by itself: see {home / 'logs' / 'supervisor.log'}, and start it again")


@contextmanager
def _told_by_signals() -> Iterator[None]:
    def told(number: int, frame: FrameType | None) -> None:
        for one in earlier:  # the stop that follows is not to be interrupted
            signal.signal(one, signal.SIG_IGN)
        raise _Told

    earlier = {one: signal.signal(one, told) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        if all(signal.getsignal(one) is told for one in earlier):
            for one, handler in earlier.items():
                signal.signal(one, handler)
