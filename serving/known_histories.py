"""Histories of a version's bundle, read again when an erasure has changed them below a running replica."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from training.histories import USERS_FILE, Histories

_log = logging.getLogger("shortlist.serving")
LOOK_EVERY_S = 1.0


class KnownHistories:
    """The histories of one bundle.

    Args:
        histories: as they were loaded.
        folder: of the bundle; None for one that is in memory alone.
    """

    def __init__(self, histories: Histories, folder: Path | None) -> None:
        self._histories, self._file = histories, folder / USERS_FILE if folder is not None else None
        self._changed_ns = self._last_change()
        self._look_at = 0.0

    def current(self) -> Histories:
        """As of a second ago at most."""
        now = time.monotonic()
        if self._file is not None and now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            try:
                changed_ns = self._last_change()
                if changed_ns != self._changed_ns:
                    self._histories, self._changed_ns = Histories.load(self._file.parent), changed_ns
            except OSError as error:
                _log.warning("the users of bundle %s cannot be read again, those known stay: %s", self._file.parent.name, error)
        return self._histories

    def _last_change(self) -> int:
        return 0 if self._file is None else os.stat(self._file).st_mtime_ns
