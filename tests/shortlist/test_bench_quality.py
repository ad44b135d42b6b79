"""`bench quality`: strict and refitted figures in rows of their own, seeds and their spread, published rows beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shortlist.bench.quality import measure_quality, published, quality_markdown
from shortlist.runner import Runner, StepRecord
from training.study import load_study

STUDY = Path(__file__).parents[2] / "experiments" / "studies" / "quickstart.toml"


class Replies(Runner):
    """Answers as the commands would."""

    def run(self, *words: str) -> dict[str, Any]:
        self.records.append(StepRecord("shortlist " + " ".join(words), 1.0, 10))
        if words[0] == "tune":
            self.studied = load_study(Path(words[1]))
            return {"metrics": {"ndcg@10": 0.2, "hr@10": 0.3}, "ranker": "blend"}
        value = (0.9 if "--refit" in words else 0.1) + 0.01 * ("--seed" in words)
        gain = {"metric": "ndcg@10", "difference": 0.01, "ci95": [0.0, 0.02], "p": 0.05}
        return {
            "users": 1000,
            "metrics": {"ndcg@10": value, "hr@10": 0.2, "map@10": 0.3, "precision@10": 0.4, "recall@10": 0.5},
            "ci95": {"ndcg@10": [0.08, 0.12]},
            "against_sources": {"ease": gain},
            "sources": {"ease": {"ndcg@10": 0.09}},
            "segments": {"items_new": {"users": 7, "metrics": {"ndcg@10": 0.0, "hr@10": 0.0}}},
        }


def test_strict_and_refit_stay_apart(tmp_path: Path) -> None:
    runner = Replies(())
    result = measure_quality(runner, "shop", STUDY, tmp_path, seeds=2, minutes=3)
    assert [record.command.split()[1] for record in runner.records] == ["tune", *["evaluate"] * 4]
    assert "--minutes 3" in runner.records[0].command
    assert ["--refit" in record.command for record in runner.records] == [False, False, False, True, True]
    assert ["--seed 1" in record.command for record in runner.records] == [False, False, True, False, True]
    table = quality_markdown(result, [{"model": "Theirs", "metrics": {"ndcg@10": 0.05}, "source": "a paper"}], "a machine")
    lines = table.splitlines()
    (strict,) = [line for line in lines if "test, strict**" in line]
    (refit,) = [line for line in lines if "refit on validation rows" in line]
    assert "| 0.1050 |" in strict
    assert "seeds 0, 1" in strict
    assert "| 0.9050 |" in refit
    for line in (strict, refit):
        spread = lines[lines.index(line) + 1]
        assert "spread over seeds" in spread
        assert "| 0.0071 |" in spread
    assert "| published: Theirs | 0.0500 |" in table
    assert "| items_new | 7 | 0.0000 | 0.0000 |" in table
    assert "| ease | ndcg@10 | +0.0100 | +0.0000 to +0.0200 | 0.050 |" in table


def test_without_a_refit_the_tuning_keeps_no_time_for_one(tmp_path: Path) -> None:
    runner = Replies(())
    result = measure_quality(runner, "shop", STUDY, tmp_path, seeds=3, refit=False)
    assert runner.studied.name == "quickstart-strict"
    assert not runner.studied.refit
    assert not any("--refit" in record.command for record in runner.records)
    assert "refit on validation rows" not in quality_markdown(result, [], "a machine")


def test_another_protocol_is_a_study_of_its_own(tmp_path: Path) -> None:
    runner = Replies(())
    result = measure_quality(runner, "shop", STUDY, tmp_path, protocol="stratified", seeds=1)
    assert runner.studied.name == "quickstart-stratified"
    assert runner.studied.refit
    assert runner.studied.protocol == "stratified"
    assert "--protocol stratified" in runner.records[1].command
    assert "map@10" in quality_markdown(result, published("ml-100k", "stratified"), "a machine").splitlines()[3]
    assert "BiVAE" in quality_markdown(result, published("ml-100k", "stratified"), "a machine")


@pytest.mark.parametrize(("data", "protocol", "best"), [("beauty", "leave-one-out", 0.0614), ("lastfm", "leave-one-out", 0.0427)])
def test_published_rows_have_a_model_figures_and_a_source(data: str, protocol: str, best: float) -> None:
    rows = published(data, protocol)
    assert max(row["metrics"]["ndcg@10"] for row in rows) == best
    assert all(row["model"] and row["source"] for row in rows)
    assert published("unheard-of", protocol) == []
