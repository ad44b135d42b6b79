"""Embedded MLflow: a real tracking server on sqlite, one worker, artifacts written straight to disk by its clients."""

from __future__ import annotations

import base64
import secrets
import sys
from pathlib import Path

from shortlist.stack.errors import StackError
from shortlist.stack.ports import answers, wait_until
from shortlist.stack.process import Child


def start_mlflow(folder: Path, port: int) -> tuple[Child, str]:
    """Start `mlflow server` on loopback and wait until it is healthy.

    Args:
        folder: database, artifacts and log.
        port: port to bind.

    Returns:
        The process and the tracking URI.
    """
    artifacts = (folder / "artifacts").absolute()
    artifacts.mkdir(parents=True, exist_ok=True)
    database = (folder / "mlflow.db").absolute()
    if not database.exists():
        database.touch(mode=0o600)
    url = f"http://127.0.0.1:{port}"
    child = Child(
        "mlflow",
        "experiment tracking, model registry and its UI",
        [
            *(sys.executable, "-m", "mlflow", "server"),
            *("--backend-store-uri", f"sqlite:///{database}"),
            *("--default-artifact-root", str(artifacts), "--no-serve-artifacts"),
            *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--uvicorn-opts", "--no-access-log"),  # it is polled every few seconds: a line each would fill the log
        ],
        folder / "mlflow.log",
        {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": _webhook_key(folder),
            "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
            "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
            "MLFLOW_WEBHOOK_CACHE_TTL": "1",
            "GIT_PYTHON_REFRESH": "quiet",
        },
    )
    child.start()
    try:
        wait_until(lambda: answers(f"{url}/health"), seconds=90, what="MLflow", alive=child.alive)
    except StackError as error:
        child.stop()
        raise StackError(f"{error}; its log ends: {child.log_tail(3)}") from None
    return child, url


def _webhook_key(folder: Path) -> str:
    """Fernet key for webhook secrets. It must outlive restarts: without it webhooks stop silently."""
    path = folder / "webhook.key"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())
    return path.read_text()
