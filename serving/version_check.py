"""Is a freshly deployed version fit to be shown? Asks it real questions, which also warms it up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from serving.cached_list import decode_list
from serving.errors import VersionRefusedError
from serving.messages import ComputeRequest
from training.bundle import ITEMS_FILE, MANIFEST_FILE, BundleManifest
from training.histories import Histories

USERS_ASKED = 16
ITEMS_WANTED = 20

Ask = Callable[[Sequence[ComputeRequest]], list[bytes]]
"""Requests to the version's own replicas, waiting for the encoded list of each."""


def check_version(folder: Path, ask: Ask) -> None:
    """Ask a version for lists of some of its own users.

    Args:
        folder: its bundle.
        ask: reaches its replicas.

    Raises:
        VersionRefusedError: an answer cannot be read, is not finite, or names an item twice, or items or sources that the version
            does not have; or all answers are empty.
    """
    num_items = pq.read_metadata(folder / ITEMS_FILE).num_rows
    num_sources = 1 + len(BundleManifest.model_validate_json((folder / MANIFEST_FILE).read_text()).sources)  # and `POPULARITY_FILL`
    histories = Histories.load(folder)
    with_history = np.flatnonzero(np.diff(histories.indptr) > 0)
    if not len(with_history):
        return
    asked = with_history[np.linspace(0, len(with_history) - 1, min(USERS_ASKED, len(with_history))).astype(int)]
    empty = 0
    for blob in ask([ComputeRequest(user_id=str(histories.user_ids[user]), k=ITEMS_WANTED) for user in asked]):
        answer = decode_list(blob)
        if answer is None:
            raise VersionRefusedError("its answers cannot be read: it was built by another release")
        if not answer.fits(num_items, num_sources):
            raise VersionRefusedError(f"it lists items or sources that are not among its {num_items} and {num_sources}")
        if not np.isfinite(answer.score).all():
            raise VersionRefusedError("it scores items with NaN or infinity")
        if len(np.unique(answer.item_idx)) < len(answer):
            raise VersionRefusedError("it lists an item twice")
        empty += len(answer) == 0
    if empty == len(asked):
        raise VersionRefusedError(f"it has no item for any of {len(asked)} known users")
