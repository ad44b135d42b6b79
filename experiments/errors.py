"""Errors of experiments. Each message is one line: the value, the limit it broke and what to do.

ExperimentError
├── SpecError            an experiment file cannot be read or breaks a rule (`field` names the culprit)
├── OverlapError         two running experiments could both choose the model of one answer
└── FrozenSpecError      a change to a started experiment that would reshuffle units
"""

from __future__ import annotations


class ExperimentError(Exception):
    """Base of all errors raised by `experiments`."""


class SpecError(ExperimentError):
    """An experiment file cannot be read or breaks a rule.

    Args:
        message: what is wrong and what is allowed.
        field: dotted path of the offending field, when one field is to blame.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class OverlapError(ExperimentError):
    """Two running experiments could both choose the model of one answer."""


class FrozenSpecError(ExperimentError):
    """A change to a started experiment that would move units between variants, or what is measured."""
