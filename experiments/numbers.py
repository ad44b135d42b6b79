"""Numbers of files and bodies: `true` is none. Pydantic would read it as 1, and a slip of the pen as a share of everything."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError


def _no_truth_value(given: object) -> object:
    if isinstance(given, bool):
        raise PydanticCustomError("number_type", "must be a number, not true or false")
    return given


Number = Annotated[float, BeforeValidator(_no_truth_value)]
"""A float; whole numbers are taken."""
Whole = Annotated[int, BeforeValidator(_no_truth_value)]
"""An integer."""
