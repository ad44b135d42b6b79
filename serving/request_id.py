"""The id of the request that is being answered: on every log line, in the answer, and with the hop to a version's replica.

A caller's `X-Request-ID` is taken over; without one an id is drawn.
"""

from __future__ import annotations

import random
import re
from contextvars import ContextVar

_ALLOWED = re.compile(rb"^[A-Za-z0-9._-]{1,64}$")
_random = random.Random()  # seeded by the system; ids must be unique, not secret


class RequestId:
    """One request's id.

    Args:
        given: the header as the caller, or Ray Serve in front, has set it; not taken over where it cannot be logged.
        by_serve: whether Ray Serve passed the request on, which puts the id that it has given or found into the answer itself.
    """

    __slots__ = ("header", "value")

    def __init__(self, given: bytes | None, *, by_serve: bool = False) -> None:
        taken = given is not None and _ALLOWED.match(given) is not None
        self.value = given if given is not None and taken else b"%016x" % _random.getrandbits(64)
        self.header = None if by_serve and taken else self.value
        """For the answer; None where Ray Serve writes it."""

    def __str__(self) -> str:
        return self.value.decode()


CURRENT: ContextVar[RequestId | None] = ContextVar("request_id", default=None)
"""Of the task at hand; None in tasks that answer nobody."""


def begin(given: bytes | None, *, by_serve: bool = False) -> RequestId:
    """Take up a request: what this task and the threads and tasks that it starts log from now on has its id.

    Args:
        given, by_serve: as of `RequestId`.
    """
    request_id = RequestId(given, by_serve=by_serve)
    CURRENT.set(request_id)
    return request_id


def current() -> str | None:
    """The id of the request at hand."""
    request_id = CURRENT.get()
    return None if request_id is None else str(request_id)
