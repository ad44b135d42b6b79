"""Errors of serving. Each message names the value, the limit and the fix.

ServingError
├── RequestError          a request that cannot be answered as asked: HTTP status, code, offending field
│   └── FilterError       a filter expression is wrong; the message points at the place
├── VersionRefusedError   a version cannot be served: it does not load, or answers nonsense
├── CacheDownError        the cache Redis is gone or too slow; answers go on without it
└── ControlStateError     a change of experiments or routing that the present state does not allow
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from features.errors import BusFullError, BusUnavailableError

RETRY_AFTER_S = 1
"""After which a client may send again what the bus did not take."""


class ServingError(Exception):
    """Base of all errors raised by `serving`."""


class RequestError(ServingError):
    """A request that cannot be answered as asked.

    Args:
        message: what is wrong and what is allowed.
        code: stable machine-readable name of the reason.
        status: HTTP status.
        field: the offending parameter, when one is to blame.
        headers: further response headers.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "invalid",
        status: int = 422,
        field: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.field = field
        self.headers = headers or {}

    def to_json(self) -> dict[str, dict[str, str | int]]:
        """The error body of the API."""
        body: dict[str, str | int] = {"code": self.code, "message": str(self)}
        if self.field is not None:
            body["field"] = self.field
        return {"error": body}


class FilterError(RequestError):
    """A filter expression is wrong; the message quotes the place."""

    def __init__(self, message: str, *, position: int) -> None:
        super().__init__(message, code="invalid_filter", field="filter")
        self.position = position

    def to_json(self) -> dict[str, dict[str, str | int]]:
        """The error body, with the place as a number of characters from 0."""
        return {"error": {**super().to_json()["error"], "position": self.position}}


@contextmanager
def blaming(field: str) -> Iterator[None]:
    """Let a filter that is wrong name this parameter as the offending one."""
    try:
        yield
    except FilterError as error:
        error.field = field
        raise


def not_taken(error: BusUnavailableError, nothing_done: str) -> RequestError:
    """What a client is told when the bus took nothing: 429 while its readers are behind, 503 while it is away.

    Args:
        error: of the bus.
        nothing_done: what of the request did not happen, and what to do.
    """
    full = isinstance(error, BusFullError)
    code, status = ("bus_full", 429) if full else ("bus_unavailable", 503)
    return RequestError(f"{nothing_done}: {error}", code=code, status=status, headers={"Retry-After": str(RETRY_AFTER_S)})


class VersionRefusedError(ServingError):
    """A version cannot be served: it does not load, or answers nonsense."""


class ListFailedError(ServingError):
    """A replica could not compute a list; its log has the whole of it."""


class ControlStateError(ServingError):
    """A change of experiments or routing that the present state does not allow."""


class CacheDownError(ServingError):
    """The cache Redis is gone or too slow. Answers go on without it."""
