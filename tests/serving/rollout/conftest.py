"""The planted world on a whole stack of its own (`shortlist up`): Redis, MLflow with its webhook, Ray Serve, worker, reconciler.

Versions 1 (kNN and popularity) and 2 (popularity) are registered; tests move aliases and break things.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pyarrow as pa
import pytest

from features.control_store import ControlStore
from features.paths import DatasetPaths
from serving.control import ServingControl
from shortlist.bench.stack import title
from shortlist.client import Client
from shortlist.settings import Settings, load_settings
from shortlist.stack.control import start_stack, stop_stack
from shortlist.stack.state import StackState
from training.model_version import GATE_TAG, SERVING_TAG
from training.registry import Registry

DATASET, MODEL = "planted", "shortlist-planted"


class Load:
    """Requests one after the other from several threads until stopped; what they answered."""

    def __init__(self, base_url: str, threads: int = 4, pause_s: float = 0.005) -> None:
        self.answers: list[tuple[int, str | None, str | None]] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(base_url, n, pause_s)) for n in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def statuses(self) -> set[int]:
        return {status for status, _, _ in self.answers}

    @property
    def versions(self) -> list[str | None]:
        return [version for _, version, _ in self.answers]

    @property
    def served_from(self) -> list[str | None]:
        return [served for _, _, served in self.answers]

    def _run(self, base_url: str, number: int, pause_s: float) -> None:
        with httpx.Client(base_url=base_url, timeout=20) as client:
            while not self._stop.wait(pause_s):
                number += 1
                try:
                    answer = client.get(f"/v1/recommendations/u{number % 200}?top_k=5")
                except httpx.HTTPError:
                    self.answers.append((0, None, None))
                    continue
                body = answer.json() if answer.status_code == 200 else {}
                self.answers.append((answer.status_code, body.get("model_version"), body.get("served_from")))


@dataclass
class Rollout:
    """A running stack, its registry, and clients of its gateway."""

    settings: Settings
    state: StackState
    registry: Registry
    control: ServingControl
    http: httpx.Client
    admin: Client

    def load(self) -> Load:
        return Load(self.state.base_url)

    def champion_versions(self) -> set[str | None]:
        return {self.http.get(f"/v1/recommendations/u{user}?top_k=1").json()["model_version"] for user in range(20)}

    def tag(self, version: str) -> str | None:
        return self.registry.version(version).tags.get(SERVING_TAG)

    def replicas(self, version: str) -> list[psutil.Process]:
        """Processes of a version."""
        family = psutil.Process(self.state.supervisor_pid).children(recursive=True)
        return [one for one in family if title(one).startswith(f"ray::ServeReplica:{MODEL}-v{version}:")]

    def wait_for(self, version: str) -> float:
        """Seconds until all users are answered by a version."""
        return self.wait(lambda: self.champion_versions() == {version}, what=f"version {version}")

    @staticmethod
    def wait(condition: Callable[[], bool], what: str, seconds: float = 180.0) -> float:
        """Poll until true; returns the seconds that it took. Generous: the machine may do other things."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds, f"not within {seconds:.0f} s: {what}"
            time.sleep(0.05)
        return time.monotonic() - began


@pytest.fixture(scope="session")
def rollout_stack(
    tmp_path_factory: pytest.TempPathFactory,
    bundle: Path,
    popular_bundle: Path,
    item_attributes: pa.Table,
    fill_catalogue: Callable[[str, pa.Table], ControlStore],
) -> Iterator[Rollout]:
    home = tmp_path_factory.mktemp("rollout") / "home"
    DatasetPaths(home, DATASET).root.mkdir(parents=True)
    overrides = ("serve.port=0", "mlflow.port=0", "serve.precompute_k=30", "serve.deadline_ms=5000", "serve.gateway_replicas=1")
    settings = load_settings((*overrides, f"home={home}"), environ={}, folder=home.parent)
    store = fill_catalogue(settings.control_url, item_attributes)
    before = dict(os.environ)
    try:
        state = start_stack(settings, DATASET, overrides, lambda phase: None)
        registry = Registry(state.mlflow_uri, DATASET)
        registry.register(bundle, tags={GATE_TAG: "first"})
        registry.register(popular_bundle, tags={GATE_TAG: "pass"})
        token = (home / "run" / "admin-token.secret").read_text()
        with httpx.Client(base_url=state.base_url, timeout=20) as http, Client(state.base_url, token=token, timeout=20) as admin:
            yield Rollout(settings, state, registry, ServingControl(store, DATASET), http, admin)
    finally:
        stop_stack(home)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def rollout(rollout_stack: Rollout) -> Rollout:
    """The stack with version 1 as champion and no other alias or canary."""
    stack = rollout_stack
    for alias in set(stack.registry.aliases()) - {"champion"}:
        stack.registry.delete_alias(alias)
    for one in stack.control.experiments():
        if one.status in {"starting", "running", "paused"}:
            stack.admin.stop_experiment(one.spec.name)
    stack.registry.set_alias("champion", "1")
    stack.wait_for("1")
    return stack
