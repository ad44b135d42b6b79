"""The pipeline's bookkeeping against a real MLflow: retries, resuming, refusals, one run at a time; and its schedule."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_none

import shortlist.pipeline.run as pipeline_run
from features.control_store import ControlStore
from features.paths import DatasetPaths
from shortlist.commands.app import run as run_command
from shortlist.commands.console import CommandError
from shortlist.pipeline.record import PipelineOptions, PipelineRecord, only_run, present_records, records, resumable
from shortlist.pipeline.run import begin, go, settle
from shortlist.pipeline.schedule import Schedules, next_after
from shortlist.pipeline.steps import STEPS, StepContext
from shortlist.runner import Runner
from shortlist.stack.scheduler import Scheduler
from shortlist.stack.state import StackState
from training.errors import RegistryError
from training.tracking import Run, connect, experiment_id

OPTIONS = PipelineOptions(study="experiments/studies/first.toml")
NIGHT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def paths(tmp_path: Path) -> DatasetPaths:
    return DatasetPaths(tmp_path / "home", f"nights-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without waiting."""
    monkeypatch.setattr(pipeline_run, "RETRY_WAIT_S", wait_none())


@pytest.fixture
def stack(mlflow_server: str, paths: DatasetPaths) -> StackState:
    """The addresses that the bookkeeping needs."""
    return StackState("ready", paths.dataset, 1, 0.0, mlflow_uri=mlflow_server)


class Steps:
    """Stand-ins for the steps' work that count their calls; each is told how to behave."""

    def __init__(self, **behaviour: Callable[[int], dict[str, Any]]) -> None:
        self.calls: dict[str, int] = dict.fromkeys(STEPS, 0)
        self._behaviour = behaviour

    def functions(self) -> dict[str, Callable[[StepContext], dict[str, Any]]]:
        def of(name: str) -> Callable[[StepContext], dict[str, Any]]:
            def step(context: StepContext) -> dict[str, Any]:
                self.calls[name] += 1
                return self._behaviour.get(name, lambda _: {})(self.calls[name])

            return step

        return {name: of(name) for name in STEPS}


def trained(_: int) -> dict[str, Any]:
    return {"model_version": "7", "metrics": {"ndcg@10": 0.1}}


def passing(_: int) -> dict[str, Any]:
    return {"verdict": "pass", "servable": True, "reason": "better"}


@pytest.mark.integration
@pytest.mark.usefixtures("at_once")
def test_a_step_that_fails_twice_is_tried_a_third_time(paths: DatasetPaths, stack: StackState) -> None:
    def third_time(call: int) -> dict[str, Any]:
        if call < 3:
            raise CommandError("not yet")
        return {"rows": {"user": 3}}

    steps, said = Steps(materialize=third_time, train=trained, gate=passing), list[str]()
    record = go(begin(paths, OPTIONS), paths, stack, Runner(()), notify=said.append, steps=steps.functions())
    assert (record.status, record.steps["materialize"].attempts, record.steps["materialize"].error) == ("done", 3, None)
    assert [steps.calls[name] for name in STEPS] == [1, 1, 3, 1, 1, 1, 1]
    assert any("materialize failed (not yet); trying again" in line for line in said)
    run = connect(stack.mlflow_uri).get_run(record.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["shortlist.model_version"] == "7"
    assert {f"seconds.{name}" for name in STEPS} <= set(run.data.metrics)


@pytest.mark.integration
@pytest.mark.usefixtures("at_once")
def test_a_failed_run_continues_with_the_step_that_failed(paths: DatasetPaths, stack: StackState) -> None:
    broken = True

    def precompute(_: int) -> dict[str, Any]:
        if broken:
            raise CommandError("the cache is away")
        return {"users": 3}

    steps = Steps(train=trained, gate=passing, precompute=precompute)
    with pytest.raises(CommandError, match=r"step 'precompute' failed 3 times.*cache is away.*--resume"):
        go(begin(paths, OPTIONS), paths, stack, Runner(()), steps=steps.functions())
    failed = resumable(paths)
    assert failed is not None
    assert (failed.status, failed.steps["precompute"].status, failed.steps["alias"].status) == ("failed", "failed", "waiting")
    assert connect(stack.mlflow_uri).get_run(failed.mlflow_run_id).info.status == "FAILED"
    broken = False
    done = go(failed, paths, stack, Runner(()), steps=steps.functions())
    assert (done.status, done.run_id, done.mlflow_run_id) == ("done", failed.run_id, failed.mlflow_run_id)
    assert [steps.calls[name] for name in STEPS] == [1, 1, 1, 1, 1, 4, 1]
    assert connect(stack.mlflow_uri).get_run(done.mlflow_run_id).info.status == "FINISHED"
    assert resumable(paths) is None


@pytest.mark.integration
def test_a_run_that_mlflow_did_not_let_begin_says_why_and_can_be_continued(
    paths: DatasetPaths, stack: StackState, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away, steps = dataclasses.replace(stack, mlflow_uri="http://127.0.0.1:9"), Steps(train=trained, gate=passing)
    with pytest.raises(RegistryError, match="cannot be reached"):
        go(begin(paths, OPTIONS), paths, away, Runner(()), steps=steps.functions())
    monkeypatch.setenv("SHORTLIST_HOME", str(paths.home))
    assert run_command(["pipeline", "status", "--dataset", paths.dataset]) == 0
    assert "cannot be reached" in " ".join(capsys.readouterr().out.split())
    failed = resumable(paths)
    assert failed is not None
    assert (failed.status, {step.status for step in failed.steps.values()}) == ("failed", {"waiting"})
    done = go(failed, paths, stack, Runner(()), steps=steps.functions())
    assert (done.status, done.run_id, done.error) == ("done", failed.run_id, None)


@pytest.mark.integration
def test_a_killed_run_repeats_only_the_step_that_was_under_way(paths: DatasetPaths, stack: StackState) -> None:
    def killed(call: int) -> dict[str, Any]:
        if call == 1:
            raise KeyboardInterrupt
        return trained(call)

    steps = Steps(train=killed, gate=passing)
    with pytest.raises(KeyboardInterrupt):
        go(begin(paths, OPTIONS), paths, stack, Runner(()), steps=steps.functions())
    left = resumable(paths)
    assert left is not None
    assert (left.status, left.steps["train"].status) == ("interrupted", "interrupted")
    assert go(left, paths, stack, Runner(()), steps=steps.functions()).status == "done"
    assert [steps.calls[name] for name in STEPS] == [1, 1, 1, 2, 1, 1, 1]


def half_done(paths: DatasetPaths) -> PipelineRecord:
    """What the disk says of a run that is killed in its second step."""
    record = begin(paths, OPTIONS)
    record.steps["ingest"].status, record.steps["features"].status = "done", "running"
    record.save(paths)
    return record


def test_a_run_is_running_only_while_a_process_is_at_it(paths: DatasetPaths) -> None:
    assert present_records(paths) == []
    half_done(paths), half_done(paths)
    with only_run(paths):
        assert [one.status for one in present_records(paths)] == ["interrupted", "running"]
    last = present_records(paths)[-1]
    assert (last.status, [last.steps[name].status for name in STEPS][:3]) == ("interrupted", ["done", "interrupted", "waiting"])


@pytest.mark.integration
def test_the_next_run_ends_what_a_killed_one_left(paths: DatasetPaths, stack: StackState) -> None:
    client, record, lost = connect(stack.mlflow_uri), half_done(paths), half_done(paths)
    run = Run.create(client, experiment_id(client, f"shortlist-{paths.dataset}"), "pipeline", tags={})
    record.mlflow_run_id, lost.mlflow_run_id = run.run_id, uuid.uuid4().hex  # the other's MLflow run has been deleted
    record.save(paths), lost.save(paths)
    with only_run(paths):
        assert [one.run_id for one in settle(paths, stack)] == [record.run_id, lost.run_id]
        assert settle(paths, stack) == []
    assert [one.status for one in records(paths)] == ["interrupted", "interrupted"]
    ended = client.get_run(run.run_id)
    assert (ended.info.status, ended.data.tags["shortlist.reason"]) == ("KILLED", "its process ended before it did")
    left = resumable(paths)
    assert left is not None
    assert left.run_id == lost.run_id


@pytest.mark.integration
def test_a_version_that_the_gate_refuses_gets_no_lists_and_no_alias(paths: DatasetPaths, stack: StackState) -> None:
    steps = Steps(train=trained, gate=lambda _: {"verdict": "fail", "servable": False, "reason": "worse"})
    record = go(begin(paths, OPTIONS), paths, stack, Runner(()), steps=steps.functions())
    assert record.status == "refused"
    assert (record.steps["precompute"].status, record.steps["alias"].status) == ("skipped", "skipped")
    assert "worse" in str(record.steps["alias"].error)
    assert steps.calls["alias"] == steps.calls["precompute"] == 0
    assert resumable(paths) is None


@pytest.mark.integration
def test_without_an_alias_everything_but_the_move_is_done(paths: DatasetPaths, stack: StackState) -> None:
    steps = Steps(train=trained, gate=passing)
    record = go(begin(paths, OPTIONS.model_copy(update={"alias": None})), paths, stack, Runner(()), steps=steps.functions())
    assert (record.status, steps.calls["precompute"], steps.calls["alias"]) == ("done", 1, 0)


@pytest.mark.integration
def test_a_bug_is_not_tried_again(paths: DatasetPaths, stack: StackState) -> None:
    def bug(_: int) -> dict[str, Any]:
        raise ZeroDivisionError("a bug")

    steps = Steps(ingest=bug)
    with pytest.raises(ZeroDivisionError):
        go(begin(paths, OPTIONS), paths, stack, Runner(()), steps=steps.functions())
    assert steps.calls["ingest"] == 1
    assert records(paths)[-1].status == "failed"


def test_one_run_at_a_time(paths: DatasetPaths) -> None:
    with only_run(paths), pytest.raises(CommandError, match="another pipeline run"), only_run(paths):
        pass
    with only_run(paths):
        pass


def test_a_record_that_cannot_be_read_is_named(paths: DatasetPaths) -> None:
    begin(paths, OPTIONS)
    (paths.root / "pipeline" / "20200101T000000-000000.json").write_text("{")
    with pytest.raises(CommandError, match=r"20200101T000000-000000\.json cannot be read"):
        records(paths)


@pytest.mark.parametrize(
    ("cron", "due"),
    [
        ("0 3 * * *", datetime(2026, 3, 2, 3, 0, tzinfo=UTC)),
        ("*/15 * * * *", datetime(2026, 3, 1, 12, 15, tzinfo=UTC)),
        ("30 2 * * 1", datetime(2026, 3, 2, 2, 30, tzinfo=UTC)),
    ],
)
def test_cron_expressions_are_read_as_cron_reads_them(cron: str, due: datetime) -> None:
    assert next_after(cron, NIGHT) == due


@pytest.mark.parametrize("cron", ["nightly", "61 * * * *", "* * *", "0 0 31 2 *"])
def test_an_expression_without_a_moment_is_refused(cron: str) -> None:
    with pytest.raises(CommandError, match="not a usable cron expression"):
        next_after(cron, NIGHT)


def test_a_schedule_is_kept_replaced_and_removed(paths: DatasetPaths) -> None:
    schedules = Schedules(ControlStore(f"sqlite:///{paths.home.parent / 'control.db'}").create(), paths.dataset)
    assert schedules.get() is None
    schedules.put("0 3 * * *", OPTIONS, NIGHT)
    schedules.put("0 4 * * *", OPTIONS, NIGHT)
    found = schedules.get()
    assert found is not None
    assert (found.cron, found.options, found.due_at) == ("0 4 * * *", OPTIONS, datetime(2026, 3, 2, 4, tzinfo=UTC))
    schedules.started(found.due_at + timedelta(days=3, minutes=1))  # missed nights are made up for once
    again = schedules.get()
    assert again is not None
    assert again.due_at == datetime(2026, 3, 6, 4, tzinfo=UTC)
    assert (schedules.remove(), schedules.remove(), schedules.get()) == (True, False, None)


def test_the_scheduler_starts_a_due_run_once_as_a_process_of_its_own(paths: DatasetPaths) -> None:
    url = f"sqlite:///{paths.home.parent / 'control.db'}"
    Schedules(ControlStore(url).create(), paths.dataset).put("0 3 * * *", OPTIONS, NIGHT)
    scheduler = Scheduler(paths, url, (f"home={paths.home}",))
    assert not scheduler.look(NIGHT)
    due = NIGHT + timedelta(hours=16)
    assert scheduler.look(due)
    assert not scheduler.look(due + timedelta(minutes=1))
    log, deadline = paths.home / "logs" / "pipeline.log", time.monotonic() + 60
    while "error: no stack of" not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_the_commands_say_what_to_do(paths: DatasetPaths, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("SHORTLIST_HOME", str(paths.home))
    paths.home.mkdir()

    def call(*words: str) -> tuple[int, dict[str, Any] | None, str]:
        code = run_command(["pipeline", *words, "--dataset", paths.dataset, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]) if out.strip() else None, err

    assert "start it with shortlist up" in call("run")[2]
    assert "not a usable cron expression" in call("schedule", "sometimes")[2]
    assert call("schedule", "0 3 * * *", "--off")[0] == 2
    assert call("schedule", "0 3 * * *", "--mode", "guess")[0] == 2
    code, result, _ = call("schedule", "0 3 * * *", "--mode", "refit", "--no-promote")
    assert code == 0
    assert result is not None
    assert (result["schedule"], result["options"]["mode"], result["options"]["alias"]) == ("0 3 * * *", "refit", None)
    begin(paths, OPTIONS)
    code, result, _ = call("status")
    assert (code, [one["status"] for one in (result or {})["runs"]]) == (0, ["interrupted"])
    with only_run(paths):
        assert (call("status")[1] or {})["runs"][0]["status"] == "running"
    assert call("schedule", "--off")[1] == {"dataset": paths.dataset, "removed": True}
