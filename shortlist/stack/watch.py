"""Children of the stack that died are started again."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence

from shortlist.stack.process import Child

LOOK_S = 0.5


def keep_running(children: Sequence[Child], stop: threading.Event, on_restart: Callable[[], None]) -> None:
    """Start children that died again, each after a pause of its own that grows while it does not stay, until `stop` is set."""
    due: dict[str, float] = {}
    while not stop.wait(LOOK_S):
        for child in children:
            if child.alive():
                continue
            now = time.monotonic()
            if child.name not in due:
                pause_s = child.next_pause_s()
                sys.stderr.write(f"{child.name} died; restarting in {pause_s:.0f} s\n")
                due[child.name] = now + pause_s
            elif now >= due[child.name]:
                del due[child.name]
                child.restart()
                on_restart()
