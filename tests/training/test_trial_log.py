"""The log of trials: what was appended comes back, a line cut short by a crash costs that trial alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.errors import StudyError
from training.trial_log import TrialLog, TrialRecord


def record(number: int) -> TrialRecord:
    params = {"window": number}
    return TrialRecord("knn", "transition_knn", number, params, params, "finished", 0.1 * number, {"a": 1.0})


def test_records_come_back_in_order(tmp_path: Path) -> None:
    log = TrialLog(tmp_path / "study")
    assert log.head() is None
    log.begin({"run_id": "r"})
    for number in (2, 0, 1):
        log.append(record(number))
    again = TrialLog(tmp_path / "study")
    assert again.head() == {"run_id": "r"}
    assert again.records() == [record(2), record(0), record(1)]


def test_a_line_cut_short_costs_that_trial_alone(tmp_path: Path) -> None:
    log = TrialLog(tmp_path)
    log.begin({})
    for number in range(3):
        log.append(record(number))
    file = tmp_path / "trials.jsonl"
    file.write_bytes(file.read_bytes()[:-25])
    assert log.records() == [record(0), record(1)]
    log.append(record(9))
    assert log.records() == [record(0), record(1), record(9)]


def test_beginning_again_forgets(tmp_path: Path) -> None:
    log = TrialLog(tmp_path)
    log.begin({})
    log.append(record(0))
    log.begin({})
    assert log.records() == []


def test_a_damaged_head_says_what_to_do(tmp_path: Path) -> None:
    log = TrialLog(tmp_path)
    log.begin({})
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(StudyError, match="without --resume"):
        log.head()
