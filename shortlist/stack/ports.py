"""Free ports, and whether servers answer."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from urllib.error import URLError

from shortlist.stack.errors import StackError


def free_port() -> int:
    """A TCP port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could bind `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def take_port(wanted: int, what: str, setting: str) -> int:
    """`wanted` if it is free, a free one if it is 0.

    Raises:
        StackError: the port is taken; the message names the setting to change.
    """
    if wanted == 0:
        return free_port()
    if not port_is_free(wanted):
        raise StackError(
            f"port {wanted} for {what} is taken: stop what uses it, or choose another with --set {setting}=PORT (0 = any)"
        )
    return wanted


def answers(url: str, timeout_s: float = 1.0) -> bool:
    """Whether GET `url` answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return bool(answer.status == 200)
    except (URLError, HTTPException, OSError, ValueError):
        return False


def wait_until(ready: Callable[[], bool], *, seconds: float, what: str, alive: Callable[[], bool] | None = None) -> None:
    """Poll `ready` until it is true.

    Args:
        ready: cheap check; may return False any number of times.
        seconds: how long to wait at most.
        what: for the message.
        alive: when given and false, waiting ends at once: the process died.

    Raises:
        StackError: not ready in time, or dead.
    """
    deadline = time.monotonic() + seconds
    pause = 0.01
    while not ready():
        if alive is not None and not alive():
            raise StackError(f"{what} ended while starting")
        if time.monotonic() > deadline:
            raise StackError(f"{what} was not ready after {seconds:.0f} s")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)
