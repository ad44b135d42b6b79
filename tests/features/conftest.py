"""Fixtures of the data side: a control store in a temporary home, and importing into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import settings

from features.activity_store import ActivityStore
from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.import_dataset import import_dataset
from features.import_report import ImportReport
from features.paths import DatasetPaths

# No deadline: a loaded machine is no failure.
settings.register_profile("features", deadline=None, max_examples=60)
settings.load_profile("features")


@dataclass
class Home:
    """A temporary SHORTLIST_HOME with its control store."""

    folder: Path
    control: ControlStore
    reports: list[ImportReport] = field(default_factory=list)

    def paths(self, dataset: str = "d") -> DatasetPaths:
        return DatasetPaths(self.folder, dataset)

    def catalogue(self, dataset: str = "d") -> Catalogue:
        return Catalogue(self.control, dataset)

    def store(self, dataset: str = "d") -> ActivityStore:
        return ActivityStore(self.paths(dataset).activity)

    def import_(self, source: Path | str, dataset: str = "d", **options: Any) -> ImportReport:
        report = import_dataset(str(source), self.paths(dataset), self.catalogue(dataset), **options)
        self.reports.append(report)
        return report

    def events(self, dataset: str = "d") -> pd.DataFrame:
        """The stored events, sorted by user and time."""
        return self.store(dataset).read().to_pandas()

    def rejects(self) -> pd.DataFrame:
        """The rejects file of the last import."""
        path = self.reports[-1].rejected_path
        assert path is not None
        return pd.read_csv(path)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    control = ControlStore(f"sqlite:///{tmp_path / 'home' / 'control.db'}").create()
    yield Home(tmp_path / "home", control)
    control.close()


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Writes a file below the temporary folder and returns its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a dataset folder from column dictionaries: `folder(interactions, items=..., users=...)`."""

    def write(interactions: dict[str, Any], name: str = "source", **tables: dict[str, Any]) -> Path:
        target = tmp_path / name
        target.mkdir(exist_ok=True)
        for part, columns in {"interactions": interactions, **tables}.items():
            pd.DataFrame(columns).to_parquet(target / f"{part}.parquet")
        return target

    return write
