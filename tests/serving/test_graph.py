"""Versions that come up at once do not meet in Ray Serve's own bookkeeping."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.config import ServingConfig


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_versions_are_described_in_turn(
    make_config: Callable[..., ServingConfig], monkeypatch: pytest.MonkeyPatch, frequent_switches: None
) -> None:
    from serving import graph

    deployed: list[str] = []
    monkeypatch.setattr(graph.serve, "run_many", lambda targets, **_: deployed.extend(target.name for target in targets))
    monkeypatch.setattr(graph, "_wait_running", lambda *_: None)
    config = make_config(fuse="fused")
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda number: graph.deploy_version(config, str(number), Path("bundle")), range(200)))
    assert sorted(deployed) == sorted(names)
    assert len(set(names)) == 200
