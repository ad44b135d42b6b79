"""A registered version's bundle as a local folder. Nothing is copied where the artifact store is a local folder.

Remote stores are copied once into a cache: versions never change, so a copy is good for ever.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

from training.errors import RegistryError


def local_bundle(tracking_uri: str, artifact_uri: str, cached: Path | None, what: str) -> Path:
    """The bundle's folder, fetched first where it has to be.

    Args:
        tracking_uri: of the MLflow server, which may be the one that serves the artifacts.
        artifact_uri: where the version's files are.
        cached: folder that a remote version is copied to; None where there is no cache.
        what: names the version in messages.

    Raises:
        RegistryError: its files are gone, or it is remote and `cached` is None.
    """
    local = _local_path(artifact_uri)
    if local is not None:
        return _bundle_folder(local, what)
    if cached is None:
        raise RegistryError(f"{what} is at {artifact_uri}: a cache folder is needed to fetch it")
    if not cached.exists():
        from training.pyfunc import download_model

        cached.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{cached.name}-", dir=cached.parent))
        try:
            download_model(tracking_uri, artifact_uri, staging)
            os.rename(staging, cached)
        except OSError as error:
            # Another process of this machine may have finished first.
            if not cached.exists():
                raise RegistryError(f"{what} cannot be stored at {cached}: {error}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return _bundle_folder(cached, what)


def _local_path(uri: str) -> Path | None:
    parts = urlparse(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(uri) if not parts.scheme and Path(uri).is_absolute() else None


def _bundle_folder(model_folder: Path, what: str) -> Path:
    """The one folder below `artifacts/` of a stored MLflow model is the bundle."""
    folder = model_folder / "artifacts"
    found = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    if len(found) != 1:
        raise RegistryError(f"{what} has no bundle below {folder}: its files were moved, deleted or never uploaded by Shortlist")
    return found[0]
