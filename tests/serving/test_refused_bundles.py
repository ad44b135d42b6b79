"""Bundles that cannot be served are refused with the reason, before anything is deployed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from training.bundle import open_bundle
from training.errors import BundleError


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def lacks_a_file(folder: Path) -> None:
    (folder / "items.parquet").unlink()


def names_another_dataset(folder: Path) -> None:
    edited(folder, lambda manifest: manifest.update(dataset="another"))


def names_another_feature_service(folder: Path) -> None:
    edited(folder, lambda manifest: manifest.update(feature_services=["ranking_v0"]))


def has_nan_weights(folder: Path) -> None:
    """NaN in every weight, with hashes that fit: as a training that diverged would have saved it."""

    def spoil(manifest: dict[str, Any]) -> None:
        spoilt = 0
        for name, entry in manifest["files"].items():
            arrays = load_file(folder / name) if name.endswith(".safetensors") else {}
            floats = {key: np.full_like(values, np.nan) for key, values in arrays.items() if values.dtype.kind == "f"}
            if floats:
                save_file(arrays | floats, folder / name)
                raw = (folder / name).read_bytes()
                entry.update(sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw))
                spoilt += 1
        assert spoilt

    edited(folder, spoil)


SPOILT = [
    (lacks_a_file, "lacks items.parquet"),
    (names_another_dataset, "belongs to dataset 'another'"),
    (names_another_feature_service, "reads feature service 'ranking_v0'"),
    (has_nan_weights, "NaN"),
]
"""How to spoil a bundle below a folder, and what its refusal says."""


@pytest.mark.parametrize(("spoil", "reason"), SPOILT)
def test_what_cannot_be_served_is_refused(bundle: Path, tmp_path: Path, spoil: Callable[[Path], None], reason: str) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    open_bundle(copy, expected_dataset="planted")
    spoil(copy)
    with pytest.raises(BundleError, match=reason):
        open_bundle(copy, expected_dataset="planted")
