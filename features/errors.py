"""Errors of the data side. Each message names the value, the limit it broke and what to do.

FeaturesError
├── DatasetNotFoundError   no dataset of that name or path
│   └── DatasetUnavailableError   a public dataset known by name cannot be fetched
├── ImportFormatError      a file that cannot be read as the format asked for, or lacks a required column
├── EventError             one event is malformed (`field` names the culprit)
├── StoreError             the activity store refused or could not finish a write
├── BusUnavailableError    the event bus cannot be reached or refuses writes
│   └── BusFullError       its readers are too far behind: come back later
├── FeatureJoinError       a point-in-time join lost rows, or a feature table is missing
└── FeatureStoreError      Feast's registry or its online store cannot be used
"""

from __future__ import annotations


class FeaturesError(Exception):
    """Base of all errors raised by `features`."""


class DatasetNotFoundError(FeaturesError):
    """No dataset of that name or path."""


class DatasetUnavailableError(DatasetNotFoundError):
    """A public dataset known by name is not kept and cannot be fetched."""


class ImportFormatError(FeaturesError):
    """A file cannot be read as the format asked for, or lacks a required column."""


class EventError(FeaturesError):
    """One event is malformed.

    Args:
        message: what is wrong and what is allowed.
        field: the offending field, when one field is to blame.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class StoreError(FeaturesError):
    """The activity store refused or could not finish a write."""


class BusUnavailableError(FeaturesError):
    """The event bus cannot be reached or refuses writes."""


class BusFullError(BusUnavailableError):
    """The readers of the event bus are too far behind; nothing was accepted.

    Args:
        message: how full it is and what to do.
        retry_after_s: when to try again.
    """

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class FeatureJoinError(FeaturesError):
    """A point-in-time join lost rows, or a feature table is missing."""


class FeatureStoreError(FeaturesError):
    """Feast's registry or its online store cannot be used."""
