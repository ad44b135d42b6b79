"""Conditions over a request's context in the filter language: experiments' targeting, and when a rule holds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pyarrow as pa

from serving.columns import column_from_arrow
from serving.errors import FilterError
from serving.filters import Filter, compile_filter


class Condition:
    """A compiled condition.

    Args:
        compiled: an expression over one row, the context.
    """

    def __init__(self, compiled: Filter) -> None:
        self._compiled = compiled
        self.names = compiled.names

    def holds(self, context: Mapping[str, Any]) -> bool:
        """Whether it is true of a context; one of other types than the expression expects, or of values that no column holds
        (integers beyond 64 bits, halves of surrogate pairs), is no match."""
        try:
            columns = {name: column_from_arrow(pa.array([context[name]])) for name in self.names if _is_value(context.get(name))}
            known = {name: column for name, column in columns.items() if column is not None}
            return bool(self._compiled.mask(known, 1)[0])
        except (FilterError, pa.ArrowException, OverflowError, UnicodeError):
            return False


@lru_cache(maxsize=1024)
def compile_condition(expression: str) -> Condition:
    """Parse a condition.

    Raises:
        FilterError: the expression is wrong; the message points at the place.
    """
    return Condition(compile_filter(expression))


def _is_value(value: Any) -> bool:
    return value is not None and not isinstance(value, dict)
