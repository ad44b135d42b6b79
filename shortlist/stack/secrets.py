"""Tokens of a local stack: those that the environment does not give are generated once and kept below the home, mode 600."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def secret_file(home: Path, name: str) -> Path:
    """Where a home keeps the secret of that name."""
    return home / "run" / f"{name}.secret"


def kept_secret(home: Path, name: str) -> str:
    """The secret of that name, generated at first use."""
    path = secret_file(home, name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(24))
    return path.read_text().strip()


def webhook_secret_file(home: Path, given: str | None) -> Path:
    """File of the secret that MLflow signs with: `given`, else one generated at first use. Every gateway replica reads it."""
    path = home / "run" / "webhook.secret"
    if given is None:
        kept_secret(home, "webhook")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(given)
    return path.absolute()


def ray_token_file(home: Path) -> Path:
    """Ray's authentication token: a file of this home, so that two stacks do not meet."""
    path = home / "run" / "ray.token"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return path.absolute()
