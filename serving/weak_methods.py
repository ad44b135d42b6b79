"""Methods for caches that an object has of its own answers: they do not keep the object alive."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar
from weakref import WeakMethod

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def not_holding(method: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """A bound method that does not keep its object: in a circle, a table would stay until a full collection, which is rare here."""
    method_of = WeakMethod(method)

    def call(*given: _Given.args, **named: _Given.kwargs) -> _Made:
        found = method_of()
        assert found is not None, "called by nothing but its object"
        return found(*given, **named)

    return call
