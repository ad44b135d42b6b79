"""Errors of the local stack."""

from __future__ import annotations


class StackError(Exception):
    """A part of the stack cannot start or be reached. The message names the part, the reason and the fix."""
