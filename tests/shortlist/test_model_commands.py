"""tune, train, evaluate and models on a planted dataset, with a real Ray and a real MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.spec import parse_spec
from features.control_store import ControlStore
from serving.control import ServingControl
from shortlist.commands.app import run
from training.registry import Registry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).parents[2]
STUDY = """
name = "walks"
trials = 6
[[sources]]
model = "popularity"
[[sources]]
model = "transition_knn"
[sources.space]
window = { type = "int", low = 1, high = 5 }
history_decay = { type = "float", low = 0.2, high = 1.0 }
[funnel]
rankers = [{ kind = "blend" }]
"""
BASELINE = """
name = "baseline"
[[sources]]
model = "popularity"
[funnel]
rankers = [{ kind = "blend" }]
"""


class Workplace:
    """A home with the planted dataset `walks`, where people walk a ring of items, and the commands to run in it."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.uri = folder, uri
        self.home = folder / "home"
        rng = np.random.default_rng(5)
        rows = []
        for user in range(150):
            item = int(rng.integers(50))
            for step in range(12):
                item = (item + 1) % 50 if rng.random() < 0.8 else int(rng.integers(50))
                rows.append((f"u{user:03d}", f"i{item:02d}", 1_700_000_000 + user * 97 + step * 3600))
        (folder / "data").mkdir()
        pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).to_csv(folder / "data" / "walks.csv", index=False)
        for name, text in (("walks", STUDY), ("baseline", BASELINE)):
            (folder / f"{name}.toml").write_text(text)
        self.registry = Registry(uri, "walks")

    def arguments(self, *words: str) -> list[str]:
        return [*words, "--dataset", "walks", "--json", "--set", f"home={self.home}", "--set", f"mlflow.tracking_uri={self.uri}"]

    def program(self, *words: str) -> dict[str, Any]:
        """Run a command as a process of its own, as those must that connect to Ray."""
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "shortlist", *self.arguments(*words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, mlflow_server: str) -> Workplace:
    """Versions 1 (baseline) and 2 (tuned); 1 is champion."""
    place = Workplace(tmp_path_factory.mktemp("walks"), mlflow_server)
    assert run(place.arguments("data", "import", str(place.folder / "data" / "walks.csv"))) == 0
    assert run(place.arguments("train", str(place.folder / "baseline.toml"))) == 0
    assert run(place.arguments("models", "promote", "1")) == 0
    place.tuned = place.program("tune", str(place.folder / "walks.toml"))  # type: ignore[attr-defined]
    return place


@pytest.fixture
def command(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Run a command in this process: exit code, result, stderr."""

    def call(*words: str) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        code = run(workplace.arguments(*words))
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]) if code == 0 else {}, err

    return call


def test_tuning_ends_with_a_version_that_passed_the_gate(workplace: Workplace) -> None:
    tuned = workplace.tuned  # type: ignore[attr-defined]
    assert {"study", "run_id", "model_version", "metrics", "trials"} <= set(tuned)
    assert (tuned["study"], tuned["model_version"], tuned["trials"]) == ("walks", "2", 6)
    assert tuned["gate"]["verdict"] == "pass"
    version = workplace.registry.version("2")
    assert version.metrics["ndcg@10"] > 3 * workplace.registry.version("1").metrics["ndcg@10"]
    assert version.run_id == tuned["run_id"]


def test_the_run_holds_what_is_needed_to_understand_and_repeat_it(workplace: Workplace) -> None:
    from training.tracking import Run, connect

    client = connect(workplace.uri)
    run_id = workplace.tuned["run_id"]  # type: ignore[attr-defined]
    parent = client.get_run(run_id)
    assert parent.info.status == "FINISHED"
    for tag in ("git_commit", "fingerprint", "seed", "as_of", "study_sha256", "dataset", "model_version"):
        assert parent.data.tags[f"shortlist.{tag}"]
    assert "source.transition_knn.window" in parent.data.params
    assert parent.data.metrics["ndcg_at_10"] > 0
    run = Run(client, run_id)
    table = run.read_table("trials.parquet")
    assert table is not None
    assert len(table) == 6
    assert "params.transition_knn.window" in table
    per_user = run.read_table("validation/per_user.parquet")
    assert per_user is not None
    assert set(per_user["user_id"]) == {f"u{n:03d}" for n in range(150)}
    assert {entry.path for entry in client.list_artifacts(run_id, "plots")} == {"plots/funnel.png", "plots/search.png"}


def test_the_champion_loads_with_plain_mlflow_in_a_fresh_process(workplace: Workplace) -> None:
    code = """
import json, sys, mlflow, pandas as pd
model = mlflow.pyfunc.load_model("models:/shortlist-walks/2")
frame = model.predict(pd.DataFrame({"user_id": ["u003", "nobody"]}), params={"top_k": 4})
session = model.predict(pd.DataFrame({"recent_items": [["i07", "i08"]]}), params={"top_k": 1})
users, ranks = frame["user_id"].tolist(), frame["rank"].tolist()
print(json.dumps({"columns": list(frame), "users": users, "ranks": ranks, "next": session.item_id[0]}))
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "MLFLOW_TRACKING_URI": workplace.uri}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=workplace.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["columns"] == ["user_id", "item_id", "score", "rank"]
    assert found["users"] == ["u003"] * 4 + ["nobody"] * 4
    assert found["ranks"] == [1, 2, 3, 4] * 2
    assert found["next"] == "i09"


def test_a_version_that_has_seen_the_test_rows_is_refused_with_its_study_named(
    command: Callable[..., tuple[int, dict[str, Any], str]],
) -> None:
    code, _, err = command("evaluate", "--protocol", "leave-one-out", "--model", "models:/shortlist-walks/2")
    assert code == 1
    assert "--study FILE, the file of study 'walks'" in err


def test_a_study_is_trained_for_the_protocol_and_measured_on_test(
    workplace: Workplace, command: Callable[..., tuple[int, dict[str, Any], str]]
) -> None:
    code, tuned, _ = command("evaluate", "--protocol", "leave-one-out", "--study", str(workplace.folder / "walks.toml"))
    assert code == 0
    assert {"protocol", "users", "metrics", "ci95", "seconds"} <= set(tuned)
    assert tuned["users"] == 150
    assert tuned["stage"] == "test"
    low, high = tuned["ci95"]["ndcg@10"]
    assert low < tuned["metrics"]["ndcg@10"] < high
    code, behind, _ = command("evaluate")
    assert code == 0
    assert behind["metrics"]["ndcg@10"] < tuned["metrics"]["ndcg@10"] / 3, "the champion is the baseline"


def test_a_study_that_was_never_run_here_says_so(
    workplace: Workplace, command: Callable[..., tuple[int, dict[str, Any], str]]
) -> None:
    never = workplace.folder / "never.toml"
    never.write_text(STUDY.replace('"walks"', '"never"'))
    code, _, err = command("evaluate", "--study", str(never))
    assert code == 1
    assert "has no outcome on dataset 'walks'" in err
    changed = workplace.folder / "changed.toml"
    changed.write_text(STUDY.replace("trials = 6", "trials = 7"))
    code, _, err = command("evaluate", "--study", str(changed))
    assert code == 1
    assert "has changed" in err


def test_a_bundle_that_has_not_seen_the_test_rows_is_measured_as_it_is(
    workplace: Workplace, command: Callable[..., tuple[int, dict[str, Any], str]]
) -> None:
    strict = workplace.folder / "strict.toml"
    strict.write_text(BASELINE.replace("baseline", "strict").replace("[[sources]]", "refit = false\n[[sources]]", 1))
    code, trained, _ = command("train", str(strict))
    assert code == 0
    code, measured, _ = command("evaluate", "--model", trained["model_version"])
    assert code == 0
    code, again, _ = command("evaluate", "--study", str(strict))
    assert code == 0
    assert measured["metrics"] == again["metrics"]


def test_promotion_obeys_the_gate_and_rollback_undoes_it(
    workplace: Workplace, command: Callable[..., tuple[int, dict[str, Any], str]]
) -> None:
    assert command("models", "promote", "2")[1]["previous"] == "1"
    code, judged, _ = command("models", "gate", "1")
    assert (code, judged["verdict"]) == (0, "fail")
    code, _, err = command("models", "promote", "1")
    assert code == 1
    assert "the gate failed version 1: ndcg@10" in err
    assert "--override" in err
    assert command("models", "promote", "1", "--override", "a test")[0] == 0
    assert workplace.registry.version("1").tags["shortlist.gate_override"] == "a test"
    assert command("models", "rollback")[1] == {
        "model": "shortlist-walks",
        "alias": "champion",
        "version": "2",
        "previous": "1",
    }
    assert command("models", "rollback")[1]["version"] == "1"
    listed = command("models", "list")[1]["versions"]
    assert next(v for v in listed if v["version"] == "1")["aliases"] == ["champion"]
    assert command("models", "show", "champion")[1]["history"]["champion"][-1]["kind"] == "rollback"


def test_pruning_keeps_what_is_aliased_or_assigned_by_an_experiment(
    workplace: Workplace, command: Callable[..., tuple[int, dict[str, Any], str]]
) -> None:
    for _ in range(3):
        assert command("train", str(workplace.folder / "baseline.toml"))[0] == 0
    before = [v.version for v in workplace.registry.versions()]
    champion = workplace.registry.aliases()["champion"]
    pinned = next(version for version in before[1:] if version != champion)
    control = ServingControl(ControlStore(f"sqlite:///{workplace.home / 'control.db'}").create(), "walks")
    variants = [{"name": "a", "model": champion, "weight": 1}, {"name": "b", "model": pinned, "weight": 1}]
    control.put_experiment(
        parse_spec({"name": "pins", "salt": "pins", "variants": variants, "metrics": {"primary": "ctr"}}), actor="test"
    )
    control.start_experiment("pins", {"a": champion, "b": pinned}, actor="test")
    _, pruned, _ = command("models", "prune", "--keep", "1")
    assert pruned["kept"][0] == before[0]
    assert {champion, pinned} <= set(pruned["kept"])
    assert set(pruned["kept"]) | set(pruned["deleted"]) == set(before)
    assert pruned["deleted"]
    control.end_experiment("pins", "stopped", actor="test")
    assert pinned in command("models", "prune", "--keep", "1")[1]["deleted"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["models", "show", "77"], "no version or alias '77'"),
        (["models", "rollback", "--alias", "shadow"], "no alias 'shadow'"),
        (["evaluate", "--protocol", "random"], "protocol 'random' is not available; there are: "),
        (["evaluate", "--model", "models:/shortlist-other@champion"], "is not a version of shortlist-walks"),
        (["train", "none.toml"], "none.toml cannot be read"),
        (["tune", "none.toml"], "none.toml cannot be read"),
    ],
)
def test_mistakes_end_with_one_line(
    command: Callable[..., tuple[int, dict[str, Any], str]], words: list[str], message: str
) -> None:
    code, _, err = command(*words)
    assert code == 1
    assert message in err
    assert err.strip().count("\n") == 0


def test_an_unknown_dataset_and_an_absent_server_say_what_to_do(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = workplace.arguments("train", str(workplace.folder / "baseline.toml"))
    arguments[arguments.index("walks")] = "nowhere"
    assert run(arguments) == 1
    assert "'nowhere'" in capsys.readouterr().err
    arguments = workplace.arguments("models", "list")
    arguments[arguments.index("walks")] = "nowhere"
    assert run(arguments) == 1
    assert "no dataset 'nowhere' in" in capsys.readouterr().err
    (workplace.home / "datasets" / "fresh").mkdir()
    arguments[arguments.index("nowhere")] = "fresh"
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["versions"] == []
    arguments = workplace.arguments("models", "list")
    arguments[-1] = "mlflow.tracking_uri=http://127.0.0.1:9"
    assert run(arguments) == 1
    assert "MLflow at http://127.0.0.1:9 does not answer" in capsys.readouterr().err
