"""A version is promoted by moving an alias in MLflow: serving follows, and no request fails meanwhile."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from shortlist.client import Client
from shortlist.demo.flow import DemoResult
from training.registry import Registry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

FOLLOWS_WITHIN_S = 10.0


class Traffic:
    """Requests one after the other until stopped; what they answered."""

    def __init__(self, base_url: str) -> None:
        self.statuses: list[int] = []
        self.versions: list[str | None] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(base_url,))

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self, base_url: str) -> None:
        user = 0
        with httpx.Client(base_url=base_url, timeout=30) as client:
            while not self._stop.wait(0.01):
                user = user % 900 + 1
                answer = client.get(f"/v1/recommendations/{user}?top_k=10")
                self.statuses.append(answer.status_code)
                body = answer.json()
                if not body["assignments"]:
                    self.versions.append(body["model_version"])


def champion_traffic(client: httpx.Client) -> set[str | None]:
    """Versions that users outside experiments get now."""
    answers = [client.get(f"/v1/recommendations/{user}?top_k=1").json() for user in range(1, 41)]
    return {answer["model_version"] for answer in answers if not answer["assignments"]}


def wait_for_version(client: httpx.Client, version: str) -> float:
    """Seconds until all traffic outside experiments is answered by `version`."""
    began = time.monotonic()
    while champion_traffic(client) != {version}:
        assert time.monotonic() - began < FOLLOWS_WITHIN_S, f"not served by {version} after {FOLLOWS_WITHIN_S} s"
        time.sleep(0.1)
    return time.monotonic() - began


def test_serving_follows_the_alias_without_a_failed_request(demo: DemoResult, http: httpx.Client) -> None:
    registry = Registry(demo.state.mlflow_uri, demo.dataset)
    first, second = demo.versions["champion"], demo.versions["challenger"]
    wait_for_version(http, first)
    with Traffic(demo.state.base_url) as traffic:
        for version in (second, first, second, first):
            registry.set_alias("champion", version, by="test")
            wait_for_version(http, version)
    assert len(traffic.statuses) > 50
    assert set(traffic.statuses) == {200}
    assert {first, second} <= set(traffic.versions)


def test_a_promotion_moves_only_traffic_outside_the_experiment(demo: DemoResult, admin: Client, http: httpx.Client) -> None:
    first, second = demo.versions["champion"], demo.versions["challenger"]

    def in_experiment() -> dict[str, str]:
        answers = {str(user): http.get(f"/v1/recommendations/{user}?top_k=1").json() for user in range(1, 61)}
        return {user: answer["model_version"] for user, answer in answers.items() if answer["assignments"]}

    before = in_experiment()
    assert set(before.values()) == {first, second}
    admin.update_model(f"shortlist-{demo.dataset}", {"version": second, "mode": "promote"})
    try:
        wait_for_version(http, second)
        assert in_experiment() == before
    finally:
        admin.rollback(f"shortlist-{demo.dataset}")
    wait_for_version(http, first)


def test_admins_preview_any_loaded_version_and_nobody_else_does(demo: DemoResult, admin: Client, http: httpx.Client) -> None:
    for version in demo.versions.values():
        answer = admin.recommend(user_id="42", top_k=10, model_version=version)
        assert (answer["model_version"], answer["assignments"]) == (version, [])
    assert http.post("/v1/recommendations", json={"user_id": "42", "model_version": "1"}).status_code == 401
    missing = http.post(
        "/v1/recommendations",
        json={"user_id": "42", "model_version": "999"},
        headers={"Authorization": f"Bearer {demo.admin_token}"},
    )
    assert (missing.status_code, missing.json()["error"]["field"]) == (404, "model_version")
