"""The reconciler on a real registry and control store; versions answer in this process instead of Ray's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from experiments.spec import parse_spec
from features.control_store import ControlStore
from serving.cached_list import decode_list
from serving.config import ServingConfig
from serving.control import ServingControl
from serving.errors import ControlStateError
from serving.item_table import ItemTable
from serving.messages import ComputeRequest
from serving.recent_activity import RecentActivity
from serving.reconciler import Reconciler
from serving.retriever import RetrieverStage
from serving.shadow_role import shadow_key
from serving.version_lists import encode_answer
from shortlist.stack.mlflow_server import start_mlflow
from shortlist.stack.ports import free_port, wait_until
from training.errors import RegistryDownError
from training.model_version import GATE_OVERRIDE_TAG, GATE_TAG, SERVING_TAG
from training.pipeline import Pipeline
from training.registry import Registry

pytestmark = pytest.mark.integration


class LocalGraph:
    """Versions in this process, with trouble on demand."""

    def __init__(self) -> None:
        self.stages: dict[str, RetrieverStage] = {}
        self.deployments: list[str] = []
        self.failures: dict[str, int] = {}
        self.spoil: Callable[[bytes], bytes] | None = None
        self.held_back: dict[str, threading.Event] = {}
        self.rests = 0

    def deploy(self, version: str, folder: Path) -> None:
        self.deployments.append(version)
        if version in self.held_back:
            assert self.held_back[version].wait(60)
        if self.failures.get(version, 0) > 0:
            self.failures[version] -= 1
            raise RuntimeError("no memory\nin this machine")
        self.stages[version] = RetrieverStage(Pipeline.load(folder), ItemTable.from_bundle(folder))

    def ask(self, version: str, requests: Sequence[ComputeRequest]) -> list[bytes]:
        return [self._list(self.stages[version], request) for request in requests]

    def _list(self, stage: RetrieverStage, request: ComputeRequest) -> bytes:
        query, rejected = stage.query(request, RecentActivity(), 1)
        lists = stage.pipeline.rank(query, stage.retrieve(request, query, rejected), request.k)
        blob = encode_answer(lists, RecentActivity(), 1, request.k)
        return self.spoil(blob) if self.spoil is not None else blob

    def delete(self, version: str) -> None:
        self.stages.pop(version, None)

    def running(self) -> set[str]:
        return set(self.stages)

    def rest(self) -> None:
        self.rests += 1


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    child, uri = start_mlflow(tmp_path_factory.mktemp("mlflow"), free_port())
    yield uri
    child.stop()


@pytest.fixture(scope="module")
def registry(mlflow: str, bundle: Path, popular_bundle: Path) -> Registry:
    """Versions 1 (passed the gate), 2 (passed) and 3 (failed)."""
    registry = Registry(mlflow, "planted")
    registry.register(bundle, tags={GATE_TAG: "first"})
    registry.register(popular_bundle, tags={GATE_TAG: "pass"})
    registry.register(popular_bundle, tags={GATE_TAG: "fail"})
    return registry


class World:
    """A reconciler with its surroundings and a clock that is moved by hand."""

    def __init__(self, config: ServingConfig, registry: Registry) -> None:
        self.registry, self.graph, self.now = registry, LocalGraph(), 0.0
        self.control = ServingControl(ControlStore(config.control_url).create(), config.dataset)
        self.reconciler = Reconciler(config, self.graph, registry, clock=lambda: self.now, first_pause_s=0.001)

    def step(self, **aliases: str) -> tuple[str | None, set[str]]:
        for alias, version in aliases.items():
            self.registry.set_alias(alias, version)
        state = self.reconciler.step()
        assert state == self.control.state()
        return state.champion, set(state.versions)

    def tag(self, version: str) -> str | None:
        return self.registry.version(version).tags.get(SERVING_TAG)


@pytest.fixture
def planted(make_config, registry: Registry) -> World:
    for alias in list(registry.aliases()):
        registry.delete_alias(alias)
    registry.set_tag("3", GATE_OVERRIDE_TAG, "")
    return World(make_config(), registry)


def test_aliases_are_loaded_switched_and_dropped_after_everybody_noticed(planted: World) -> None:
    assert planted.step() == (None, set())
    assert planted.step(champion="1") == ("1", {"1"})
    assert planted.tag("1") == "live"
    assert planted.step(challenger="2") == ("1", {"1", "2"})
    assert planted.step(champion="2") == ("2", {"2"})
    assert planted.graph.running() == {"1", "2"}
    planted.now += 3
    planted.step()
    assert planted.graph.running() == {"1", "2"}
    planted.now += 10
    planted.step()
    assert planted.graph.running() == {"2"}
    assert planted.tag("1") == "unloaded"
    assert planted.graph.deployments == ["1", "2"]
    history = [entry.after["champion"] for entry in planted.control.audit.entries() if entry.subject == "routing"]
    assert history == ["1", "1", "2", "2"]
    aliases = [(entry.subject, entry.after) for entry in planted.control.audit.entries() if entry.action == "alias"]
    assert aliases == [("alias:champion", "1"), ("alias:challenger", "2"), ("alias:champion", "2")]
    assert planted.control.audit.replay(datetime.now(UTC))["routing"]["champion"] == "2"


def test_a_version_that_comes_back_before_it_was_dropped_is_used_again(planted: World) -> None:
    planted.step(champion="1")
    planted.step(champion="2")
    planted.now += 3
    assert planted.step(champion="1") == ("1", {"1"})
    planted.now += 10
    assert planted.step() == ("1", {"1"})
    assert planted.graph.deployments == ["1", "2"]


def test_the_gate_is_obeyed_until_it_is_overridden(planted: World) -> None:
    planted.step(champion="1")
    assert planted.step(champion="3") == ("1", {"1"})
    assert planted.tag("3").startswith("refused: the gate failed it")
    assert planted.step() == ("1", {"1"})
    planted.registry.set_tag("3", GATE_OVERRIDE_TAG, "known to be fine")
    assert planted.step() == ("3", {"3"})
    assert planted.tag("3") == "live"


def test_two_failures_are_survived_and_three_are_a_refusal(planted: World) -> None:
    planted.graph.failures = {"1": 2, "2": 3}
    assert planted.step(champion="1") == ("1", {"1"})
    assert planted.step(champion="2") == ("1", {"1"})
    assert planted.graph.deployments == ["1"] * 3 + ["2"] * 3
    assert planted.tag("2") == "refused: RuntimeError: no memory"
    planted.step()
    assert planted.graph.deployments == ["1"] * 3 + ["2"] * 3
    planted.step(champion="1")
    assert planted.step(champion="2") == ("2", {"2"})


def test_slow_loads_hold_up_no_promotion(planted: World) -> None:
    """A challenger and a shadow that do not get ready take all places of the queue; the champion comes up and is routed to."""
    planted.step(champion="1")
    goes_on = threading.Event()
    slow = {"2", shadow_key("2")}
    planted.graph.held_back = dict.fromkeys(slow, goes_on)
    for alias in ("challenger", "shadow"):
        planted.registry.set_alias(alias, "2")
    planted.registry.set_tag("3", GATE_OVERRIDE_TAG, "for the test")

    def promoted() -> bool:
        return planted.reconciler.look().champion == "3"

    planted.reconciler.look()
    wait_until(lambda: slow <= set(planted.graph.deployments), seconds=120, what="the slow loads")
    planted.registry.set_alias("champion", "3")
    wait_until(promoted, seconds=120, what="the promotion")
    assert set(planted.control.state().versions) == {"3"}
    assert planted.control.state().shadow is None
    assert planted.tag("2") == "loading"
    goes_on.set()
    planted.step()
    assert set(planted.control.state().versions) == {"2", "3"}
    assert planted.control.state().shadow is not None
    assert sorted(planted.graph.deployments) == sorted(["1", "3", *slow])


def test_a_queued_load_that_becomes_the_champion_waits_no_longer(planted: World) -> None:
    planted.step(champion="1")
    goes_on = threading.Event()
    planted.graph.held_back = dict.fromkeys(["2", shadow_key("2")], goes_on)
    for alias in ("challenger", "shadow"):
        planted.registry.set_alias(alias, "2")
    planted.registry.set_tag("3", GATE_OVERRIDE_TAG, "for the test")
    planted.reconciler.look()
    wait_until(lambda: len(planted.graph.deployments) == 3, seconds=120, what="the slow loads")
    planted.registry.set_alias("other", "3")
    assert planted.reconciler.look().champion == "1"
    assert "3" not in planted.graph.deployments
    planted.registry.set_alias("champion", "3")
    wait_until(lambda: planted.reconciler.look().champion == "3", seconds=120, what="the promotion")
    goes_on.set()
    planted.step()


def test_a_version_is_not_dropped_while_gateways_may_still_read_the_next_one(planted: World) -> None:
    planted.step(champion="1")
    deploy = planted.graph.deploy

    def slowly(version: str, folder: Path) -> None:
        planted.now += 30
        deploy(version, folder)

    planted.graph.deploy = slowly  # type: ignore[method-assign]
    assert planted.step(champion="2") == ("2", {"2"})
    planted.now += 20
    planted.step()
    assert planted.graph.running() == {"1", "2"}
    planted.now += 20
    planted.step()
    assert planted.graph.running() == {"2"}


def test_a_version_that_fails_as_its_own_shadow_goes_on_answering(planted: World) -> None:
    assert planted.step(champion="1") == ("1", {"1"})
    planted.graph.failures[shadow_key("1")] = 3
    assert planted.step(shadow="1") == ("1", {"1"})
    assert planted.control.state().shadow is None
    assert planted.tag("1") == "live"
    planted.graph.delete("1")  # its application goes away: it is brought back
    assert planted.step() == ("1", {"1"})
    assert planted.graph.running() == {"1"}
    assert planted.graph.deployments.count(shadow_key("1")) == 3  # not tried again and again
    planted.registry.delete_alias("shadow")
    planted.step()
    planted.step(shadow="1")  # the alias set anew is the operator's way to say: once more
    assert planted.graph.running() == {"1", shadow_key("1")}


def other_items(blob: bytes) -> bytes:
    answer = decode_list(blob)
    assert answer is not None
    return replace(answer, item_idx=answer.item_idx + 60).encode()


@pytest.mark.parametrize(
    ("spoil", "reason"), [(lambda blob: b"rubbish", "cannot be read"), (other_items, "not among its 60")], ids=["rubbish", "items"]
)
def test_nonsense_is_refused_and_the_old_version_stays(planted: World, spoil: Callable[[bytes], bytes], reason: str) -> None:
    planted.step(champion="1")
    planted.graph.spoil = spoil
    assert planted.step(champion="2") == ("1", {"1"})
    assert reason in planted.tag("2")
    assert planted.graph.running() == {"1"}


def test_a_damaged_bundle_is_refused_without_three_attempts(planted: World, make_bundle, tmp_path: Path) -> None:
    planted.step(champion="1")
    version = planted.registry.register(make_bundle("popularity"), tags={GATE_TAG: "pass"})
    (planted.registry.download(version) / "items.parquet").write_bytes(b"x")
    assert planted.step(champion=version) == ("1", {"1"})
    assert planted.tag(version).startswith("refused: items.parquet of bundle")
    assert planted.graph.deployments == ["1"]


def test_pinned_versions_are_loaded_and_then_the_experiment_runs(planted: World) -> None:
    planted.step(champion="1")
    variants = [{"name": "a", "model": "1", "weight": 1}, {"name": "b", "model": "2", "weight": 1}]
    spec = parse_spec({"name": "pins", "salt": "pins", "variants": variants, "metrics": {"primary": "ctr"}})
    planted.control.put_experiment(spec, actor="test")
    planted.control.start_experiment("pins", {"a": "1", "b": "2"}, actor="test")
    assert planted.control.experiment("pins").status == "starting"
    assert planted.step() == ("1", {"1", "2"})
    assert planted.control.experiment("pins").status == "running"
    planted.control.end_experiment("pins", "paused", actor="test")
    assert planted.step() == ("1", {"1", "2"})
    planted.control.end_experiment("pins", "stopped", actor="test")
    assert planted.step() == ("1", {"1"})


def test_the_time_to_get_ready_for_the_next_version_is_when_none_is_loaded(planted: World) -> None:
    planted.step(champion="1")
    rests = planted.graph.rests
    assert rests > 0
    planted.graph.held_back["2"] = threading.Event()
    planted.registry.set_alias("challenger", "2")
    for _ in range(3):
        planted.reconciler.look()
    assert planted.graph.rests == rests
    planted.graph.held_back["2"].set()
    planted.step()
    assert planted.graph.rests > rests


def test_a_draft_can_be_discarded(planted: World) -> None:
    variants = [{"name": "a", "model": "1", "weight": 1}, {"name": "b", "model": "2", "weight": 1}]
    spec = parse_spec({"name": "draft", "salt": "draft", "variants": variants, "metrics": {"primary": "ctr"}})
    planted.control.put_experiment(spec, actor="test")
    assert planted.control.end_experiment("draft", "stopped", actor="test").status == "stopped"
    with pytest.raises(ControlStateError, match="is stopped"):
        planted.control.start_experiment("draft", {"a": "1", "b": "2"}, actor="test")
    planted.control.put_experiment(spec.model_copy(update={"name": "other", "salt": "other"}), actor="test")
    with pytest.raises(ControlStateError, match="is draft and cannot be paused"):
        planted.control.end_experiment("other", "paused", actor="test")


def test_without_mlflow_what_runs_stays_and_a_restart_brings_it_back(planted: World, make_config) -> None:
    planted.step(champion="1")
    gone = Registry("http://127.0.0.1:1", "planted", timeout_s=0.2)
    restarted = LocalGraph()
    reconciler = Reconciler(make_config(), restarted, gone, first_pause_s=0.001)
    assert reconciler.step().champion == "1"
    assert restarted.running() == {"1"}
    assert planted.control.state().champion == "1"


def test_mlflow_that_goes_away_during_a_load_is_no_reason_to_refuse_the_version(
    planted: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted.step(champion="1")
    planted.registry.set_alias("champion", "2")
    http = planted.registry._rest._http
    request = http.request

    def away(method: str, path: str, **arguments: object) -> httpx.Response:
        if path == "model-versions/get":
            raise httpx.ConnectError("gone")
        return request(method, path, **arguments)

    with monkeypatch.context() as patched:
        patched.setattr(http, "request", away)
        with pytest.raises(RegistryDownError):
            planted.step()
    assert planted.control.state().champion == "1"
    assert planted.step() == ("2", {"2"})


def test_a_deleted_champion_alias_leaves_the_champion(planted: World) -> None:
    planted.step(champion="1")
    planted.registry.delete_alias("champion")
    assert planted.step() == ("1", {"1"})
