"""Searches on a real Ray with a real MLflow: failures stay single, epochs are stopped early, a killed search goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from training.tracking import connect
from training.trial_log import TrialLog, TrialRecord

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

PROGRAM = Path(__file__).with_name("planted_search.py")
ROOM = 4 * 2**30
"""Memory that a trial may take before Ray ends it."""


def start(folder: Path, uri: str, study: dict[str, Any], **variables: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(PROGRAM.parents[2])} | variables
    command = [sys.executable, str(PROGRAM), str(folder), uri, json.dumps(study)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def search(folder: Path, uri: str, study: dict[str, Any], **variables: str) -> list[TrialRecord]:
    process = start(folder, uri, study, **variables)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output.decode()[-3000:]
    return TrialLog(folder).records()


def children(uri: str, folder: Path) -> list[Any]:
    client = connect(uri)
    parent = (TrialLog(folder).head() or {})["run_id"]
    experiment = client.get_run(parent).info.experiment_id
    return list(client.search_runs([experiment], filter_string=f"tags.`mlflow.parentRunId` = '{parent}'", max_results=500))


def test_failures_stay_single_slow_learners_are_stopped_and_the_best_gets_members(tmp_path: Path, mlflow_server: str) -> None:
    fragile = [
        {"model": "fragile", "name": outcome, "fixed": {"outcome": outcome}} for outcome in ("raises", "dies", "nan", "good")
    ]
    study = {
        "name": "planted",
        "trials": 14,
        "minutes": 600,
        "grace_epochs": 2,
        "sources": [
            *fragile,
            {"model": "learner", "fixed": {"seconds": 0.2}, "space": {"height": {"type": "float", "low": 0.05, "high": 0.7}}},
        ],
    }
    folder = tmp_path / "planted"
    records = search(folder, mlflow_server, study)
    assert Counter(r.source for r in records) == {"learner": 11, "raises": 1, "dies": 1, "nan": 1, "good": 1}

    by_source = {r.source: r for r in records}
    assert by_source["good"].status == "finished"
    assert by_source["good"].value == pytest.approx(1.0)
    assert by_source["raises"].reason == "ValueError: a planted failure"
    assert (by_source["nan"].reason or "").startswith("TrialDivergedError: fragile diverged")
    assert "process died" in (by_source["dies"].reason or "")
    assert {r.source for r in records if r.status == "failed"} == {"raises", "dies", "nan"}

    learners = [r for r in records if r.source == "learner"]
    stopped = [r for r in learners if r.status == "stopped"]
    finished = [r for r in learners if r.status == "finished"]
    assert stopped
    assert finished
    assert max(r.params["height"] for r in stopped) < max(r.params["height"] for r in finished)
    # On a busy machine the last epoch may be the first that is measured after the grace: then a trial is stopped there.
    assert all("epochs_run" not in r.metrics for r in stopped)
    assert all(r.metrics["epoch"] == 10 for r in finished)

    # A search with a limit ends with more members of the best trial.
    last, best = max(learners, key=lambda r: r.number), max(finished, key=lambda r: r.value or 0.0)
    assert [r.name for r in learners if r.config.get("members", 1) > 1] == [last.name] == [best.name]
    assert last.config == {**last.config, "members": 4, "epochs": 10}

    runs = {run.info.run_name: run for run in children(mlflow_server, folder)}
    assert len(runs) == 15
    by_status = Counter(run.info.status for run in runs.values())
    assert by_status == {"FAILED": 3, "FINISHED": 12}
    assert runs["raises-000"].data.tags["shortlist.reason"] == "ValueError: a planted failure"
    run = runs[best.name]
    assert float(run.data.params["config.height"]) == pytest.approx(best.params["height"])
    assert run.data.tags["shortlist.seed"] == "0"
    curve = connect(mlflow_server).get_metric_history(run.info.run_id, "curve.ndcg_at_10")
    assert len({point.step for point in curve}) >= 5
    assert [point.value for point in curve] == sorted(point.value for point in curve)
    losses = connect(mlflow_server).get_metric_history(run.info.run_id, "curve.loss")
    assert {point.step: point.value for point in losses} == pytest.approx({epoch: 1.0 / epoch for epoch in range(1, 11)})

    # The weights of the best trial of a source with epochs are kept, and nothing else.
    (kept,) = (folder / "weights").iterdir()
    assert json.loads((kept / "planted.json").read_text()) == [40, pytest.approx(min(1.0, 1.3 * best.params["height"]))]
    assert best.config["epochs"] == 10

    progress = json.loads((folder / "progress.json").read_text())
    assert progress[-1] == [15, 15]
    assert [ended for ended, _ in progress] == sorted(ended for ended, _ in progress)


def test_a_trial_that_runs_out_of_memory_is_ended_alone(tmp_path: Path, mlflow_server: str) -> None:
    """Ray's own monitor ends it, at a threshold that this machine reaches soon and others on it are far from."""
    memory = psutil.virtual_memory()
    if memory.available < 2 * ROOM:
        pytest.skip(f"{memory.available / 2**30:.1f} GB of memory are free, and this takes {2 * ROOM / 2**30:.0f}")
    threshold = (memory.total - memory.available + ROOM) / memory.total
    sources = [{"model": "fragile", "name": outcome, "fixed": {"outcome": outcome}} for outcome in ("grows", "good")]
    study = {"name": "memory", "trials": 2, "sources": sources}
    variables = {"RAY_memory_usage_threshold": f"{threshold:.4f}", "RAY_memory_monitor_refresh_ms": "50"}
    grown, good = sorted(search(tmp_path / "memory", mlflow_server, study, **variables), key=lambda r: r.source, reverse=True)
    assert (good.status, grown.status) == ("finished", "failed")
    assert grown.reason == "out of memory: Ray ended the trial's process"


def test_a_quick_model_that_takes_longer_than_the_time_limit_leaves_it_is_ended_alone(tmp_path: Path, mlflow_server: str) -> None:
    """It hangs in one call into a library, as a decomposition of a large catalogue does: nothing in its process can end it."""
    sources = [
        {"model": "fragile", "name": outcome, "fixed": {"outcome": outcome}, "optional": True} for outcome in ("lasts", "good")
    ]
    study = {"name": "limited", "trials": 2, "minutes": 0.5, "sources": sources}
    good, lasting = sorted(search(tmp_path / "limited", mlflow_server, study), key=lambda r: r.source)
    assert (good.status, lasting.status) == ("finished", "failed")
    assert lasting.reason == "it took longer than the time limit leaves to a trial, and was ended"


def test_after_kill_9_only_the_trials_under_way_are_repeated(tmp_path: Path, mlflow_server: str) -> None:
    space = {"height": {"type": "float", "low": 0.05, "high": 1.0}}
    study = {
        "name": "killed",
        "trials": 6,
        "grace_epochs": 100,
        "sources": [{"model": "learner", "fixed": {"seconds": 0.1}, "space": space}],
    }
    folder = tmp_path / "killed"
    process = start(folder, mlflow_server, study)
    deadline = time.monotonic() + 600
    while len(TrialLog(folder).records()) < 2:
        assert process.poll() is None, (process.communicate()[0] or b"").decode()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = TrialLog(folder).records()
    assert len(before) < 6

    after = search(folder, mlflow_server, study)
    assert after[: len(before)] == before
    assert sorted(r.number for r in after) == list(range(6))
    assert {r.status for r in after} == {"finished"}
    statuses = Counter(run.info.status for run in children(mlflow_server, folder))
    assert statuses["FINISHED"] == 6
    assert statuses["RUNNING"] == 0
    assert statuses["KILLED"] <= 2
