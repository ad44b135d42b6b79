"""Versions on the real stack: fused and separate graphs agree, switches lose nothing, a replica that cannot load is refused."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from serving.errors import VersionRefusedError
from shortlist.stack.ports import wait_until

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("kind", ["bundle", "ranked_bundle"])
def test_fused_and_separate_graphs_give_equal_lists(stack, kind: str, request: pytest.FixtureRequest, empty_cache) -> None:
    from serving.graph import delete_version, deploy_version

    folder: Path = request.getfixturevalue(kind)
    deploy_version(stack.config, "8", folder)
    deploy_version(stack.config.model_copy(update={"fuse": "separate"}), "9", folder)
    try:
        stack.serve("8", v8=str(folder), v9=str(folder))
        for number in range(0, 200, 9):
            asked = {"user_id": f"u{number}", "top_k": 25, "exclude_seen": number % 2 == 0, "filter": "year < 2030"}
            fused, apart = (
                stack.admin.post("/v1/recommendations", json=asked | {"model_version": version}).json() for version in ("8", "9")
            )
            assert (fused["served_from"], apart["served_from"]) == ("online", "online")
            assert fused["recommended_items"] == apart["recommended_items"]
    finally:
        for version in ("8", "9"):
            delete_version(stack.config, version)


def test_a_ranker_that_hangs_costs_the_deadline_and_another_goes_on(stack, ranked_bundle: Path, empty_cache) -> None:
    from serving.graph import delete_version, deploy_version

    apart = stack.config.model_copy(update={"fuse": "separate", "version_replicas": 2, "deadline_ms": 500})
    deploy_version(apart, "9", ranked_bundle)
    hanging = None
    try:
        stack.serve("9", v9=str(ranked_bundle))
        rankers = [one for one in psutil.Process().children(recursive=True) if "v9:Ranker" in " ".join(one.cmdline()[:1])]
        assert len(rankers) == 2
        hanging = rankers[0]
        os.kill(hanging.pid, signal.SIGSTOP)
        answers = [stack.http.get(f"/v1/recommendations/u{number}?exclude_seen=false").json() for number in range(40)]
        assert {len(answer["recommended_items"]) for answer in answers} == {10}
        rung = [(answer["served_from"], answer["degraded"]) for answer in answers]
        assert set(rung) <= {("online", False), ("popular", True)}
        assert rung.count(("online", False)) > 20
    finally:
        if hanging is not None:
            os.kill(hanging.pid, signal.SIGCONT)
        delete_version(stack.config, "9")


def test_a_switch_under_load_fails_no_request(stack, bundle: Path, popular_bundle: Path) -> None:
    stop, statuses, versions = threading.Event(), [], []
    # The test before may have served another version, and gateways follow a moment later.
    stack.serve("1", v1=str(bundle), v2=str(popular_bundle))
    wait_until(lambda: stack.http.get("/v1/recommendations/u1").json()["model_version"] == "1", seconds=120, what="version 1")

    def ask() -> None:
        with httpx.Client(base_url=str(stack.http.base_url), timeout=30) as client:
            number = 0
            while not stop.is_set():
                number = (number + 1) % 200
                answer = client.get(f"/v1/recommendations/u{number}")
                statuses.append(answer.status_code)
                versions.append(answer.json()["model_version"])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        folders = {"v1": str(bundle), "v2": str(popular_bundle)}
        for champion in ("2", "1", "2", "1"):
            stack.serve(champion, **folders)
            asked = len(versions)
            answer = f"an answer of version {champion}"
            wait_until(lambda seen=asked, now=champion: now in versions[seen:], seconds=120, what=answer)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert set(versions) == {"1", "2"}


def test_before_any_model_there_are_popular_items(stack, bundle: Path, popular_bundle: Path) -> None:
    try:
        stack.serve(None)
        answer = stack.http.get("/v1/recommendations/u1").json()
        assert (answer["model_version"], answer["served_from"], answer["degraded"]) == (None, "popular", False)
        assert len(answer["recommended_items"]) == 10
    finally:
        stack.serve("1", v1=str(bundle), v2=str(popular_bundle))


def test_a_version_that_is_routed_to_and_not_there_falls_to_popular_items(stack, bundle: Path, popular_bundle: Path) -> None:
    try:
        stack.serve("8", v8=str(bundle))
        answer = stack.http.get("/v1/recommendations/u77").json()
        assert (answer["served_from"], answer["degraded"]) == ("popular", True)
        assert len(answer["recommended_items"]) == 10
    finally:
        stack.serve("1", v1=str(bundle), v2=str(popular_bundle))


def test_a_replica_that_cannot_load_is_refused_with_its_own_reason(stack, tmp_path: Path) -> None:
    from serving.graph import delete_version, deploy_version

    try:
        with pytest.raises(VersionRefusedError, match="is not a bundle"):
            deploy_version(stack.config, "7", tmp_path)
    finally:
        delete_version(stack.config, "7")


def test_applications_have_the_status_that_serve_itself_tells(stack) -> None:
    from ray import serve

    from serving.application_status import application_statuses

    told = {name: one.status.value for name, one in serve.status().applications.items()}
    assert {name: one.status for name, one in application_statuses().items()} == told
    assert told["gateway"] == "RUNNING"
