"""Refusals and failures as the Python client raises them, which of them pass, and how long to wait for that."""

from __future__ import annotations

import random

RETRIED_STATUS = frozenset({429, 502, 503, 504})
MAX_PAUSE_S = 10.0
"""Longest pause of our own; a server's `Retry-After` may be up to `MAX_ASKED_S`."""
MAX_ASKED_S = 60.0


class ApiError(Exception):
    """The server refused a call.

    Args:
        code: short name of the error, such as `unknown_model`.
        message: what was wrong and what is allowed.
        field: the offending field or parameter, when one is to blame.
        status: of HTTP; None when no answer came.
        retry_after_s: when the server asks to come back.
    """

    def __init__(
        self, code: str, message: str, field: str | None = None, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"{message} ({code})")
        self.code, self.message, self.field, self.status, self.retry_after_s = code, message, field, status, retry_after_s


class NoAnswerError(ApiError):
    """The server could not be reached, or did not answer in time."""


def is_passing(error: BaseException) -> bool:
    """Whether the same call may succeed later: overload, restarts, lost answers."""
    return isinstance(error, NoAnswerError) or (isinstance(error, ApiError) and error.status in RETRIED_STATUS)


def pause_s(attempt: int, error: BaseException | None) -> float:
    """0.1 s, doubling, up to half of it at random so that clients do not come back together; at least what the server asks."""
    growing = min(MAX_PAUSE_S, 0.1 * 2 ** min(attempt - 1, 10)) * random.uniform(0.5, 1)
    asked = error.retry_after_s if isinstance(error, ApiError) else None
    return max(growing, min(asked or 0.0, MAX_ASKED_S))
