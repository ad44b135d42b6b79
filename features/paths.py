"""Where a dataset's durable state lives under SHORTLIST_HOME. Pure path arithmetic: nothing is created here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DATASET_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}$")


@dataclass(frozen=True)
class DatasetPaths:
    """Paths of one dataset (a namespace: own store, own Feast project, own registered model).

    Args:
        home: SHORTLIST_HOME.
        dataset: the dataset's name; lower-case letters, digits, `.`, `_` and `-`, 63 characters at most.
        store_url: URL below which activity stores lie, one a dataset; None keeps them below the home.

    Raises:
        ValueError: the name is not usable as a path part and Redis key prefix.
    """

    home: Path
    dataset: str
    store_url: str | None = None

    def __post_init__(self) -> None:
        if not DATASET_NAME.match(self.dataset):
            raise ValueError(
                f"dataset name {self.dataset!r} is not allowed: use 1 to 63 lower-case letters, digits, '.', '_' or '-', "
                "starting with a letter or digit"
            )

    @property
    def root(self) -> Path:
        """Everything of this dataset."""
        return self.home / "datasets" / self.dataset

    @property
    def activity(self) -> str | Path:
        """The activity store: Parquet partitioned by event date. A folder, or a URL of fsspec."""
        return self.root / "activity" if self.store_url is None else f"{self.store_url.rstrip('/')}/{self.dataset}"

    @property
    def activity_state(self) -> Path:
        """What writers of the activity store need on this machine."""
        return self.root / "activity" / "_state"

    @property
    def exposures(self) -> Path:
        """Exposure log: Parquet partitioned by date."""
        return self.root / "exposures"

    @property
    def schema_file(self) -> Path:
        """`schema.json`: attributes and their types; Feast fields are built from it."""
        return self.root / "schema.json"

    @property
    def rejects(self) -> Path:
        """Rejected rows of imports, one file an import, with the reason of each."""
        return self.root / "rejects"

    @property
    def feature_tables(self) -> Path:
        """Parquet batch sources of the Feast views."""
        return self.root / "feature_tables"

    @property
    def feast_registry(self) -> Path:
        """Feast's registry file."""
        return self.root / "feast" / "registry.db"

    @property
    def registered_model(self) -> str:
        """Name of the registered model in MLflow, which is also the `model_id` over HTTP."""
        return f"shortlist-{self.dataset}"

    @property
    def feast_project(self) -> str:
        """Feast project name: Feast allows letters, digits and underscores only. Different datasets have different projects."""
        return "shortlist_" + self.dataset.replace("_", "__").replace("-", "_m").replace(".", "_p")
