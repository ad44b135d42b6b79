"""The local Ray of a stack: one node, own token, own short temporary folder, quiet console."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from shortlist.stack.errors import StackError
from shortlist.stack.secrets import ray_token_file

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1",
}
"""Environment that keeps Ray's console output and its calls home away."""


def ray_environment(home: Path) -> dict[str, str]:
    """Environment that every process of this stack needs to talk to its Ray."""
    return {**QUIET, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(ray_token_file(home))}


def short_temporary_folder() -> Path:
    """A private folder with a short path: socket paths are limited to 107 bytes, so the home may be too deep for Ray's."""
    base = "/tmp" if sys.platform != "win32" else None
    return Path(tempfile.mkdtemp(prefix="sl-", dir=base))


def start_ray(home: Path, temporary: Path, extra_environment: Mapping[str, str]) -> str:
    """Start a one-node Ray owned by this process.

    Args:
        home: of the stack; its token is kept there.
        temporary: short private folder for sessions and sockets.
        extra_environment: read by raylet and workers, such as Serve's HAProxy settings.

    Returns:
        The address that other processes attach to.

    Raises:
        StackError: Ray does not start.
    """
    os.environ.update(ray_environment(home))
    os.environ.update(extra_environment)
    import ray

    try:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            namespace="shortlist",
            object_store_memory=_object_store_bytes(temporary),
            _temp_dir=str(temporary),
        )
    except Exception as error:
        raise StackError(f"Ray did not start: {error}; see {temporary}/session_latest/logs, or run: shortlist doctor") from error
    return str(ray.get_runtime_context().gcs_address)


def attach_ray(home: Path, address: str) -> None:
    """Connect this process to a running Ray.

    Raises:
        StackError: nothing answers there, or the token is another stack's.
    """
    os.environ.update(ray_environment(home))
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="shortlist")
    except Exception as error:
        raise StackError(f"Ray at {address} cannot be reached: {error}") from error


def stop_ray(temporary: Path) -> None:
    """Stop this process's Ray and remove its temporary folder."""
    import ray

    ray.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)


def _object_store_bytes(folder: Path) -> int:
    """A tenth of the free memory, 200 MB to 2 GB, and no more than shared memory has room for."""
    import psutil

    room = int(psutil.virtual_memory().available * 0.1)
    shm = Path("/dev/shm")
    if shm.is_dir():
        room = min(room, int(shutil.disk_usage(shm).free * 0.8))
    return max(200 * 2**20, min(room, 2 * 2**30))
