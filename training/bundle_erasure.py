"""Taking a user out of a bundle: the id and the history go, the row stays empty, so that row numbers elsewhere hold.

Weights are not trained again: what a model learned from one user among many stays, under a row that names nobody. The manifest is
sealed anew, so the bundle opens as before.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.bundle import MANIFEST_FILE, open_bundle, seal_bundle
from training.histories import HISTORIES_FILE, USERS_FILE, Histories

CHANGED_FILES = (HISTORIES_FILE, USERS_FILE, MANIFEST_FILE)
"""Files that an erasure replaces, in this order."""


def erase_user(folder: Path, user_id: str) -> bool:
    """Take a user out of the bundle in a folder; returns whether the bundle knew the user.

    Each file is replaced whole. Processes that have the bundle open keep what they have until they read it again; one that opens it
    between the replacements is refused by the manifest's hashes and tries again.

    Raises:
        BundleError: the folder is no bundle.
    """
    manifest = open_bundle(folder)
    histories = Histories.load(folder)
    row = int(histories.users.rows([user_id])[0])
    if row < 0:
        return False
    start, stop = int(histories.indptr[row]), int(histories.indptr[row + 1])
    kept = np.r_[0:start, stop : len(histories.item_idx)]
    indptr = histories.indptr.copy()
    indptr[row + 1 :] -= stop - start
    user_ids = histories.user_ids.copy()
    user_ids[row] = f"erased:{secrets.token_hex(8)}"
    changed = replace(
        histories,
        user_ids=user_ids,
        indptr=indptr,
        item_idx=histories.item_idx[kept],
        time_us=histories.time_us[kept],
        value=histories.value[kept],
        action=histories.action[kept],
        rejected=None if histories.rejected is None else histories.rejected.without(row),
    )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".erasing-") as scratch:
        work = Path(scratch) / folder.name
        shutil.copytree(folder, work, copy_function=os.link)
        for name in CHANGED_FILES:
            (work / name).unlink()  # the links share their content with the bundle
        changed.save(work)
        seal_bundle(work, manifest)
        for name in CHANGED_FILES:
            os.replace(work / name, folder / name)
    return True
