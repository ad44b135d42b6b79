"""The one file that Feast's own tools parse (`.feastignore` names the others): the objects of the dataset named by the environment.

`FEATURE_REPO_DATASET` names a dataset's folder, which holds `schema.json` and `feature_tables/`. Without it nothing is declared.
Shortlist itself does not read this module: it builds the same objects from a `DatasetSchema`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from feature_repo.repository import build_repository

DATASET_VARIABLE = "FEATURE_REPO_DATASET"


def declared_objects() -> dict[str, object]:
    """Name -> object of the dataset that the environment names, empty where it names none."""
    folder = os.environ.get(DATASET_VARIABLE)
    if not folder:
        return {}
    schema = json.loads((Path(folder) / "schema.json").read_text())
    return {declared.name: declared for declared in build_repository(schema, Path(folder) / "feature_tables").objects()}


# Feast's parser looks at a module's attributes one by one, not into lists.
globals().update(declared_objects())
