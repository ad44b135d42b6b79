"""The form of a model version on disk: a folder with a manifest that names every file and its hash.

    manifest.json           BundleManifest
    funnel.json             FunnelConfig, fitted blend, what the ranker reads
    items.parquet           item_id and attributes, row number = item_idx
    popularity.safetensors  item numbers by popularity, to fill lists that run short
    users.parquet, histories.safetensors    who was known and what they did, as of training
    sources/<name>/         what each retriever saved
    ranker/, features/      what the ranker and its features saved, where there is one

`training.pipeline` writes and reads the contents; this module seals a folder and refuses one that cannot be trusted. Nothing in
a bundle is a pickle.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.arrays import non_finite
from training.errors import BundleError
from training.interactions import IdArray, Interactions

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
ITEMS_FILE = "items.parquet"
POPULARITY_FILE = "popularity.safetensors"
RANKER_FOLDER, FEATURES_FOLDER = "ranker", "features"
POPULARITY_FILL = "popular"
"""Source of items that no retriever returned and that fill a list which would run short."""
FEATURE_SERVICES = frozenset({"ranking_v1"})
"""Feature services whose columns this release gives a ranker when it answers."""
WEIGHT_FOLDERS = ("sources", RANKER_FOLDER)
"""Folders whose arrays must be finite and which may hold no file that the manifest does not list."""
FORBIDDEN_SUFFIXES = frozenset({".pkl", ".pickle", ".joblib", ".pt", ".pth", ".npy", ".npz"})
"""Files of these kinds are, or may hold, pickles."""


class DataFingerprint(BaseModel):
    """Which data a bundle was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    as_of: datetime | None = None
    """What happened until then was read: up to the latest event, but nothing after the moment of reading, which is what stands
    here where the data has no times. None where nobody says."""
    events: int
    users: int
    items: int
    sha256: str
    """Of ids, order and times of the interactions that the first stages were fitted on."""
    trained_on: Literal["fit", "all"]
    """`fit`: validation and test rows were left out. `all`: the refit for serving, which reads everything."""
    includes_test_rows: bool
    """Whether an evaluation of this bundle on the test part would be on rows that it has seen."""


class FileEntry(BaseModel):
    """One file of a bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    bytes: int


class BundleManifest(BaseModel):
    """What a bundle is, where it came from and how good it was."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    dataset: str
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    git_commit: str | None = None
    seed: int
    sources: dict[str, dict[str, Any]]
    """Source -> model, configuration and quota."""
    ranker: str
    """`blend`, or the kind of a ranker: what actually ranks, after the comparison on validation."""
    feature_services: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    """Columns of the ranker, in order; empty for the blend."""
    feature_hash: str = ""
    """SHA-256 of `feature_names`."""
    fingerprint: DataFingerprint
    metrics: dict[str, float] = Field(default_factory=dict)
    """Validation metrics, taken before the refit; `<name>.<metric>` for parts of the funnel."""
    ci95: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """95 % intervals of the metrics over users."""
    files: dict[str, FileEntry] = Field(default_factory=dict)
    """Relative path -> size and hash of every file but the manifest."""

    @property
    def known_until(self) -> datetime:
        """Up to when it knows what happened: nothing after it was made, whatever the clocks say."""
        as_of = self.fingerprint.as_of
        return self.created_at if as_of is None else min(as_of, self.created_at)


def fingerprint(
    interactions: Interactions, *, trained_on: Literal["fit", "all"], includes_test_rows: bool, as_of: datetime | None = None
) -> DataFingerprint:
    """Fingerprint of what first stages were fitted on."""
    digest = hashlib.sha256()
    for ids in (interactions.user_ids, interactions.item_ids):
        digest.update(_id_bytes(ids))
    for column in (interactions.user_idx, interactions.item_idx, interactions.time_us):
        digest.update(np.ascontiguousarray(column).tobytes())
    return DataFingerprint(
        as_of=as_of,
        events=len(interactions),
        users=len(np.unique(interactions.user_idx)),
        items=len(np.unique(interactions.item_idx)),
        sha256=digest.hexdigest(),
        trained_on=trained_on,
        includes_test_rows=includes_test_rows,
    )


def feature_hash(names: tuple[str, ...]) -> str:
    """SHA-256 over feature names in order, as in `BundleManifest.feature_hash`."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def seal_bundle(folder: Path, manifest: BundleManifest) -> BundleManifest:
    """Write the manifest of a finished folder with the hash of every file in it.

    Raises:
        BundleError: a file is a pickle by its name, or a weight is not finite.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_FILE)
    for path in files:
        _refuse_unsafe(path, folder)
    entries = {path.relative_to(folder).as_posix(): FileEntry(sha256=_file_hash(path), bytes=path.stat().st_size) for path in files}
    sealed = manifest.model_copy(update={"files": entries})
    (folder / MANIFEST_FILE).write_text(sealed.model_dump_json(indent=2) + "\n")
    return sealed


def open_bundle(folder: Path, *, expected_dataset: str | None = None) -> BundleManifest:
    """Check a bundle and return its manifest; its contents can then be read.

    Args:
        folder: the bundle.
        expected_dataset: refuse a bundle of any other dataset.

    Raises:
        BundleError: no manifest or one that cannot be read, a format or feature service that this release does not know,
            another dataset, a file that is missing, added to the weights, or differs from its hash, a pickle, or a weight that is
            NaN or infinite.
    """
    manifest = _read_manifest(folder)
    if expected_dataset is not None and manifest.dataset != expected_dataset:
        raise BundleError(
            f"bundle {folder.name} belongs to dataset {manifest.dataset!r}, not {expected_dataset!r}: "
            f"choose a version of shortlist-{expected_dataset}"
        )
    unknown = sorted(set(manifest.feature_services) - FEATURE_SERVICES)
    if unknown:
        raise BundleError(
            f"bundle {folder.name} reads feature service {unknown[0]!r}, this release has {', '.join(sorted(FEATURE_SERVICES))}: "
            "serve it with the release that built it, or train it again"
        )
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise BundleError(f"bundle {folder.name} lists {name}, which lies outside the bundle; build it again")
        if not path.is_file():
            raise BundleError(f"bundle {folder.name} lacks {name}; fetch or build it again")
        if path.stat().st_size != entry.bytes or _file_hash(path) != entry.sha256:
            raise BundleError(f"{name} of bundle {folder.name} differs from the hash in its manifest; fetch or build it again")
        _refuse_unsafe(path, folder)
    for part in WEIGHT_FOLDERS:
        for path in (folder / part).rglob("*"):
            if path.is_file() and path.relative_to(folder).as_posix() not in manifest.files:
                raise BundleError(f"bundle {folder.name} holds {path.relative_to(folder)}, which its manifest does not list")
    return manifest


def _read_manifest(folder: Path) -> BundleManifest:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST_FILE}")
    try:
        raw = json.loads(path.read_text())
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if version != FORMAT_VERSION:
            raise BundleError(f"bundle {folder.name} has format {version}; this release reads format {FORMAT_VERSION}")
        return BundleManifest.model_validate(raw)
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise BundleError(f"{MANIFEST_FILE} of bundle {folder.name} cannot be read ({first}); fetch or build it again") from error


def _refuse_unsafe(path: Path, folder: Path) -> None:
    name = path.relative_to(folder).as_posix()
    if path.suffix in FORBIDDEN_SUFFIXES:
        raise BundleError(f"bundle {folder.name} holds {name}, which may be a pickle: save arrays as safetensors")
    if path.suffix == ".safetensors" and name.split("/")[0] in WEIGHT_FOLDERS:
        broken = non_finite(path)
        if broken:
            raise BundleError(f"{broken[0]} in {name} of bundle {folder.name} holds NaN or infinite weights; train it again")


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _id_bytes(ids: IdArray) -> bytes:
    return "\x1f".join(ids.tolist()).encode()
