"""Where a study reads and writes, and the activity that it works on, cut into folds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from features.paths import DatasetPaths
from training.bundle import DataFingerprint, fingerprint
from training.dataset import load_training_data
from training.errors import ProtocolError
from training.interactions import IdArray, Interactions
from training.models.base import TrainingData
from training.registry import Registry
from training.splits import PROTOCOLS, Fold, Stage, cold_items
from training.study import Study
from training.weights import WeightStore


@dataclass(frozen=True)
class Place:
    """Where a study reads and writes.

    Args:
        paths: of the dataset.
        control_url: SQL URL of the control store.
        tracking_uri: of the MLflow server.
    """

    paths: DatasetPaths
    control_url: str
    tracking_uri: str

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.paths.dataset

    def study_folder(self, study: str) -> Path:
        """Where a study on this dataset keeps its log and its outcome."""
        return self.paths.root / "studies" / study

    def weights(self, study: str) -> WeightStore:
        """Where a study on this dataset keeps the models that took long to fit."""
        return WeightStore(self.study_folder(study) / "weights")

    def registry(self) -> Registry:
        """The dataset's versions."""
        return Registry(self.tracking_uri, self.dataset, cache=self.paths.home / "bundles")


@dataclass(frozen=True)
class StudyData:
    """The activity that a study works on.

    Args:
        data: all of it.
        fold: of stage validation: what is fitted on, what is chosen on.
        fingerprint: of all of it.
        as_of: time of the latest event; None where the dataset has no times.
    """

    data: TrainingData
    fold: Fold
    fingerprint: DataFingerprint
    as_of: datetime | None

    @property
    def categories(self) -> IdArray | None:
        """(N,) lists of the items' categories, None where the catalogue has none."""
        return item_categories(self.data)


def load_study_data(place: Place, study: Study, *, as_of: datetime | None = None) -> StudyData:
    """Read the dataset's activity and cut it for the study.

    Args:
        place: which dataset, and where.
        study: gives the protocol.
        as_of: later events are not read; None reads all.

    Raises:
        NotTrainableError: there is no activity.
        ProtocolError: the protocol cannot be run on it.
    """
    read_at = datetime.now(UTC)
    data = load_training_data(place.paths, place.control_url, as_of=as_of)
    interactions = data.interactions
    latest = None
    if interactions.has_times:
        latest = datetime.fromtimestamp(int(interactions.time_us.max()) / 1e6, UTC)
    return StudyData(
        data=data,
        fold=cold_items(interactions, among="cold")
        if study.among == "cold"
        else fold_of(study.protocol, interactions, "validation"),
        # An imported event may be dated in the future: what happens while the model is trained is not known for that.
        fingerprint=fingerprint(
            interactions, trained_on="all", includes_test_rows=True, as_of=read_at if latest is None else min(latest, read_at)
        ),
        as_of=latest,
    )


def fold_of(protocol: str, interactions: Interactions, stage: Stage, *, refit: bool = False) -> Fold:
    """A fold of a protocol by name.

    Raises:
        ProtocolError: no such protocol, or it cannot be run on this data.
    """
    check_protocol(protocol)
    return PROTOCOLS[protocol](interactions, stage, refit=refit)


def check_protocol(protocol: str) -> None:
    """Refuse a name before anything is read for it.

    Raises:
        ProtocolError: no such protocol.
    """
    if protocol not in PROTOCOLS:
        raise ProtocolError(f"protocol {protocol!r} is not available; there are: {', '.join(sorted(PROTOCOLS))}")


def item_categories(data: TrainingData) -> IdArray | None:
    """(N,) lists of the items' categories, None where the catalogue has none."""
    found = data.item_attributes.get("categories")
    return None if found is None or found.dtype != object else np.asarray(found, dtype=object)
