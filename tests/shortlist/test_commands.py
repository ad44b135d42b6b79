"""The program's frame: exit codes, one-line errors, JSON as the last line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from shortlist.commands.app import run
from shortlist.commands.connection import chosen_dataset
from shortlist.commands.console import CommandError, finish, options
from shortlist.commands.models import version_tables
from shortlist.commands.tune import outcome_table
from shortlist.runner import Runner, _reason
from shortlist.stack.ports import wait_until
from shortlist.stack.secrets import kept_secret
from shortlist.stack.state import StackState, started_s
from training.model_version import METRICS_TAG, ModelVersion


@pytest.fixture(autouse=True)
def _private_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHORTLIST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SHORTLIST_SERVE__PORT", "0")
    monkeypatch.setenv("SHORTLIST_MLFLOW__PORT", "0")


def test_wrong_usage_is_2(capsys):
    assert run(["no-such-command"]) == 2
    assert run(["doctor", "--no-such-option"]) == 2
    assert run(["doctor", "--set"]) == 2


def test_failure_is_1_with_one_line(capsys):
    assert run(["status"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "shortlist up" in lines[0]


def test_ctrl_c_is_1_and_says_so(capsys, monkeypatch):
    def settings():
        raise KeyboardInterrupt

    monkeypatch.setattr("shortlist.commands.console.settings", settings)
    assert run(["doctor"]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1] == "error: stopped"


def test_a_wrong_setting_is_1_and_named(capsys):
    assert run(["doctor", "--set", "serve.prot=1"]) == 1
    assert "unknown setting 'serve.prot'" in capsys.readouterr().err


def test_up_without_a_dataset_says_how_to_get_one(capsys):
    assert run(["up"]) == 1
    assert "shortlist data import" in capsys.readouterr().err


def test_up_of_an_unknown_dataset_names_it(capsys):
    assert run(["up", "--dataset", "nope"]) == 1
    assert "no dataset 'nope'" in capsys.readouterr().err


def test_json_is_the_last_line_of_stdout(capsys):
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["ok"] is True
    assert {"python", "redis-server", "memory", "disk"} <= {finding["check"] for finding in found["findings"]}


def test_a_stack_names_the_file_of_its_admin_token_and_not_the_token(tmp_path, monkeypatch, capsys):
    token = kept_secret(tmp_path / "home", "admin-token")
    StackState("ready", "books", os.getpid(), started_s(psutil.Process())).save(tmp_path / "home")
    assert run(["status", "--json"]) == 0
    shown = capsys.readouterr().out
    assert Path(json.loads(shown)["admin_token_file"]).read_text() == token
    assert token not in shown
    monkeypatch.setenv("SHORTLIST_TOKEN__ADMIN", "of-the-environment")
    assert run(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["admin_token_file"] is None


def test_a_version_is_promoted_in_the_dataset_that_it_was_trained_on(capsys):
    evaluation = SimpleNamespace(metrics={}, ci95={})
    outcome = SimpleNamespace(
        model_version="3",
        study="s",
        evaluation=evaluation,
        against={},
        shipped="blend",
        trials=0,
        run_id="r",
        gate=SimpleNamespace(verdict="first", reason="no champion"),
    )
    Console(width=200).print(outcome_table(outcome, "books"))
    assert "shortlist models promote 3 --alias champion --dataset books" in capsys.readouterr().out


def test_no_gain_has_no_sign_of_a_loss(capsys):
    outcome = SimpleNamespace(
        model_version="3",
        study="s",
        evaluation=SimpleNamespace(metrics={"ndcg@10": 0.1}, ci95={"ndcg@10": (-0.00001, 0.2)}),
        against={"ease": SimpleNamespace(metric="ndcg@10", difference=-0.00001, ci95=(-0.00002, 0.0))},
        shipped="blend",
        trials=0,
        run_id="r",
        gate=SimpleNamespace(verdict="first", reason="no champion"),
    )
    Console(width=200).print(outcome_table(outcome, "books"))
    shown = capsys.readouterr().out
    assert "-0.0000" not in shown
    assert "+0.0000  (+0.0000 to +0.0000)" in shown


def test_a_version_is_shown_with_each_fact_once(capsys):
    metrics = {f"ndcg@{k}": 0.1 + k / 1000 for k in range(1, 30)}
    tags = {METRICS_TAG: json.dumps(metrics), "shortlist.study": "walks", "shortlist.gate_reason": "better " * 40}
    version = ModelVersion("3", datetime(2026, 3, 1, tzinfo=UTC), "r", tags, ("champion",))
    move = {"version": "3", "kind": "set", "at": "2026-03-01T10:00:00+00:00", "by": "somebody"}
    Console(width=80).print(version_tables("shortlist-walks", version, "/home/me/" + "deep/" * 30, {"champion": [move]}))
    shown = capsys.readouterr().out
    assert shown.count("ndcg@10") == shown.count("0.1100") == shown.count("2026-03-01 10:00:00") == 1
    whole = re.sub(r"[\s│]", "", shown)  # folded lines
    assert (whole.count("deep"), whole.count("better")) == (30, 40)
    assert not set("{}…") & set(shown)


def test_a_command_that_is_run_is_shown_as_it_is_typed(tmp_path, capsys):
    runner = Runner(())
    with pytest.raises(CommandError):
        runner.run("data", "import", str(tmp_path / "my [file].csv"), "--dataset", "d")
    assert f"$ shortlist data import '{tmp_path}/my [file].csv' --dataset d" in capsys.readouterr().err


def test_rows_of_a_table_stay_on_their_lines_in_a_pipe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(options, "json_output", False)
    row = "| " + " | ".join(["a figure that is long"] * 8) + " |"
    finish({}, row)
    assert capsys.readouterr().out == row + "\n"


def test_help_teaches(capsys):
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert "doctor" in shown


def test_a_command_means_the_only_dataset_of_the_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(options, "overrides", ())
    nowhere = ["--set", "mlflow.tracking_uri=http://127.0.0.1:9"]
    for words in (["list"], ["show", "1"], ["promote", "1"], ["rollback"]):
        assert run(["models", *words, *nowhere]) == 1
        assert "which dataset?" in capsys.readouterr().err
    (tmp_path / "home" / "datasets" / "shop").mkdir(parents=True)
    for words in (["list"], ["show", "1"], ["promote", "1"], ["rollback"]):
        assert run(["models", *words, *nowhere]) == 1
        assert "MLflow at http://127.0.0.1:9 does not answer" in capsys.readouterr().err
    monkeypatch.setattr(options, "overrides", ())
    assert chosen_dataset() == "shop"
    assert chosen_dataset("other") == "other"
    (tmp_path / "home" / "datasets" / "books").mkdir()
    with pytest.raises(CommandError, match="holds: books, shop"):
        chosen_dataset()
    StackState("ready", "books", os.getpid(), started_s(psutil.Process())).save(tmp_path / "home")
    assert chosen_dataset() == "books"
    monkeypatch.setenv("SHORTLIST_SERVE__DATASET", "shop")
    assert chosen_dataset() == "shop"


@pytest.mark.parametrize("words", [("list",), ("prune",), ("show", "1")])
def test_models_of_an_unknown_dataset_are_refused_before_mlflow_is_started(words, tmp_path, capsys):
    assert run(["models", *words, "--dataset", "nope"]) == 1
    assert "no dataset 'nope'" in capsys.readouterr().err
    assert not (tmp_path / "home" / "mlflow").exists()


def test_the_stacks_own_mlflow_that_is_away_is_not_asked_to_be_left_out_of_the_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(options, "overrides", ())
    home = tmp_path / "home"
    (home / "datasets" / "shop").mkdir(parents=True)
    me = psutil.Process()
    StackState("ready", "shop", me.pid, started_s(me), mlflow_uri="http://127.0.0.1:9").save(home)
    assert run(["models", "list"]) == 1
    said = capsys.readouterr().err
    assert "MLflow at http://127.0.0.1:9 does not answer: the running stack starts it again" in said
    assert "mlflow.tracking_uri" not in said


def test_a_runner_says_why_a_command_failed_that_did_not_say_so_itself():
    killed = subprocess.CompletedProcess(["x"], -9, stdout="", stderr="")
    assert _reason(killed) == "it ended with exit code -9 and said nothing"
    assert _reason(subprocess.CompletedProcess(["x"], 1, stdout="", stderr="loading\nMemoryError\n")) == "MemoryError"
    assert _reason(subprocess.CompletedProcess(["x"], 1, stdout="", stderr="error: no disk\nbye\n")) == "no disk"


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_command_of_a_runner_that_is_killed_ends_too(tmp_path):
    command, note = tmp_path / "command", tmp_path / "pid"
    command.write_text(f"#!/bin/sh\necho $$ > {note}.tmp && mv {note}.tmp {note}\nexec sleep 60\n")
    command.chmod(0o700)
    code = f"import sys; from shortlist.runner import Runner; sys.executable = {str(command)!r}; Runner(()).run('tune')"
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    try:
        wait_until(note.exists, seconds=60, what="the command")
        command_process = psutil.Process(int(note.read_text()))
        runner.kill()
        assert psutil.wait_procs([command_process], timeout=10)[1] == []
    finally:
        runner.kill()
        runner.wait()
