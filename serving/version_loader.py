"""Bringing a version up: loaded beside the others with retries, asked real questions, and refused with the reason where it fails.

Owns what is refused and what the registry's tag `shortlist.serving` shows; which versions are wanted is `serving.reconciler`'s.
Several versions may be brought up at once, each in a thread of its own (`serving.load_queue`).
An application is named by a key: a version's number, or `serving.graph.shadow_key` of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from tenacity import RetryError, Retrying, stop_after_attempt, wait_exponential

from serving.config import ServingConfig
from serving.errors import VersionRefusedError
from serving.messages import ComputeRequest
from serving.version_check import check_version
from training.bundle import open_bundle
from training.errors import RegistryDownError, RegistryError, TrainingError
from training.model_version import SERVING_TAG
from training.registry import Registry

_log = logging.getLogger("shortlist.serving")

LOAD_ATTEMPTS = 3
REASON_CHARACTERS = 200


class Graph(Protocol):
    """The part of `serving.graph` that rollout drives."""

    def deploy(self, key: str, folder: Path) -> None:
        """Deploy a version and wait until its replicas are ready."""

    def ask(self, key: str, requests: Sequence[ComputeRequest]) -> list[bytes]:
        """An encoded list for each request from its replicas."""

    def delete(self, key: str) -> None:
        """Drain and remove it."""

    def running(self) -> set[str]:
        """Keys whose application runs."""

    def rest(self) -> None:
        """Called again and again while nothing is being loaded: the time to get ready for the next version."""


@dataclass(frozen=True)
class Refusal:
    """Why a version is not served. `overridable`: the gate failed it, which a tag in the registry can override."""

    reason: str
    overridable: bool = False


class VersionLoader:
    """Loads versions of one dataset.

    Args:
        config: of the stack.
        graph: deploys versions.
        registry: of the versions; its tags are written.
        first_pause_s: pause before the second attempt to load a version, doubled before the third.
        clock: seconds, monotonic.
    """

    def __init__(
        self, config: ServingConfig, graph: Graph, registry: Registry, first_pause_s: float, clock: Callable[[], float]
    ) -> None:
        self._config, self._graph, self._registry, self._clock = config, graph, registry, clock
        self._first_pause_s = first_pause_s
        self._tags: dict[str, str] = {}
        self.refused: dict[str, Refusal] = {}
        """By the application's key: a version may run for its users and fail as its own shadow."""
        self.running: set[str] = set()
        self.took_s: dict[str, float] = {}
        """Of each application that was loaded here, from its deployment to its check."""

    def look(self) -> None:
        """Ask once which applications run: Serve's controller answers in milliseconds of its one core."""
        self.running = self._graph.running()

    def ready(self, version: str, known_folder: str | None, *, key: str, shown_as: str | None = "live") -> Path | None:
        """The folder of a version that runs and was checked when it was loaded; None where it does not run.

        Args:
            version: its number.
            known_folder: its bundle, where it was loaded before.
            key: of the application.
            shown_as: what the registry's tag says while it runs; None leaves the tag to another application of the version.
        """
        if known_folder is None or key not in self.running or key in self.refused:
            return None
        self.tag(version, shown_as)
        return Path(known_folder)

    def is_refused(self, version: str, *, key: str) -> bool:
        """Whether a version is not to be loaded as this application. One that the gate failed may have been overridden since.

        Raises:
            RegistryError: the registry cannot be asked.
        """
        refusal = self.refused.get(key)
        if refusal is None:
            return False
        if not (refusal.overridable and self._registry.version(version).servable):
            return True
        del self.refused[key]
        return False

    def bring_up(self, version: str, *, key: str, shown_as: str | None = "live") -> Path | None:
        """Load a version and check it; its folder, or None where it is refused. Takes as long as the version takes.

        Args:
            version, key, shown_as: as `ready` has them.

        Raises:
            RegistryDownError: MLflow went away meanwhile: that is no reason to refuse a version.
        """
        try:
            if not self._registry.version(version).servable:
                gate = Refusal("the gate failed it; set shortlist.gate_override=<reason> to serve it", overridable=True)
                self._refuse(version, gate, key=key, shown_as=shown_as)
                return None
            self.tag(version, "loading" if shown_as is not None else None)
            folder = self._registry.download(version)
            open_bundle(folder, expected_dataset=self._config.dataset)  # what is damaged is not worth three attempts
        except RegistryDownError:
            raise
        except TrainingError as error:
            self._refuse(version, Refusal(first_line(error)), key=key, shown_as=shown_as)
            return None
        if self.restore(version, folder, key=key, shown_as=shown_as) is None:
            return None
        self.tag(version, shown_as)
        return folder

    def restore(self, version: str, folder: Path, *, key: str, shown_as: str | None = "live") -> Path | None:
        """Load a version whose folder is known, without the registry; None where it is refused."""
        try:
            self.load(key, folder)
        except RetryError as error:
            cause = error.last_attempt.exception()
            kind = "" if isinstance(cause, VersionRefusedError) else f"{type(cause).__name__}: "
            self._refuse(version, Refusal(f"{kind}{first_line(cause)}"), key=key, shown_as=shown_as)
            return None
        return folder

    def load(self, key: str, folder: Path) -> None:
        """Deploy, ask, and give up after three attempts.

        Raises:
            RetryError: holds the last attempt's error.
        """
        pause = wait_exponential(multiplier=self._first_pause_s, min=self._first_pause_s)
        for attempt in Retrying(stop=stop_after_attempt(LOAD_ATTEMPTS), wait=pause):
            with attempt:
                started = self._clock()
                try:
                    self._graph.deploy(key, folder)
                    check_version(folder, partial(self._graph.ask, key))
                except Exception as error:
                    number = attempt.retry_state.attempt_number
                    _log.warning("version %s, attempt %d of %d: %s", key, number, LOAD_ATTEMPTS, first_line(error))
                    self._graph.delete(key)
                    self.running.discard(key)
                    raise
                self.running.add(key)
                self.took_s[key] = self._clock() - started
                _log.info("version %s is ready after %.1f s", key, self.took_s[key])

    def _refuse(self, version: str, refusal: Refusal, *, key: str, shown_as: str | None) -> None:
        _log.error("version %s is refused as %s: %s", version, key, refusal.reason)
        self.refused[key] = refusal
        if shown_as is not None:  # else the version runs in another application, of which the tag speaks
            self.tag(version, f"refused: {refusal.reason}"[:REASON_CHARACTERS])

    def tag(self, version: str, value: str | None) -> None:
        """Show in the registry what serving does with a version (None: nothing new); a registry that is gone is told later."""
        if value is None or self._tags.get(version) == value:
            return
        try:
            self._registry.set_tag(version, SERVING_TAG, value)
            self._tags[version] = value
        except RegistryError as error:
            _log.warning("tag %s=%s not written: %s", SERVING_TAG, value, error)


def first_line(error: BaseException | None) -> str:
    """The first line of an error's message, its kind where it has none."""
    return str(error).strip().splitlines()[0] if error is not None and str(error).strip() else type(error).__name__
