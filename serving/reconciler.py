"""The reconciler: makes what is served equal to what the registry's aliases and the running experiments want.

    wanted = versions of all aliases + versions pinned by experiments that are starting, running or paused
    actual = version applications of Ray Serve

A missing version is loaded beside the old ones, asked real questions, and only then routed to; one that nothing wants any more is
drained and removed. What fails is refused, with the reason in the registry, and the old version stays. With MLflow gone, what runs
goes on; after a restart without MLflow the last routing state is deployed again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tenacity import RetryError, Retrying, stop_after_attempt, wait_exponential

from features.control_store import ControlStore
from serving.announce import WANTED, announce, listen
from serving.config import ServingConfig
from serving.control import ServingControl, ServingState
from serving.errors import VersionRefusedError
from serving.messages import ComputeRequest
from serving.version_check import check_version
from training.bundle import open_bundle
from training.errors import RegistryError, TrainingError
from training.registry import CHAMPION, SERVING_TAG, Registry

_log = logging.getLogger("shortlist.serving")

LOAD_ATTEMPTS = 3
REASON_CHARACTERS = 200
ACTOR = "reconciler"
STOP_WITHIN_S = 0.5


class Graph(Protocol):
    """The part of `serving.graph` that the reconciler drives."""

    def deploy(self, version: str, folder: Path) -> None:
        """Deploy a version and wait until its replicas are ready."""

    def ask(self, version: str, request: ComputeRequest) -> bytes:
        """An encoded list from the version's replicas."""

    def delete(self, version: str) -> None:
        """Drain and remove a version."""

    def running(self) -> set[str]:
        """Versions whose application runs."""


@dataclass(frozen=True)
class Refusal:
    """Why a version is not served. `overridable`: the gate failed it, which a tag in the registry can override."""

    reason: str
    overridable: bool = False


class Reconciler:
    """One loop for one dataset.

    Args:
        config: of the stack.
        graph: deploys versions; Ray must be connected for the real one.
        registry: the dataset's versions and aliases.
        clock: seconds, monotonic; for tests.
        first_pause_s: pause before the second attempt to load a version, doubled before the third.
    """

    def __init__(
        self,
        config: ServingConfig,
        graph: Graph | None = None,
        registry: Registry | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        first_pause_s: float = 1.0,
    ) -> None:
        self._config = config
        self._graph = graph or ServeGraph(config)
        self._registry = registry or Registry(config.mlflow_uri, config.dataset, cache=config.home / "bundles")
        self._control = ServingControl(ControlStore(config.control_url).create(), config.dataset)
        self._clock = clock
        self._first_pause_s = first_pause_s
        self._refused: dict[str, Refusal] = {}
        self._seen_aliases: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._unwanted_since: dict[str, float] = {}
        self._known_folders: dict[str, str] = {}
        self._registry_down = False
        self._running: set[str] = set()

    def run(self, stop: threading.Event) -> None:
        """Step whenever other versions may be wanted, and every `poll_s` seconds, until `stop` is set. No trouble ends it."""
        look = threading.Event()
        listening = threading.Thread(target=_listen, args=(self._config, look), name="reconciler-listen", daemon=True)
        listening.start()
        while not stop.is_set():
            look.clear()
            try:
                self.step()
            except Exception:
                _log.exception("reconciliation failed, tried again in %.0f s", self._config.poll_s)
            until = time.monotonic() + self._config.poll_s
            while not stop.is_set() and not look.is_set() and time.monotonic() < until:
                look.wait(min(STOP_WITHIN_S, max(0.0, until - time.monotonic())))

    def step(self) -> ServingState:
        """Look once and do what is needed; returns the routing state.

        Raises:
            FeaturesError: the control store cannot be read or written.
        """
        before = self._control.state()
        self._running = self._graph.running()  # asked once: Serve's controller answers in milliseconds of its one core
        aliases = self._aliases()
        if aliases is None:
            self._redeploy(before)
            return before
        pinned = self._pinned()
        wanted = sorted({*aliases.values(), *pinned}, key=lambda version: (version != aliases.get(CHAMPION), int(version)))
        folders = dict(before.versions)
        champion = before.champion
        state = before
        for version in wanted:
            folder = self._ensure(version, folders.get(version) or self._known_folders.get(version))
            if folder is not None:
                folders[version] = str(folder)
                if version == aliases.get(CHAMPION):
                    champion = version
                # Routed to as soon as it is ready: a slow or broken challenger must not hold the champion back.
                state = self._route(ServingState(champion, dict(folders)))
        self._known_folders |= folders
        keep = {version for version in (*wanted, champion) if version is not None}
        state = self._route(ServingState(champion, {version: folder for version, folder in folders.items() if version in keep}))
        self._start_experiments(state)
        self._drop(state)
        return state

    def _aliases(self) -> dict[str, str] | None:
        """Aliases now, None where MLflow cannot be asked."""
        try:
            aliases = self._registry.aliases()
            for alias, version in aliases.items():
                if self._seen_aliases.get(alias) != version:
                    self._registry.observe(alias)
                    self._audit_alias(alias, self._seen_aliases.get(alias), version)
                    # Pointing an alias at a refused version again is the operator's way to say: try once more.
                    self._refused.pop(version, None)
            for alias in self._seen_aliases.keys() - aliases.keys():
                self._audit_alias(alias, self._seen_aliases[alias], None)
            self._seen_aliases = aliases
        except RegistryError as error:
            if not self._registry_down:
                _log.error("aliases cannot be followed, what is served stays: %s", error)
            self._registry_down = True
            return None
        self._registry_down = False
        return aliases

    def _pinned(self) -> set[str]:
        records = self._control.experiments()
        return {version for one in records if one.status in {"starting", "running", "paused"} for version in one.pins.values()}

    def _start_experiments(self, state: ServingState) -> None:
        """Experiments whose versions are all routed to begin to assign."""
        for one in self._control.experiments():
            if one.status == "starting" and set(one.pins.values()) <= state.versions.keys():
                self._control.run_experiment(one.spec.name, actor=ACTOR)
                announce(self._config)

    def _ensure(self, version: str, known_folder: str | None) -> Path | None:
        """The folder of a version that runs and has passed its check, None where it is refused."""
        refusal = self._refused.get(version)
        try:
            if refusal is not None:
                if not (refusal.overridable and self._registry.version(version).servable):
                    return None
                del self._refused[version]
            if known_folder is not None and version in self._running:
                self._tag(version, "live")
                return Path(known_folder)
            if not self._registry.version(version).servable:
                self._refuse(version, Refusal("the gate failed it; set shortlist.gate_override=<reason> to serve it", True))
                return None
            self._tag(version, "loading")
            folder = self._registry.download(version)
            open_bundle(folder, expected_dataset=self._config.dataset)  # what is damaged is not worth three attempts
            self._load(version, folder)
        except RetryError as error:
            cause = error.last_attempt.exception()
            kind = "" if isinstance(cause, VersionRefusedError) else f"{type(cause).__name__}: "
            self._refuse(version, Refusal(f"{kind}{_first_line(cause)}"))
            return None
        except TrainingError as error:
            self._refuse(version, Refusal(_first_line(error)))
            return None
        self._tag(version, "live")
        return folder

    def _load(self, version: str, folder: Path) -> None:
        pause = wait_exponential(multiplier=self._first_pause_s, min=self._first_pause_s)
        for attempt in Retrying(stop=stop_after_attempt(LOAD_ATTEMPTS), wait=pause):
            with attempt:
                started = time.monotonic()
                try:
                    self._graph.deploy(version, folder)
                    check_version(folder, lambda request: self._graph.ask(version, request))
                except Exception as error:
                    number = attempt.retry_state.attempt_number
                    _log.warning("version %s, attempt %d of %d: %s", version, number, LOAD_ATTEMPTS, _first_line(error))
                    self._graph.delete(version)
                    self._running.discard(version)
                    raise
                self._running.add(version)
                _log.info("version %s is live after %.1f s", version, time.monotonic() - started)

    def _redeploy(self, state: ServingState) -> None:
        """Without MLflow: bring back what was routed to before a restart."""
        missing = state.versions.keys() - self._running - self._refused.keys()
        for version in sorted(missing, key=lambda one: one != state.champion):
            try:
                self._load(version, Path(state.versions[version]))
            except RetryError as error:
                self._refused[version] = Refusal(_first_line(error.last_attempt.exception()))

    def _route(self, state: ServingState) -> ServingState:
        if self._control.set_state(state, actor=ACTOR, action="routing"):
            _log.info("routing: champion %s of %s", state.champion, ", ".join(state.versions) or "none")
            announce(self._config)
        return state

    def _drop(self, state: ServingState) -> None:
        """Remove applications that nothing routes to, once every gateway must have noticed and finished its last calls."""
        now = self._clock()
        idle = self._running - state.versions.keys()
        self._unwanted_since = {version: self._unwanted_since.get(version, now) for version in idle}
        patience_s = self._config.reread_s + self._config.deadline_ms / 1000 + 1
        for version, since in list(self._unwanted_since.items()):
            if now - since >= patience_s:
                self._graph.delete(version)
                self._known_folders.pop(version, None)
                del self._unwanted_since[version]
                self._tag(version, "unloaded")

    def _refuse(self, version: str, refusal: Refusal) -> None:
        _log.error("version %s is refused: %s", version, refusal.reason)
        self._refused[version] = refusal
        self._tag(version, f"refused: {refusal.reason}"[:REASON_CHARACTERS])

    def _tag(self, version: str, value: str) -> None:
        """Show in the registry what serving does with a version; a registry that is gone is told later."""
        if self._tags.get(version) == value:
            return
        try:
            self._registry.set_tag(version, SERVING_TAG, value)
            self._tags[version] = value
        except RegistryError as error:
            _log.warning("tag %s=%s not written: %s", SERVING_TAG, value, error)

    def _audit_alias(self, alias: str, before: str | None, after: str | None) -> None:
        subject = f"alias:{alias}"
        if self._control.audit.last_value(subject) == after:
            return  # moved over our own API, or the first look after a start: the log has it
        self._control.audit.record(actor="mlflow", action="alias", subject=subject, before=before, after=after)


class ServeGraph:
    """`Graph` on Ray Serve."""

    def __init__(self, config: ServingConfig) -> None:
        self._config = config

    def deploy(self, version: str, folder: Path) -> None:
        """See `Graph.deploy`."""
        from serving.graph import deploy_version

        deploy_version(self._config, version, folder)

    def ask(self, version: str, request: ComputeRequest) -> bytes:
        """See `Graph.ask`."""
        from serving.graph import ask_version

        return ask_version(self._config, version, request)

    def delete(self, version: str) -> None:
        """See `Graph.delete`."""
        from serving.graph import delete_version

        delete_version(self._config, version)

    def running(self) -> set[str]:
        """See `Graph.running`."""
        from serving.graph import running_versions

        return {version for version, status in running_versions(self._config).items() if status == "RUNNING"}


def _listen(config: ServingConfig, look: threading.Event) -> None:
    asyncio.run(listen(config, look.set, WANTED))


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().splitlines()[0] if error is not None and str(error).strip() else type(error).__name__
