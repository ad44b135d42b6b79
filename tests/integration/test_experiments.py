"""The A/B test of the demo over HTTP and the command line: exposures counted exactly, and changes of its life."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

import experiments
from features.bus import EVENTS, EXPOSURES
from features.redis_bus import RedisStreamBus
from shortlist.client import ApiError, Client
from shortlist.commands.app import run
from shortlist.demo.flow import DemoResult

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

DEMO_FILE = Path(experiments.__file__).parent / "ab" / "demo.toml"


def wait_until_drained(demo: DemoResult) -> None:
    bus = RedisStreamBus(demo.state.bus_url, demo.dataset)
    deadline = time.monotonic() + 120
    time.sleep(0.3)  # exposures leave the gateway in small batches
    while any(group.entries for stream in (EVENTS, EXPOSURES) for group in bus.lag(stream).groups):
        assert time.monotonic() < deadline, "the worker is behind"
        time.sleep(0.1)
    bus.close()


def assignments(http: httpx.Client, users: range) -> dict[str, str]:
    answers = {str(user): http.get(f"/v1/recommendations/{user}?top_k=5").json() for user in users}
    return {user: answer["assignments"][0]["variant"] for user, answer in answers.items() if answer["assignments"]}


def until(http: httpx.Client, wanted: bool) -> dict[str, str]:
    """Assignments of 40 users once the gateway has noticed that the experiment runs, or does not.

    It may notice between two of the 40 calls: what is returned is therefore read after a call that showed it.
    """
    deadline = time.monotonic() + 120
    while bool(assignments(http, range(1, 41))) != wanted:
        assert time.monotonic() < deadline, "the gateway has not noticed"
        time.sleep(0.1)
    return assignments(http, range(1, 41))


def counted(report: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {variant["name"]: (variant["units"], variant["exposures"]) for variant in report["variants"]}


def test_every_answer_in_the_experiment_is_one_exposure(demo: DemoResult, admin: Client, http: httpx.Client) -> None:
    wait_until_drained(demo)
    before = counted(admin.experiment_report("demo"))
    served = assignments(http, range(700, 800))
    served_again = assignments(http, range(700, 720))
    wait_until_drained(demo)
    report = admin.experiment_report("demo")
    after = counted(report)
    for variant in ("control", "treatment"):
        answers = [*served.values(), *served_again.values()].count(variant)
        assert answers > 0
        assert after[variant][1] - before[variant][1] == answers
        assert after[variant][0] - before[variant][0] <= list(served.values()).count(variant)
    assert report["decision"]["verdict"] in {"keep_running", "ship", "do_not_ship"}


def test_a_click_on_an_answer_is_credited_to_its_variant(demo: DemoResult, admin: Client, http: httpx.Client) -> None:
    user = next(iter(assignments(http, range(300, 340))))
    answer = admin.recommend(user_id=user, top_k=5)
    variant = answer["assignments"][0]["variant"]
    wait_until_drained(demo)
    before = admin.experiment_report("demo")
    shown = answer["recommended_items"][0]["item_id"]
    admin.log_user_activity(user, shown, "click", recommendation_id=answer["recommendation_id"], position=0)
    wait_until_drained(demo)
    after = admin.experiment_report("demo")
    clicks = [report["metrics"][0]["means"][variant] * dict(counted(report))[variant][1] for report in (before, after)]
    assert clicks[1] - clicks[0] == pytest.approx(1, abs=1e-6)


def test_pausing_sends_everybody_to_the_champion_and_resuming_restores_every_assignment(
    demo: DemoResult, admin: Client, http: httpx.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, pins = until(http, True), admin.experiment("demo")["pins"]
    assert run(["experiment", "pause", "demo", "--json"]) == 0
    until(http, False)
    try:
        missing = tmp_path / "missing.toml"
        text = DEMO_FILE.read_text().replace('"demo"', '"missing"').replace('"demo-1"', '"missing-1"')
        missing.write_text(text.replace('"challenger"', '"no-such-alias"'))
        assert run(["experiment", "start", str(missing)]) == 1
        told = capsys.readouterr().err
        assert "no-such-alias" in told
        assert told.count("\n") == 1
        assert run(["experiment", "start", "missing"]) == 1  # the draft that it left, by its name
        assert "no-such-alias" in capsys.readouterr().err
    finally:
        assert run(["experiment", "start", "demo", "--json"]) == 0
    assert until(http, True) == before
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pins"] == pins


def test_a_second_experiment_on_the_same_units_is_refused(demo: DemoResult, admin: Client) -> None:
    spec = admin.experiment("demo")["spec"] | {"name": "second", "salt": "second-1"}
    admin.put_experiment("second", spec)
    with pytest.raises(ApiError, match="overlap in layer 'model'"):
        admin.start_experiment("second")
    with pytest.raises(ApiError, match="salt cannot change"):
        admin.put_experiment("demo", admin.experiment("demo")["spec"] | {"salt": "other"})


def test_status_and_report_on_the_command_line(demo: DemoResult, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["experiment", "status"]) == 0
    assert run(["experiment", "report", "demo"]) == 0
    shown = capsys.readouterr().out
    assert "control" in shown
    assert "verdict: " in shown
    assert run(["events", "lag", "--json"]) == 0
    streams = json.loads(capsys.readouterr().out.splitlines()[-1])["streams"]
    assert {group for stream in streams.values() for group in stream["groups"]} == {"store", "features"}
