"""Shortlist, the composition root: settings, the local stack, the command line and the Python client."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shortlist.client import ApiError, AsyncClient, Client

__all__ = ["ApiError", "AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    """The client is loaded when it is first asked for: the command line does not pay for it."""
    if name in __all__:
        return getattr(importlib.import_module("shortlist.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
