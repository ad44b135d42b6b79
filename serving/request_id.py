"""The id of the request that is being answered: on every log line, in the answer, and with the hop to a version's replica.

A caller's `X-Request-ID` is taken over. Without one an id is drawn when something first needs it, which is never on the way to a
cached answer.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

_ALLOWED = re.compile(rb"^[A-Za-z0-9._-]{1,64}$")


class RequestId:
    """One request's id.

    Args:
        given: the caller's, None where it gave none that can be logged and sent back.
    """

    __slots__ = ("_text", "given")

    def __init__(self, given: bytes | None) -> None:
        self._text = self.given = given

    @property
    def known(self) -> bytes | None:
        """The id where the caller gave one or something has needed it."""
        return self._text

    def __str__(self) -> str:
        if self._text is None:
            self._text = secrets.token_hex(8).encode()
        return self._text.decode()


CURRENT: ContextVar[RequestId | None] = ContextVar("request_id", default=None)
"""Of the task at hand; None in tasks that answer nobody."""


def begin(given: bytes | None) -> RequestId:
    """Take up a request: what this task and the threads and tasks that it starts log from now on has its id.

    Args:
        given: the header as the caller sent it.
    """
    request_id = RequestId(given if given is not None and _ALLOWED.match(given) else None)
    CURRENT.set(request_id)
    return request_id


def current() -> str | None:
    """The id of the request at hand."""
    request_id = CURRENT.get()
    return None if request_id is None else str(request_id)
