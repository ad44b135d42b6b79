"""Processes kept for the next version: how many are asked for, and how often where they do not come. With Ray: `rollout`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from serving.config import ServingConfig
from serving.standby import LONGEST_PAUSE_S, LOOK_EVERY_S, SETTLE_S, Standby, replica_environment, waiting
from serving.standby_imports import MARK, OF_REPLICAS

MakeConfig = Callable[..., ServingConfig]


@contextmanager
def process(config: ServingConfig, title: str = "ray::IDLE") -> Iterator[int]:
    """A process with the environment of a standby and a title of Ray's."""
    child = subprocess.Popen([title, "600"], executable="/bin/sleep", env=replica_environment(config)["env_vars"])
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


def test_those_that_wait_are_this_stacks_and_serve_nothing_yet(make_config: MakeConfig, tmp_path: Path) -> None:
    mine, other = make_config(), make_config(home=tmp_path / "other")
    with process(mine) as idle, process(mine, "ray::ServeReplica:shortlist-planted-v1:Retriever"), process(other):
        assert [one.pid for one in waiting(mine.home)] == [idle]
    assert not list(waiting(mine.home))


def test_as_many_are_started_as_are_lacking_and_ever_more_seldom_where_they_do_not_come(make_config: MakeConfig) -> None:
    config, now, asked = make_config(), [100.0], list[tuple[float, int]]()
    standby = Standby(config, 2, lambda _, count: asked.append((now[0], count)), clock=lambda: now[0])
    standby.keep()
    standby.keep()
    assert asked == [(100.0, 2)]
    while now[0] < 100.0 + 3 * LONGEST_PAUSE_S:
        now[0] += LOOK_EVERY_S
        standby.keep()
    gaps = [later[0] - earlier[0] for earlier, later in pairwise(asked)]
    assert gaps[:3] == [2 * LOOK_EVERY_S, 4 * LOOK_EVERY_S, 8 * LOOK_EVERY_S]
    assert max(gaps) == LONGEST_PAUSE_S
    asked.clear()
    with process(config):
        now[0] += LONGEST_PAUSE_S
        standby.keep()
        assert [count for _, count in asked] == [1]


def test_what_a_version_has_taken_is_replaced_as_soon_as_that_has_settled(make_config: MakeConfig) -> None:
    config, now, asked = make_config(), [100.0], list[float]()
    standby = Standby(config, 1, lambda *_: asked.append(now[0]), clock=lambda: now[0])
    with process(config):
        standby.keep()
    now[0] += 1
    standby.taken()
    for _ in range(10):
        standby.keep()
        now[0] += 1
    assert asked == [101.0 + SETTLE_S]


def test_what_ray_refuses_costs_nothing_but_the_standby(make_config: MakeConfig) -> None:
    def refuse(config: ServingConfig, count: int) -> None:
        raise ConnectionError("no raylet")

    Standby(make_config(), 1, refuse).keep()


def test_only_a_standby_imports_ahead() -> None:
    script = f"import sys, serving.standby_imports; print(sorted(set({OF_REPLICAS!r}) & set(sys.modules)))"
    path = {"PYTHONPATH": ":".join(sys.path)}
    for environment, found in ((path, []), (path | {MARK: "/home"}, sorted(OF_REPLICAS))):
        said = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout.splitlines()[-1] == str(found)
