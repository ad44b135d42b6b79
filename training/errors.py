"""Errors of training. Each message names the value, the limit and the fix.

TrainingError
├── StudyError            a study or training file is wrong (unknown model, unknown parameter, empty space)
├── ProtocolError         an evaluation protocol cannot be run on this data (and why)
├── NotTrainableError     the dataset has too little activity to train on
├── BundleError           a bundle lacks a file, has non-finite weights or belongs to another dataset
└── RegistryError         MLflow is unreachable or refuses
    ├── RegistryDownError      MLflow is unreachable, or fails: the same call may work later
    ├── UnknownVersionError    there is no such version or alias
    ├── NoEarlierVersionError  an alias cannot be rolled back
    └── AliasNameError         an alias cannot have that name
"""

from __future__ import annotations


class TrainingError(Exception):
    """Base of all errors raised by `training`."""


class StudyError(TrainingError):
    """A study or training file is wrong."""


class ProtocolError(TrainingError):
    """An evaluation protocol cannot be run on this data."""


class NotTrainableError(TrainingError):
    """The dataset has too little activity to train on."""


class BundleError(TrainingError):
    """A bundle cannot be used: a file is missing or damaged, or it belongs to another dataset."""


class RegistryError(TrainingError):
    """MLflow is unreachable or refuses. What whoever asks could have known better has an error of its own, below."""


class RegistryDownError(RegistryError):
    """MLflow cannot be reached, or has trouble of its own: it says nothing of what was asked."""


class UnknownVersionError(RegistryError):
    """There is no version or alias of that name."""


class NoEarlierVersionError(RegistryError):
    """An alias cannot be rolled back: no earlier version is known and still exists."""


class AliasNameError(RegistryError):
    """An alias cannot have that name."""
