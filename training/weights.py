"""Fitted models of a study on disk: what took long to fit is fitted once and found again by whoever needs it.

The search keeps the best trial of each source, the funnel and strict evaluations load it, and an interrupted refit continues with
what it had finished. An entry is named by everything that decides a fit: model, configuration, rows, attributes and seed. So
what is found is what fitting would give, and an entry that is missing is only slower.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.bundle import fingerprint
from training.models.base import Retriever, TrainingData
from training.models.registry import MODELS

KEPT_FILE = "kept.json"
"""Written last: a folder without it is no entry."""
WORTH_KEEPING_SECONDS = 10.0
"""Fits that took less are done again rather than kept: reading them back is no faster."""
_SCRATCH = ".partial-"


@dataclass(frozen=True)
class WeightStore:
    """Fitted models below one folder, which need not exist yet.

    Args:
        folder: of one study on one dataset; on a cluster, one that all machines see.
    """

    folder: Path

    def path(self, model: str, config: Mapping[str, Any], data_sha256: str, seed: int) -> Path:
        """Where the model with this configuration, fitted on this data with this seed, is or would be."""
        resolved = MODELS[model].Config.model_validate(dict(config)).model_dump(mode="json")
        named = json.dumps([model, resolved, data_sha256, seed], sort_keys=True)
        return self.folder / f"{model}-{hashlib.sha256(named.encode()).hexdigest()[:20]}"

    def find(self, model: str, config: Mapping[str, Any], data_sha256: str, seed: int) -> Retriever | None:
        """The fitted model, None where it was not kept or cannot be read."""
        path = self.path(model, config, data_sha256, seed)
        if not (path / KEPT_FILE).exists():
            return None
        kind = MODELS[model]
        try:
            return kind.load(path, kind.Config.model_validate(dict(config)))
        except Exception:
            # Whatever its reader says of a damaged file: fitting again is the remedy.
            shutil.rmtree(path, ignore_errors=True)
            return None

    def add(self, fitted: Retriever, model: str, config: Mapping[str, Any], data_sha256: str, seed: int) -> None:
        """Save a fitted model as an entry."""
        saved = self.scratch()
        fitted.save(saved)
        self.keep(saved, self.path(model, config, data_sha256, seed), {"model": model, "config": dict(config)})

    def scratch(self) -> Path:
        """A new folder to save a model into, for `keep`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=self.folder))

    def keep(self, saved: Path, path: Path, note: Mapping[str, Any]) -> None:
        """Make a folder from `scratch`, into which a model was saved, the entry at `path`; one that is there already stays.

        Args:
            saved: the folder; gone afterwards.
            path: from `path`.
            note: for people who look at the folder.
        """
        (saved / KEPT_FILE).write_text(json.dumps(dict(note), indent=2, default=str) + "\n")
        try:
            os.rename(saved, path)
        except OSError:
            # Another trial with the same values was first.
            shutil.rmtree(saved, ignore_errors=True)

    def prune(self, wanted: Collection[Path]) -> None:
        """Delete every entry but `wanted`; what is still being written stays."""
        for entry in self.folder.iterdir() if self.folder.exists() else ():
            if entry not in wanted and not entry.name.startswith(_SCRATCH):
                shutil.rmtree(entry, ignore_errors=True)

    def sweep(self) -> None:
        """Delete what interrupted calls left half written. Only while nothing else writes here."""
        for entry in self.folder.glob(f"{_SCRATCH}*"):
            shutil.rmtree(entry, ignore_errors=True)


def data_sha256(data: TrainingData) -> str:
    """SHA-256 of everything that a model may read: interactions, their values, and the attributes of both sides."""
    digest = hashlib.sha256(fingerprint(data.interactions, trained_on="fit", includes_test_rows=False).sha256.encode())
    digest.update(np.ascontiguousarray(data.interactions.value).tobytes())
    for attributes in (data.item_attributes, data.user_attributes):
        for name in sorted(attributes):
            values = attributes[name]
            digest.update(f"\n{name} {values.dtype} ".encode())
            is_object = values.dtype == object
            digest.update(
                json.dumps(values.tolist(), default=str).encode() if is_object else np.ascontiguousarray(values).tobytes()
            )
    return digest.hexdigest()
