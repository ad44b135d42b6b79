"""What others do wrong, on the whole stack: bundles that cannot be served, and MLflow, Redis or a version that hang.

Processes are stopped (SIGSTOP), which is worse than gone: nothing refuses a connection, everything waits.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from shortlist.client import ApiError
from tests.serving.test_refused_bundles import SPOILT
from training.model_version import GATE_TAG

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@contextmanager
def stopped(processes: list[psutil.Process]) -> Iterator[None]:
    """Processes that hang for as long as the block lasts."""
    assert processes
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process.pid, signal.SIGCONT)


def part(rollout: Any, name: str) -> list[psutil.Process]:
    """A part of the stack with its children."""
    process = psutil.Process(next(note.pid for note in rollout.state.processes if note.name == name))
    return [process, *process.children(recursive=True)]


def noted(rollout: Any, message: str) -> int:
    """How often the supervisor's log says something."""
    return (rollout.settings.home / "logs" / "supervisor.log").read_text().count(message)


@pytest.mark.parametrize(("spoil", "reason"), SPOILT)
def test_a_bundle_that_cannot_be_served_is_refused_and_the_old_version_stays(
    rollout, bundle: Path, tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    version = rollout.registry.register(copy, tags={GATE_TAG: "pass"})
    spoil(rollout.registry.download(version))
    rollout.registry.set_alias("champion", version)
    rollout.wait(lambda: (rollout.tag(version) or "").startswith("refused: "), f"the refusal, now {rollout.tag(version)}", 120)
    assert reason in rollout.tag(version)
    assert rollout.champion_versions() == {"1"}
    assert rollout.http.get("/v1/recommendations/u1").json()["degraded"] is False


def test_a_version_that_nothing_wants_any_more_leaves_no_process(rollout) -> None:
    rollout.registry.set_alias("challenger", "2")
    rollout.wait(lambda: bool(rollout.replicas("2")) and rollout.tag("2") == "live", "the version beside the champion")
    rollout.registry.delete_alias("challenger")
    rollout.wait(lambda: not rollout.replicas("2"), "its processes to end")
    rollout.wait(lambda: rollout.tag("2") == "unloaded", "the tag")
    assert rollout.replicas("1")


def test_with_mlflow_hanging_answers_go_on_and_aliases_are_followed_afterwards(rollout) -> None:
    """For as long as it takes the reconciler to notice: nothing counts how long it lasts."""
    noticed = noted(rollout, "aliases cannot be followed")
    with stopped(part(rollout, "mlflow")), rollout.load() as load:
        with pytest.raises(ApiError) as refused:
            rollout.admin.update_model("shortlist-planted", {"version": "2"})
        assert refused.value.status == 503
        rollout.wait(lambda: noted(rollout, "aliases cannot be followed") > noticed, "the reconciler to notice")
        count = len(load.answers)
        rollout.wait(lambda: len(load.answers) > count + 200, "answers")
        assert rollout.http.get("/readyz").json()["model_version"] == "1"
    assert load.statuses == {200}
    assert set(load.versions) == {"1"}
    rollout.registry.set_alias("champion", "2")
    rollout.wait_for("2")


def test_with_the_cache_hanging_answers_are_computed_and_cached_again_afterwards(rollout) -> None:
    user = "/v1/recommendations/u3"
    rollout.wait(lambda: rollout.http.get(user).json()["served_from"] == "cache", "a cached answer")
    with stopped(part(rollout, "redis-cache")):
        answers = [rollout.http.get(user).json() for _ in range(5)]
    assert {answer["served_from"] for answer in answers} == {"online"}
    assert {len(answer["recommended_items"]) for answer in answers} == {10}
    rollout.wait(lambda: rollout.http.get(user).json()["served_from"] == "cache", "a cached answer again")


def test_with_the_bus_hanging_events_are_refused_and_answers_go_on(rollout) -> None:
    event = {"user_id": "u5", "item_id": "i001", "action": "click"}
    with stopped(part(rollout, "redis-bus")):
        refused = rollout.http.post("/v1/events", json=event, timeout=5)  # as long as the Python client waits
        answer = rollout.http.get("/v1/recommendations/u7")
    assert (refused.status_code, answer.status_code) == (503, 200)
    assert "Retry-After" in refused.headers
    rollout.wait(lambda: rollout.http.post("/v1/events", json=event).status_code == 202, "accepted events")


def test_a_version_that_hangs_costs_the_deadline_and_the_next_rung_answers(rollout) -> None:
    """Stale list, then segment, then popular items; the version answers again as soon as it can."""
    rollout.wait(lambda: rollout.http.get("/v1/recommendations/u9").json()["served_from"] == "cache", "a cached list")
    before = rollout.http.get("/v1/recommendations/u9?top_k=30").json()["recommended_items"]
    event = {"user_id": "u9", "item_id": before[0]["item_id"], "action": "click"}
    hanging = rollout.replicas("1")
    with stopped(hanging):
        rollout.wait(lambda: rollout.http.post("/v1/events", json=event).status_code == 202, "the event")
        stale = rollout.http.get("/v1/recommendations/u9?top_k=5").json()
        fresh = {"user_id": "nobody-before", "recent_items": ["i003", "i004"], "top_k": 5}
        popular = rollout.http.post("/v1/recommendations", json=fresh).json()
        segment = rollout.http.post("/v1/recommendations", json=fresh | {"region": "DE"}).json()
    assert (stale["served_from"], stale["degraded"]) == ("stale", True)
    assert [one["item_id"] for one in stale["recommended_items"]] == [one["item_id"] for one in before[1:6]]
    assert (popular["served_from"], popular["degraded"]) == ("popular", True)
    assert (segment["served_from"], segment["degraded"]) == ("segment", True)
    assert {len(answer["recommended_items"]) for answer in (popular, segment)} == {5}
    time.sleep(0.1)
    rollout.wait(lambda: rollout.http.post("/v1/recommendations", json=fresh).json()["served_from"] == "online", "computed answers")
