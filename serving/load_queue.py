"""Loads of versions in the background, a few at a time, so that a slow one holds up no other, and the champion's waits for none.

Knows nothing of what a load is: `serving.version_loader` brings versions up, `serving.reconciler` says which.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger("shortlist.serving")

LOADS_AT_ONCE = 2
"""Beside the urgent ones: each takes a core and, at a million items, half a minute."""

Load = Callable[[], Path | None]
"""Brings one version up: its folder, or None where it is refused."""


class LoadQueue:
    """Runs loads by key.

    Args:
        done: called in the load's thread when one has ended well or was refused.
    """

    def __init__(self, done: Callable[[], None]) -> None:
        self._done = done
        self._room = threading.Condition()
        self._running = 0
        self._urgent: set[str] = set()
        self._threads: dict[str, threading.Thread] = {}
        self._folders: dict[str, Path] = {}
        self._error: Exception | None = None

    @property
    def keys(self) -> set[str]:
        """What is being loaded, waits for it, or has come up and was not taken."""
        with self._room:
            return self._threads.keys() | self._folders.keys()

    def start(self, key: str, load: Load, *, urgent: bool = False) -> None:
        """Begin a load; nothing happens where one of the key is under way.

        Args:
            key: tells loads apart.
            load: whatever it raises is logged, and it may be started again.
            urgent: waits for no other.
        """
        with self._room:
            if key in self._threads:
                return
            if urgent:
                self._urgent.add(key)
            # Ends with the process: a load has nothing that would have to be finished.
            thread = threading.Thread(target=self._run, args=(key, load), name=f"load-{key}", daemon=True)
            self._threads[key] = thread
        thread.start()

    def hurry(self, key: str) -> None:
        """A load that is under way has become urgent."""
        with self._room:
            if key in self._threads:
                self._urgent.add(key)
                self._room.notify_all()

    def take(self) -> dict[str, Path]:
        """Key -> folder of what has come up since the last call."""
        with self._room:
            taken, self._folders = self._folders, {}
            return taken

    def wait(self) -> None:
        """Until none of the present loads is left.

        Raises:
            Exception: whatever the last load that failed has raised.
        """
        for thread in list(self._threads.values()):
            thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, key: str, load: Load) -> None:
        folder: Path | None = None
        failed: Exception | None = None
        try:
            with self._turn(key):
                folder = load()
        except Exception as error:
            _log.exception("version %s: loading failed", key)
            failed = error
        with self._room:
            self._threads.pop(key, None)
            self._urgent.discard(key)
            self._error = failed or self._error
            if folder is not None:
                self._folders[key] = folder
        if failed is None:  # else it is tried again at the next regular look, not at once
            self._done()

    @contextmanager
    def _turn(self, key: str) -> Iterator[None]:
        """A place among those that may run; none is taken by what is urgent."""
        with self._room:
            self._room.wait_for(lambda: key in self._urgent or self._running < LOADS_AT_ONCE)
            places = 0 if key in self._urgent else 1
            self._running += places
        try:
            yield
        finally:
            with self._room:
                self._running -= places
                self._room.notify_all()
