"""The registry against a real MLflow server: versions, aliases with history, rollback, prune, fetching."""

from __future__ import annotations

import socket
import time
import uuid
from pathlib import Path

import pytest

from training.errors import AliasNameError, NoEarlierVersionError, RegistryError, UnknownVersionError
from training.model_version import GATE_OVERRIDE_TAG, GATE_TAG, MAX_ALIAS_LENGTH
from training.registry import Registry

pytestmark = pytest.mark.integration


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A folder of files: the registry does not look into bundles."""
    folder = tmp_path / "a-bundle"
    (folder / "sources").mkdir(parents=True)
    (folder / "manifest.json").write_text('{"dataset": "worlds"}')
    (folder / "sources" / "weights.bin").write_bytes(bytes(range(256)) * 64)
    return folder


@pytest.fixture
def registry(mlflow_server: str) -> Registry:
    return Registry(mlflow_server, f"worlds-{uuid.uuid4().hex[:8]}")


def test_an_empty_registry_is_empty_and_says_so(registry: Registry) -> None:
    assert registry.versions() == []
    assert registry.aliases() == {}
    with pytest.raises(RegistryError, match="nothing is registered"):
        registry.version("champion")


def test_a_version_comes_back_with_its_files_tags_and_metrics(registry: Registry, bundle: Path) -> None:
    number = registry.register(bundle, metrics={"ndcg@10": 0.1234567}, tags={GATE_TAG: "first"})
    found = registry.version(number)
    assert (found.version, found.gate, found.metrics) == ("1", "first", {"ndcg@10": 0.123457})
    assert found.tags["shortlist.dataset"] == registry.dataset
    folder = registry.download(number)
    assert (folder / "sources" / "weights.bin").read_bytes() == (bundle / "sources" / "weights.bin").read_bytes()
    assert not list(folder.parent.parent.rglob("*.pkl"))


def test_a_local_store_is_read_in_place(registry: Registry, bundle: Path) -> None:
    number = registry.register(bundle)
    assert registry.download(number) == registry.download(number)
    assert "artifacts" in registry.download(number).parts


def test_a_failed_version_is_servable_only_with_an_override(registry: Registry, bundle: Path) -> None:
    number = registry.register(bundle, tags={GATE_TAG: "fail"})
    assert not registry.version(number).servable
    registry.set_tag(number, GATE_OVERRIDE_TAG, "wanted for the test")
    assert registry.version(number).servable


def test_rolling_back_twice_goes_back_two_versions(registry: Registry, bundle: Path) -> None:
    for _ in range(3):
        registry.set_alias("champion", registry.register(bundle))
    assert registry.previous("champion") == "2"
    assert registry.rollback() == ("3", "2")
    assert registry.rollback() == ("2", "1")
    with pytest.raises(NoEarlierVersionError, match="no earlier one"):
        registry.rollback()
    registry.set_alias("champion", "3")
    assert registry.rollback() == ("3", "1")
    assert [move.version for move in registry.history("champion")] == ["1", "2", "3", "2", "1", "3", "1"]


def test_a_move_made_elsewhere_is_noticed_and_can_be_rolled_back(registry: Registry, bundle: Path) -> None:
    from mlflow.tracking import MlflowClient

    for _ in range(2):
        registry.register(bundle)
    registry.set_alias("champion", "1")
    MlflowClient(registry.tracking_uri, registry.tracking_uri).set_registered_model_alias(registry.model, "champion", "2")
    assert registry.aliases() == {"champion": "2"}
    assert registry.previous("champion") == "1"
    assert registry.observe("champion")
    assert not registry.observe("champion")
    assert registry.rollback() == ("2", "1")


def test_prune_keeps_the_newest_the_aliased_and_the_way_back(registry: Registry, bundle: Path) -> None:
    for _ in range(6):
        registry.register(bundle)
    registry.set_alias("champion", "1")
    registry.set_alias("champion", "3")
    registry.set_alias("shadow", "4")
    with pytest.raises(RegistryError, match="move the alias first"):
        registry.delete("4")
    assert sorted(registry.prune(keep=1, in_use={"5"})) == ["2"]
    assert sorted(registry.prune(keep=1)) == ["5"]
    assert [v.version for v in registry.versions()] == ["6", "4", "3", "1"]
    assert registry.rollback() == ("3", "1")


def test_rollback_skips_what_the_gate_failed(registry: Registry, bundle: Path) -> None:
    """An alias can be moved there in the UI; serving has refused it, and a rollback to it would change nothing."""
    for verdict in ("first", "fail", "pass"):
        registry.set_alias("champion", registry.register(bundle, tags={GATE_TAG: verdict}))
    assert registry.previous("champion") == "1"
    registry.set_tag("2", GATE_OVERRIDE_TAG, "wanted for the test")
    assert registry.rollback() == ("3", "2")


def test_rollback_skips_versions_that_no_longer_exist(registry: Registry, bundle: Path) -> None:
    for _ in range(3):
        registry.set_alias("champion", registry.register(bundle))
    registry.delete("2")
    assert registry.rollback() == ("3", "1")


def test_an_unknown_version_or_alias_names_what_there_is(registry: Registry, bundle: Path) -> None:
    registry.set_alias("champion", registry.register(bundle))
    with pytest.raises(UnknownVersionError, match=r"no version or alias 'challenger' \(aliases: champion=1\)"):
        registry.version("challenger")
    for number in ("7", "0", str(2**31 - 1), str(2**31), "9" * 30, "١"):
        with pytest.raises(UnknownVersionError, match="no version or alias"):
            registry.version(number)
    with pytest.raises(UnknownVersionError, match=rf"no version or alias '{'9' * 80}' \("):
        registry.version("9" * 400)
    with pytest.raises(UnknownVersionError, match="no version or alias '7'"):
        registry.download("7")
    with pytest.raises(UnknownVersionError, match="no alias 'shadow'"):
        registry.delete_alias("shadow")


def test_an_alias_has_a_name_that_mlflow_takes(registry: Registry, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = registry.register(bundle)
    longest = "a" * MAX_ALIAS_LENGTH
    registry.set_alias(longest, number)
    assert registry.history(longest)
    refused = ("", "latest", "LATEST", "v1", "V12", "a b", "a.b", longest + "a")
    for alias in refused:
        with pytest.raises(AliasNameError, match="cannot be an alias"):
            registry.set_alias(alias, number)
    assert registry.aliases() == {longest: number}
    monkeypatch.setattr("training.registry.check_alias_name", lambda _: None)
    for alias in ("latest", "v1", "a b"):
        with pytest.raises(AliasNameError, match="refused"):
            registry.set_alias(alias, number)


def test_an_unreachable_server_is_an_error_in_seconds(bundle: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(RegistryError, match="cannot be reached"):
        Registry(url, "worlds").aliases()
    with pytest.raises(RegistryError, match="cannot be reached"):
        Registry(url, "worlds").register(bundle)
    assert time.monotonic() - started < 15


def test_a_file_store_is_refused() -> None:
    with pytest.raises(RegistryError, match="not an http"):
        Registry("sqlite:///mlflow.db", "worlds")
