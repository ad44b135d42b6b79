"""`shortlist data`: the JSON that scripts read, and one clear line for each kind of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from features.control_store import ControlStore
from serving.audit import AuditLog
from serving.recorded_import import IMPORT_SUBJECT
from shortlist.client_errors import ApiError
from shortlist.commands.app import run


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line in a home of its own; gives exit code, JSON result and error lines."""
    monkeypatch.setenv("SHORTLIST_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, Any, str]:
        code = run([*words, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]) if out.strip() else None, err

    return call


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    (tmp_path / "a.csv").write_text("user_id,item_id,rating,timestamp\nu,a,4,100\nu,b,5,200\nv,a,nope,1\n")
    return tmp_path / "a.csv"


def test_import_prints_exactly_the_contracts_fields(cli: Any, csv: Path) -> None:
    code, result, err = cli("data", "import", str(csv), "--dataset", "shop")
    assert code == 0
    path = result.pop("rejected_path")
    assert result == {
        "dataset": "shop",
        "users": 1,
        "items": 2,
        "interactions": 2,
        "catalogue_items": 2,
        "duplicates": 0,
        "rejected": 1,
    }
    assert "nope" in Path(path).read_text()
    assert "1 rows were rejected" in err.replace("\n", " ")
    assert (csv.parent / "home" / "datasets" / "shop" / "schema.json").exists()


def test_an_import_names_the_columns_that_it_does_not_use(cli: Any, csv: Path) -> None:
    csv.write_text("user_id,item_id,title\nu,a,A\n")
    code, result, err = cli("data", "import", str(csv), "--dataset", "shop")
    assert (code, result["unused_columns"]) == (0, ["title"])
    assert "note: a.csv: not used: 'title'" in err.replace("\n", " ")


def test_an_import_is_in_the_audit_log_if_it_changes_items(cli: Any, csv: Path) -> None:
    folder = csv.parent / "files"
    folder.mkdir()
    csv.rename(folder / "interactions.csv")
    log = AuditLog(ControlStore(f"sqlite:///{csv.parent / 'home' / 'control.db'}"), "shop")
    pd.DataFrame({"item_id": ["a"], "title": ["A"]}).to_parquet(folder / "items.parquet")
    pd.read_csv(folder / "interactions.csv").to_parquet(folder / "interactions.parquet")
    (folder / "interactions.csv").unlink()
    assert cli("data", "import", str(folder), "--dataset", "shop")[0] == 0
    assert [entry.after["items"] for entry in log.entries(subject=IMPORT_SUBJECT)] == [1, 1], "a of the items, b of the activity"
    assert cli("data", "import", str(folder), "--dataset", "shop")[0] == 0
    assert len(log.entries()) == 2
    pd.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"], "available": [False, True]}).to_parquet(folder / "items.parquet")
    assert cli("data", "import", str(folder), "--dataset", "shop")[0] == 0
    assert [entry.after["items"] for entry in log.entries()] == [1, 1, 2]


def test_a_short_id_is_found_as_something_else_too_and_the_scan_says_so(cli: Any, csv: Path) -> None:
    assert cli("data", "import", str(csv), "--dataset", "shop")[0] == 0
    code, result, err = cli("data", "scan-user", "b")
    assert code == 0
    assert result["found"]
    assert "'b' is short, so what is found may be an item's id or a number" in err
    assert "nothing" not in err, "above a table of matches"
    _, result, err = cli("data", "scan-user", "nobody-who-is-here")
    assert (result["found"], "is short" in err) == ([], False)


def test_describe_and_export(cli: Any, csv: Path, tmp_path: Path) -> None:
    cli("data", "import", str(csv), "--dataset", "shop")
    code, result, _ = cli("data", "describe", "--dataset", "shop", "--plot", "plots/x.png")
    assert (code, result["interactions"], result["density"]) == (0, 2, 1.0)
    assert (tmp_path / "plots" / "x.png").exists()
    code, result, _ = cli("data", "export", "out", "--dataset", "shop")
    assert (code, result["interactions"]) == (0, 2)
    assert len(pd.read_parquet(tmp_path / "out" / "interactions.parquet")) == 2
    assert cli("data", "describe", "--dataset", "shop", "--plot", "x.nonsense")[0] == 1


def test_simulate(cli: Any) -> None:
    code, result, _ = cli("data", "simulate", "--dataset", "s", "--users", "20", "--items", "30", "--events", "400")
    assert (code, result["users"], result["interactions"], result["catalogue_items"]) == (0, 20, 400, 30)


@pytest.mark.parametrize(
    ("given", "sent"), [({}, None), ({"ADMIN": "a", "READ": "r"}, "a"), ({"ADMIN": "a", "READ": "r", "WRITE": "w"}, "w")]
)
def test_traffic_reads_and_writes_with_the_least_token_that_may(
    cli: Any, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], sent: str | None
) -> None:
    cli("data", "simulate", "--dataset", "s", "--users", "20", "--items", "30", "--events", "400")
    tokens = []

    class Refused:
        def __init__(self, base_url: str, token: str | None = None) -> None:
            tokens.append(token)

        async def __aenter__(self) -> Refused:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def recommend(self, *_: object, **__: object) -> None:
            raise ApiError("unauthorized", "no", status=401)

    monkeypatch.setattr("shortlist.live_traffic.AsyncClient", Refused)
    for scope, token in given.items():
        monkeypatch.setenv(f"SHORTLIST_TOKEN__{scope}", token)
    code, result, _ = cli("data", "traffic", "--dataset", "s", "--sessions", "1", "--url", "http://127.0.0.1:1")
    assert (code, result["failures"] > 0, tokens) == (0, True, [sent])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["import", "movielens-9k", "--dataset", "d"], 1, "no file or folder 'movielens-9k' and no public dataset"),
        (["import", "a.csv", "--dataset", "Bad Name"], 1, "dataset name 'Bad Name' is not allowed"),
        (["import", "a.csv", "--dataset", "d", "--format", "xlsx"], 1, "format 'xlsx' is not known"),
        (["import", "a.csv", "--dataset", "d", "--map", "item_id=thing"], 1, "no column 'thing'"),
        (["import", "a.csv", "--dataset", "d", "--map", "nonsense"], 2, "canonical=column"),
        (["import", "a.csv", "--dataset", "d", "--default-action", "fly"], 1, "default action 'fly' is not known"),
        (["import", "a.csv"], 2, "--dataset"),
        (["import", "a.csv", "--dataset", "d", "--format", "parquet"], 1, "cannot be read as Parquet"),
        (["import", "empty.csv", "--dataset", "d"], 1, "empty.csv is empty"),
        (["import", "columns.csv", "--dataset", "d"], 1, "no column that looks like item_id"),
        (["import", "allbad.csv", "--dataset", "d"], 1, "all 1 rows were rejected"),
        (["import", ".", "--dataset", "d"], 1, "looks like a dataset"),
        (["describe", "--dataset", "nothing"], 1, "dataset 'nothing' has no activity"),
        (["export", "out", "--dataset", "nothing"], 1, "nothing to export"),
        (["simulate", "--dataset", "d", "--users", "0"], 2, "--users"),
        (["simulate", "--dataset", "d", "--items", "99999999999"], 1, "--items"),
    ],
)
def test_bad_input_ends_with_one_line_that_says_what_to_do(cli: Any, csv: Path, words: list[str], code: int, message: str) -> None:
    (csv.parent / "empty.csv").write_text("")
    (csv.parent / "columns.csv").write_text("user_id,rating\nu,1\n")
    (csv.parent / "allbad.csv").write_text("user_id,item_id\n,1\n")
    found, result, err = cli("data", *words)
    assert (found, result) == (code, None)
    assert message in " ".join(err.split())
    if code == 1:
        assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
        assert "Traceback" not in err
