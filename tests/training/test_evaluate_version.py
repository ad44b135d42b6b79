"""Which configuration of a study is evaluated, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from features.paths import DatasetPaths
from training.errors import StudyError
from training.evaluate_version import evaluate_study
from training.study import parse_study
from training.study_data import Place

SEARCHED = {"name": "s", "sources": [{"model": "ease", "space": {"l2": {"type": "float", "low": 1, "high": 9}}}]}


def test_a_study_that_was_trained_without_a_search_is_named_as_its_outcome(tmp_path: Path) -> None:
    place = Place(DatasetPaths(tmp_path, "shop"), "sqlite://", "")
    study = parse_study(SEARCHED, "s.toml")
    with pytest.raises(StudyError, match="has no outcome"):
        evaluate_study(study, place, "leave-one-out")
    outcome = place.study_folder("s") / "outcome.json"
    outcome.parent.mkdir(parents=True)
    outcome.write_text("{}")
    with pytest.raises(StudyError, match=r"was trained on dataset 'shop', not searched.*--study .*outcome\.json"):
        evaluate_study(study, place, "leave-one-out")
