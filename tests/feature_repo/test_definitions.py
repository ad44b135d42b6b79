"""The declarations as Feast's own tools read them."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from feast.repo_operations import get_repo_files, parse_repo

import feature_repo
from feature_repo.repository import build_repository
from feature_repo.specs import category_attribute

REPOSITORY = Path(feature_repo.__file__).parent

SCHEMA = {
    "dataset": "toys",
    "user_attributes": [{"name": "age", "source_name": "Age:years", "type": "int"}],
    "item_attributes": [
        {"name": "categories", "source_name": "genres", "type": "string_list"},
        {"name": "created_at", "source_name": "created_at", "type": "timestamp"},
        {"name": "price", "source_name": "price", "type": "float"},
    ],
}


def test_every_file_but_definitions_is_ignored_by_feast() -> None:
    ignored = set((REPOSITORY / ".feastignore").read_text().split())
    assert ignored == {path.name for path in REPOSITORY.glob("*.py")} - {"definitions.py"}
    assert [path.name for path in get_repo_files(REPOSITORY)] == ["definitions.py"]


def test_every_field_and_object_is_described(tmp_path: Path) -> None:
    repository = build_repository(SCHEMA, tmp_path)
    for declared in repository.objects():
        assert declared.description
        assert declared.owner == "shortlist"
    for view in [*repository.user_views, *repository.item_views, repository.request]:
        assert view.tags["entity"]
        for field in view.features:
            assert "unit:" in field.description, f"{view.name}:{field.name}"


def test_fields_come_from_the_schema(tmp_path: Path) -> None:
    repository = build_repository(SCHEMA, tmp_path)
    names = {view.name: [field.name for field in view.features] for view in [*repository.user_views, *repository.item_views]}
    assert names["user_profile"] == ["profile_age"]
    assert names["item_metadata"] == ["metadata_categories", "metadata_created_at_us", "metadata_price"]
    every = [name for of_view in names.values() for name in of_view]
    assert len(every) == len(set(every))
    bare = build_repository({"user_attributes": [], "item_attributes": []}, tmp_path)
    assert [view.name for view in [*bare.user_views, *bare.item_views]] == ["user_activity", "item_activity", "item_engagement"]


def test_an_unknown_attribute_type_is_refused(tmp_path: Path) -> None:
    wrong = {"user_attributes": [{"name": "x", "source_name": "x", "type": "complex"}], "item_attributes": []}
    with pytest.raises(ValueError, match="'x' has type 'complex'; allowed: string, int"):
        build_repository(wrong, tmp_path)


def test_feast_parses_the_dataset_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    monkeypatch.setenv("FEATURE_REPO_DATASET", str(tmp_path))
    monkeypatch.chdir(REPOSITORY.parent)
    monkeypatch.delitem(sys.modules, "feature_repo.definitions", raising=False)
    found = parse_repo(REPOSITORY)
    assert sorted(view.name for view in found.feature_views) == [
        "item_activity",
        "item_engagement",
        "item_metadata",
        "user_activity",
        "user_profile",
    ]
    assert [view.name for view in found.on_demand_feature_views] == ["request"]
    assert sorted(service.name for service in found.feature_services) == ["engagement_v1", "ranking_v1", "retrieval_v1"]
    monkeypatch.delitem(sys.modules, "feature_repo.definitions", raising=False)


def test_import_without_a_dataset_declares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEATURE_REPO_DATASET", raising=False)
    monkeypatch.delitem(sys.modules, "feature_repo.definitions", raising=False)
    assert importlib.import_module("feature_repo.definitions").declared_objects() == {}


def test_columns_and_specs_do_not_import_feast() -> None:
    code = (
        "import features.request_features, features.state_merge, features.feature_tables, sys; "
        "sys.exit(any(name == 'feast' or name.startswith('feast.') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_tags_stand_in_for_categories() -> None:
    assert category_attribute(["title", "tags"]) == "tags"
    assert category_attribute(["tags", "categories"]) == "categories"
    assert category_attribute(["title"]) is None
