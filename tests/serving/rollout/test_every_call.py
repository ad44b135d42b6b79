"""Every call of the HTTP API through the Python client on the whole stack, each answer held against the OpenAPI document."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from shortlist.client import ApiError, AsyncClient, Client
from shortlist.client_calls import Call

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

MODEL = "shortlist-planted"


class Contract:
    """The server's OpenAPI document, and which of its calls were seen."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.seen: set[tuple[str, str]] = set()
        self._patterns = {path: re.compile(re.sub(r"{\w+}", "[^/]+", path) + "$") for path in document["paths"]}

    def check(self, method: str, path: str, status: int, body: Any) -> None:
        """An answer must be one that the document has."""
        (found,) = [one for one, pattern in self._patterns.items() if pattern.match(path)]
        told = self.document["paths"][found][method.lower()]["responses"]
        assert str(status) in told, f"{method} {path} was answered with {status}, the document has {sorted(told)}"
        content = told[str(status)].get("content", {}).get("application/json")
        if content is not None:
            Draft202012Validator({**content["schema"], "components": self.document["components"]}).validate(body)
        if status < 400:
            self.seen.add((method, found))


class Checked(Client):
    """A client whose every answer is checked."""

    contract: Contract

    def _result(self, call: Call[Any], response: httpx.Response) -> Any:
        self.contract.check(call.method, call.path, response.status_code, response.json() if response.content else None)
        return super()._result(call, response)


@pytest.fixture
def client(rollout) -> Iterator[Checked]:
    token = (rollout.settings.home / "run" / "admin-token.secret").read_text()
    with Checked(rollout.state.base_url, token=token, timeout=20) as checked:
        checked.contract = Contract(rollout.http.get("/openapi.json").json())
        yield checked


def test_every_call_answers_as_the_document_says(rollout, client: Checked) -> None:
    assert client.health()["status"] == "ready"
    assert len(client.get_recommendations("u1", top_k=5)) == 5
    asked = {"placement": None, "filter": "year > 1980", "category": "Drama", "region": ["DE", "AT"], "language": "fr"}
    answer = client.recommend(
        "u1",
        top_k=3,
        fields=["title"],
        explain=True,
        diversity=0.2,
        exclude_seen={"actions": ["purchase"], "max_age_days": 99},
        **asked,
    )
    assert all(item["title"] and item["reason"] for item in answer["recommended_items"])
    client.recommend(session_id="s1", recent_items=["i001"], exclude=["i003"], boost=[{"filter": "year > 1990", "weight": 1}])
    ranked = client.recommend("u1", candidates=["i030", "i031"], context={"device": "phone"})
    assert {item["item_id"] for item in ranked["recommended_items"]} == {"i030", "i031"}
    lists = [
        client.similar_items("i020", 5, fields=["title", "year"], filter="year > 1980", region=["DE", "AT"], diversity=0.1),
        client.trending(5, window="7d", language=["fr", "en"], category="Drama", fields=["title"]),
        client.trending(5, window="season"),
        client.popular(5, category=["Drama", "Comedy"], region="DE", fields=["title"]),
    ]
    assert [len(one["items"]) for one in lists] == [5] * 4
    assert "year" in lists[0]["items"][0]
    second = client.popular(5, cursor=client.popular(5)["next_cursor"])
    assert not {item["item_id"] for item in second["items"]} & {item["item_id"] for item in client.popular(5)["items"]}
    client.log_user_activity("u1", "i030", "click", recommendation_id=answer["recommendation_id"], position=0)
    logged = client.log_events([{"session_id": "s1", "item_id": "i031", "action": "view"}, {"item_id": "i031", "action": "view"}])
    assert (logged["accepted"], logged["rejected"][0]["index"]) == (1, 1)
    assert client.merge_session("s1", "u1")["recent_events"] == 1

    assert client.put_item("own/1", {"title": "Own", "year": 2001})["available"] is True
    assert client.patch_item("own/1", {"available": False}) == {
        "item_id": "own/1",
        "title": "Own",
        "year": 2001,
        "available": False,
    }
    assert client.item("own/1")["title"] == "Own"
    batch = client.put_items([{"item_id": "own2"}, {"item_id": "own3", "year": "late"}])
    assert (batch["stored"], batch["rejected"][0]["field"]) == (1, "year")
    for item_id in ("own/1", "own2"):
        client.delete_item(item_id)
    with pytest.raises(ApiError, match="no item") as raised:
        client.item("own2")
    assert raised.value.status == 404
    assert client.put_user("visitor", {}) == client.patch_user("visitor", {}) == client.user("visitor") == {"user_id": "visitor"}
    assert client.put_users([{"user_id": "visitor2"}])["stored"] == 1
    assert client.erase_user("visitor")["unfinished"] == {}

    rule = {"name": "top", "kind": "pin", "item_ids": ["i049"], "position": 0, "ends_at": "2999-01-01T00:00:00Z"}
    shown = client.preview_rules([rule], {"user_id": "u2", "top_k": 5})
    assert shown["after"]["recommended_items"][0]["item_id"] == "i049"
    assert {"item_id": "i049", "from": None, "to": 0} in shown["moved"]
    assert client.put_rules([rule])["changed"] == 1
    assert [one["name"] for one in client.rules()] == ["top"]
    client.put_rules([])

    assert client.models()["wanted"] == "1"
    assert client.set_alias(MODEL, "challenger", "2")["aliases"]["challenger"] == "2"
    client.set_alias(MODEL, "challenger", "1")
    assert client.rollback(MODEL, alias="challenger")["version"] == "2"
    assert client.update_model(MODEL, {"version": "1"})["champion"] == "1"
    variants = [{"name": name, "model": alias, "weight": 1} for name, alias in (("a", "champion"), ("b", "challenger"))]
    spec = {"name": "try", "salt": "try", "traffic": 0.2, "variants": variants, "metrics": {"primary": "ctr"}}
    assert client.put_experiment("try", spec)["status"] == "draft"
    assert client.start_experiment("try")["pins"] == {"a": "1", "b": "2"}
    rollout.wait(lambda: client.experiment("try")["status"] == "running", "the experiment to run")
    assert client.ramp_experiment("try", 0.4)["spec"]["traffic"] == 0.4
    assert client.pause_experiment("try")["status"] == "paused"
    assert client.experiment_report("try")["experiment"] == "try"
    assert client.stop_experiment("try")["status"] == "stopped"
    assert "try" in {one["name"] for one in client.experiments()}
    entries = client.audit(subject="rule:", limit=10)
    assert entries["entries"]
    assert client.audit(subject="rule:", after=entries["after"])["entries"] == []

    machines = {("POST", "/v1/webhooks/mlflow"), ("GET", "/healthz"), ("GET", "/metrics")}
    calls = {(method.upper(), path) for path, methods in client.contract.document["paths"].items() for method in methods}
    assert client.contract.seen == calls - machines


def test_refusals_are_as_the_document_says(client: Checked) -> None:
    refused = [
        (lambda: client.recommend("u1", top_k=0), 422, "top_k"),
        (lambda: client.recommend("u1", top_k=-1), 422, "top_k"),
        (lambda: client.recommend("u1", top_k=10**9), 422, "top_k"),
        (lambda: client.recommend("u1", filter="year >="), 422, "filter"),
        (lambda: client.recommend("u1", placement="nowhere"), 422, "placement"),
        (lambda: client.recommend("u1", model_version="99"), 404, "model_version"),
        (lambda: client.similar_items("no-such"), 404, "item_id"),
        (lambda: client.similar_items(".."), 404, "item_id"),
        (lambda: client.trending(window="9d"), 422, "window"),  # type: ignore[arg-type]
        (lambda: client.experiment("no-such"), 404, "name"),
        (lambda: client.set_alias(MODEL, "challenger", "99"), 404, "version"),
        (lambda: client.update_model(MODEL, {"version": "no-such-alias"}), 404, "version"),
        (lambda: client.update_model("shortlist-other", {"version": "1"}), 404, "model_id"),
        (lambda: client.rollback(MODEL, alias="no-such"), 409, "alias"),
        (lambda: client.put_rules([{"name": "x", "kind": "bury", "items": "year >"}]), 422, "rules.0"),
        (lambda: client.put_items([]), 422, "items"),
        (lambda: client.log_events([{"item_id": "a", "action": "click"}]), 422, "user_id"),
    ]
    for ask, status, field in refused:
        with pytest.raises(ApiError) as raised:
            ask()
        assert (raised.value.status, raised.value.field) == (status, field), raised.value
    client._http.headers.pop("Authorization")
    with pytest.raises(ApiError) as raised:
        client.rules()
    assert raised.value.status == 401


def test_the_async_client_reaches_the_same(rollout) -> None:
    token = (rollout.settings.home / "run" / "admin-token.secret").read_text()

    async def ask() -> tuple[Any, ...]:
        async with AsyncClient(rollout.state.base_url, token=token, timeout=20) as client:
            stored = await client.put_items([{"item_id": "async-1", "year": 2002}])
            await client.delete_item("async-1")
            similar = await client.similar_items("i020", 3, region=["DE", "AT"])
            return stored["stored"], len(similar["items"]), await client.rules(), (await client.models())["wanted"]

    assert asyncio.run(ask()) == (1, 3, [], "1")
