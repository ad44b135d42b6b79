"""`shortlist experiment` without a server: checking a file, planning, and a report from this home's data."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import experiments
from experiments.assignment import Splitter
from experiments.exposure import EXPOSURE_SCHEMA, Exposure, decode_exposures
from experiments.spec import load_spec
from features.activity_store import ActivityStore
from features.control_store import ControlStore
from features.daily_log import DailyLog
from features.event_codec import decode_event, encode_event, event_table
from features.events import Event
from features.paths import DatasetPaths
from serving.control import ServingControl
from shortlist.commands.app import run
from shortlist.commands.console import CommandError
from shortlist.commands.experiment import known_spec, ramped_to
from shortlist.settings import load_settings

DEMO = str(Path(experiments.__file__).parent / "ab" / "demo.toml")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHORTLIST_HOME", str(tmp_path))
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(("status", "ramped", "kept"), [("paused", 0.9, 0.9), ("paused", 0.1, None), ("draft", 0.9, None)])
def test_what_is_started_again_keeps_the_traffic_that_it_was_ramped_to(status: str, ramped: float, kept: float | None) -> None:
    spec = load_spec(Path(DEMO)).model_copy(update={"traffic": 0.5})
    others = {"name": "other", "status": "running", "spec": {"traffic": 1.0}}
    assert ramped_to(spec, [others, {"name": "demo", "status": status, "spec": {"traffic": ramped}}]) == kept


def test_a_draft_is_found_by_its_name() -> None:
    draft = {"name": "demo", "status": "draft", "spec": load_spec(Path(DEMO)).model_dump(mode="json", exclude_none=True)}
    assert known_spec("demo", [draft]) == load_spec(Path(DEMO))
    with pytest.raises(CommandError, match=r"no experiment file other, and .* of that name \(there: demo\)"):
        known_spec("other", [draft])


def plant(home: Path) -> None:
    """A started demo experiment in which the treatment is clicked twice as often: 60 % and 30 % of the answers."""
    spec, paths = load_spec(Path(DEMO)), DatasetPaths(home, "planted")
    control = ServingControl(ControlStore(load_settings().control_url).create(), "planted")
    control.put_experiment(spec, actor="test")
    control.start_experiment("demo", {"control": "1", "treatment": "2"}, actor="test")
    splitter, exposures, rows = Splitter(spec), [], []
    now = datetime.now(UTC) + timedelta(seconds=1)
    for number in range(1500):
        variant = splitter.variant(f"u{number}")
        if variant is None:
            continue
        recommendation = f"r{number}"
        exposures.append(Exposure(recommendation, "demo", variant.name, "user_id", f"u{number}", now, "cache", ["i"]).encode())
        if number % 10 < (6 if variant.name == "treatment" else 3):
            event = Event(f"e{number}", "i", "click", now + timedelta(seconds=5), f"u{number}", recommendation_id=recommendation)
            rows.append(decode_event(encode_event(event, received_at=now)))
    DailyLog(paths.exposures, EXPOSURE_SCHEMA, id_column="exposure_id", time_column="at").append(decode_exposures(exposures))
    assert ActivityStore(paths.activity).append(event_table(rows)).added == len(rows)


def test_a_local_report_finds_what_was_planted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(home)
    report = call(capsys, "experiment", "report", "demo", "--local", "--dataset", "planted")
    ctr = report["metrics"][0]
    assert ctr["means"]["control"] == pytest.approx(0.3, abs=0.05)
    assert ctr["means"]["treatment"] == pytest.approx(0.6, abs=0.05)
    assert ctr["comparisons"][0]["absolute"]["low"] > 0.1
    assert report["ratio"]["mismatch"] is False
    assert run(["experiment", "report", "demo", "--local", "--dataset", "planted"]) == 0
    shown = capsys.readouterr().out
    assert "verdict: " in shown
    assert "sample ratio: p = " in shown


def test_a_file_is_checked_without_a_server(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "experiment", "check", DEMO)["shares"] == {"control": 0.25, "treatment": 0.25}


def test_a_plan_says_units_days_and_what_the_horizon_can_show(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--baseline", "0.1", "--std", "0.2", "--lift", "0.1", "--units-per-day", "2000"]
    plan = call(capsys, "experiment", "power", DEMO, *options)
    assert plan["units_fixed_horizon"] == pytest.approx(4 * (1.96 + 0.8416) ** 2 * 0.2**2 / 0.01**2, rel=1e-3)
    assert plan["units"] == plan["units_anytime_valid"] > plan["units_fixed_horizon"]
    assert plan["days"] == pytest.approx(plan["units"] / 1000)
    assert 0.05 < plan["detectable_lift_at_horizon"] < 0.2


@pytest.mark.parametrize(("baseline", "lift"), [("0.9", "0.5"), ("0.5", "-1.5")])
def test_a_lift_beyond_what_a_proportion_can_be_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, baseline: str, lift: str
) -> None:
    file = tmp_path / "active.toml"
    file.write_text(
        Path(DEMO).read_text().replace('primary = "ctr"', 'primary = "active"').replace('["engagement", "active"]', "[]")
    )
    assert run(["experiment", "power", str(file), "--baseline", baseline, "--lift", lift]) == 1
    assert "which no proportion can be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "absent.toml"], "no experiment file absent.toml"),
        (["power", DEMO, "--baseline", "0.1"], "give the standard deviation of a unit with --std"),
        (["report", "demo", "--local", "--dataset", "x"], "no experiment 'demo' in dataset 'x'; there are: none"),
        (["report", "demo", "--local"], "which dataset?"),
        (["start", DEMO], "no stack is running"),
        (["start", "demo"], "no stack is running"),  # a name: of an experiment that the server has
        (["start", "absent.toml"], "no experiment file absent.toml"),
        (["status", "--url", "http://127.0.0.1:1"], "wants the admin token: set SHORTLIST_TOKEN__ADMIN"),
    ],
)
def test_mistakes_are_one_line(home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert run(["experiment", *arguments]) == 1
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_an_address_without_its_scheme_is_wrong_usage(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["experiment", "status", "--url", "127.0.0.1:8000"]) == 2
    assert "must start with http://" in capsys.readouterr().err
