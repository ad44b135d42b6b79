"""A dataset's names: refused where they cannot be a path part, never shared by two datasets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.paths import DATASET_NAME, DatasetPaths

names = st.from_regex(DATASET_NAME, fullmatch=True)


@given(one=names, other=names)
def test_two_datasets_share_no_feast_project(one: str, other: str) -> None:
    projects = {DatasetPaths(Path("h"), name).feast_project for name in (one, other)}
    assert len(projects) == len({one, other})


@pytest.mark.parametrize(("one", "other"), [("a.b", "a-b"), ("a_mb", "a-b"), ("a__b", "a_b"), ("a_pb", "a.b")])
def test_look_alikes_have_their_own_project(one: str, other: str) -> None:
    assert DatasetPaths(Path("h"), one).feast_project != DatasetPaths(Path("h"), other).feast_project


@pytest.mark.parametrize("name", ["", "A", "../up", "a/b", "-a", "a" * 64, "a b", "ä"])
def test_unusable_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not allowed"):
        DatasetPaths(Path("h"), name)
