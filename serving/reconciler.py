"""The reconciler: makes what is served equal to what the registry's aliases and the running experiments want.

    wanted = versions of all aliases + versions pinned by experiments that are starting, running or paused (+ the shadow, apart)
    actual = version applications of Ray Serve

A missing version is loaded beside the old ones, asked real questions, and only then routed to; one that nothing wants any more is
drained and removed. What fails is refused, with the reason in the registry, and the old version stays. With MLflow gone, what runs
goes on; after a restart without MLflow the last routing state is deployed again. Loading runs in the background
(`serving.load_queue`): no version waits for another's.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from features.control_store import ControlStore
from serving.announce import WANTED, announce, listen
from serving.canary import CanaryWatch
from serving.config import ServingConfig
from serving.control import ServingControl, ServingState, ShadowTarget
from serving.load_queue import LoadQueue
from serving.messages import ComputeRequest
from serving.shadow_role import SHADOW, shadow_key, shadow_sample, version_of
from serving.standby import Standby
from serving.version_loader import Graph, VersionLoader
from training.errors import RegistryError
from training.model_version import CHAMPION
from training.registry import Registry

_log = logging.getLogger("shortlist.serving")

ACTOR = "reconciler"
STOP_WITHIN_S = 0.5
RUNNING = frozenset({"RUNNING", "UNHEALTHY"})
"""Serve's words for an application that is there. Where one of its replicas has died, Serve starts another beside the living."""


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
        self._loader = VersionLoader(config, self._graph, self._registry, first_pause_s, clock)
        self._look_again = threading.Event()
        self._loads = LoadQueue(self._look_again.set)
        self._canaries = CanaryWatch(config, self._control, clock=clock)
        self._seen_aliases: dict[str, str] = {}
        self._unwanted_since: dict[str, float] = {}
        self._known_folders: dict[str, str] = {}
        self._registry_down = False

    def run(self, stop: threading.Event) -> None:
        """Look whenever other versions may be wanted or one is loaded, and every `poll_s` seconds, until `stop` is set.

        No trouble ends it.
        """
        look = self._look_again
        listening = threading.Thread(target=_listen, args=(self._config, look), name="reconciler-listen", daemon=True)
        listening.start()
        while not stop.is_set():
            look.clear()
            try:
                self.look()
            except Exception:
                _log.exception("reconciliation failed, tried again in %.0f s", self._config.poll_s)
            until = time.monotonic() + self._config.poll_s
            while not stop.is_set() and not look.is_set() and time.monotonic() < until:
                look.wait(min(STOP_WITHIN_S, max(0.0, until - time.monotonic())))

    def step(self) -> ServingState:
        """Look, and wait until what has to be loaded for it is loaded or refused; returns the routing state.

        Raises:
            FeaturesError: as `look`.
        """
        state = self.look()
        while self._loads.keys:
            self._loads.wait()
            state = self.look()
        return state

    def look(self) -> ServingState:
        """Look once and do what is needed, without waiting for what has to be loaded; returns the routing state.

        Raises:
            FeaturesError: the control store cannot be read or written.
        """
        before = self._control.state()
        self._known_folders |= {key: str(folder) for key, folder in self._loads.take().items()}
        self._loader.look()
        aliases = self._aliases()
        if aliases is None:
            self._redeploy(before)
            return before
        pinned = self._control.pinned_versions()
        shown = {version for alias, version in aliases.items() if alias != SHADOW}
        wanted = sorted({*shown, *pinned}, key=lambda version: (version != aliases.get(CHAMPION), int(version)))
        folders = dict(before.versions)
        champion = before.champion
        state = before
        for version in wanted:
            known = folders.get(version) or self._known_folders.get(version)
            folder = self._running(version, known, key=version, urgent=version == aliases.get(CHAMPION))
            if folder is not None:
                folders[version] = str(folder)
                if version == aliases.get(CHAMPION):
                    champion = version
                # Routed to as soon as it is ready: a slow or broken challenger must not hold the champion back.
                state = self._route(replace(state, champion=champion, versions=dict(folders)))
        self._known_folders |= folders
        keep = {version for version in (*wanted, champion) if version is not None}
        versions = {version: folder for version, folder in folders.items() if version in keep}
        state = self._route(replace(state, champion=champion, versions=versions))
        state = self._route(replace(state, shadow=self._shadow(aliases.get(SHADOW), wanted)))
        self._start_experiments(state)
        self._drop(state)
        if self._canaries.look():
            announce(self._config)
        if not self._loads.keys:
            self._graph.rest()
        return state

    def _running(
        self, version: str, known_folder: str | None, *, key: str, shown_as: str | None = "live", urgent: bool = False
    ) -> Path | None:
        """The folder of a version that runs; None where it is refused, or does not run yet: then it is being loaded."""
        if key in self._loads.keys:
            if urgent:
                self._loads.hurry(key)
            return None
        folder = self._loader.ready(version, known_folder, key=key, shown_as=shown_as)
        if folder is None and not self._is_refused(version, key):
            self._loads.start(key, partial(self._loader.bring_up, version, key=key, shown_as=shown_as), urgent=urgent)
        return folder

    def _is_refused(self, version: str, key: str) -> bool:
        try:
            return self._loader.is_refused(version, key=key)
        except RegistryError:
            return True  # MLflow went away just now

    def _shadow(self, version: str | None, wanted: Sequence[str]) -> ShadowTarget | None:
        """The shadow once it runs, as an application of its own beside a version that is also shown."""
        if version is None:
            return None
        key = shadow_key(version)
        shown_as = None if version in wanted else "shadow"
        if self._running(version, self._known_folders.get(key), key=key, shown_as=shown_as) is None:
            return None
        try:
            return ShadowTarget(version, shadow_sample(self._registry.version(version)))
        except RegistryError:
            return ShadowTarget(version)  # MLflow went away just now

    def _aliases(self) -> dict[str, str] | None:
        """Aliases now, None where MLflow cannot be asked."""
        try:
            aliases = self._registry.aliases()
            for alias, version in aliases.items():
                if self._seen_aliases.get(alias) != version:
                    self._registry.observe(alias)
                    self._audit_alias(alias, self._seen_aliases.get(alias), version)
                    # Pointing an alias at a refused version again is the operator's way to say: try once more.
                    self._loader.refused.pop(shadow_key(version) if alias == SHADOW else version, None)
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

    def _start_experiments(self, state: ServingState) -> None:
        """Experiments whose versions are all routed to begin to assign."""
        for one in self._control.experiments():
            if one.status == "starting" and set(one.pins.values()) <= state.versions.keys():
                self._control.run_experiment(one.spec.name, actor=ACTOR)
                announce(self._config)

    def _redeploy(self, state: ServingState) -> None:
        """Without MLflow: bring back what was routed to before a restart."""
        missing = state.versions.keys() - self._loader.running - self._loader.refused.keys()
        for version in sorted(missing, key=lambda one: one != state.champion):
            self._loads.start(version, partial(self._loader.restore, version, Path(state.versions[version]), key=version))

    def _route(self, state: ServingState) -> ServingState:
        if self._control.set_state(state, actor=ACTOR, action="routing"):
            _log.info("routing: champion %s of %s", state.champion, ", ".join(state.versions) or "none")
            announce(self._config)
        return state

    def _drop(self, state: ServingState) -> None:
        """Remove applications that nothing routes to, once every gateway must have noticed and finished its last calls."""
        now = self._clock()
        idle = self._loader.running - state.versions.keys() - self._loads.keys
        if state.shadow is not None:
            idle.discard(shadow_key(state.shadow.version))
        self._unwanted_since = {key: self._unwanted_since.get(key, now) for key in idle}
        # A gateway goes on with the old version until it has read the new one's items, which is a part of what loading it took.
        opening_s = max((self._loader.took_s.get(version, 0.0) for version in state.versions), default=0.0)
        patience_s = self._config.reread_s + opening_s + self._config.deadline_ms / 1000 + 1
        for key, since in list(self._unwanted_since.items()):
            if now - since >= patience_s:
                self._graph.delete(key)
                self._known_folders.pop(key, None)
                self._loader.took_s.pop(key, None)
                del self._unwanted_since[key]
                version = version_of(key)
                self._loader.tag(version, None if version in state.versions else "unloaded")

    def _audit_alias(self, alias: str, before: str | None, after: str | None) -> None:
        subject = f"alias:{alias}"
        if self._control.audit.last_value(subject) == after:
            return  # moved over our own API, or the first look after a start: the log has it
        self._control.audit.record(actor="mlflow", action="alias", subject=subject, before=before, after=after)


class ServeGraph:
    """`Graph` on Ray Serve."""

    def __init__(self, config: ServingConfig) -> None:
        self._config = config
        self._standby: Standby | None = None

    def deploy(self, version: str, folder: Path) -> None:
        """See `Graph.deploy`."""
        from serving.graph import deploy_version

        deploy_version(self._config, version, folder)
        if self._standby is not None:
            self._standby.taken()

    def ask(self, version: str, requests: Sequence[ComputeRequest]) -> list[bytes]:
        """See `Graph.ask`."""
        from serving.graph import ask_version

        return ask_version(self._config, version, requests)

    def delete(self, version: str) -> None:
        """See `Graph.delete`."""
        from serving.graph import delete_version

        delete_version(self._config, version)

    def running(self) -> set[str]:
        """See `Graph.running`."""
        from serving.graph import running_versions

        return {version for version, status in running_versions(self._config).items() if status in RUNNING}

    def rest(self) -> None:
        """See `Graph.rest`."""
        from serving.graph import version_processes

        if self._config.standby:
            self._standby = self._standby or Standby(self._config, version_processes(self._config))
            self._standby.keep()


def _listen(config: ServingConfig, look: threading.Event) -> None:
    asyncio.run(listen(config, look.set, WANTED))
