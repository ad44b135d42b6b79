"""The OpenAPI document against what the code accepts: every route, every parameter, every refusal; and against the client."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

import serving.api
from experiments.spec import ExperimentSpec
from serving.answers import Answerer
from serving.api.app import build_api
from serving.api.context import ApiContext
from serving.api.openapi import HOT_PATHS
from serving.cache import ListCache
from serving.config import ServingConfig
from serving.live_state import Snapshot
from serving.metrics import GatewayMetrics
from serving.request_parsing import BODY_PARAMETERS, BROWSE_PARAMETERS, QUERY_PARAMETERS
from shortlist import admin_calls, client_calls
from shortlist.client_calls import Call

CONTRACT = {
    ("GET", "/v1/recommendations/{user_id}"): "read",
    ("POST", "/v1/recommendations"): "read",
    ("GET", "/v1/items/{item_id}/similar"): "read",
    ("GET", "/v1/trending"): "read",
    ("GET", "/v1/popular"): "read",
    ("POST", "/v1/events"): "write",
    ("POST", "/v1/sessions/{session_id}/merge"): "write",
    ("GET", "/v1/items/{item_id}"): "read",
    ("PUT", "/v1/items/{item_id}"): "admin",
    ("PATCH", "/v1/items/{item_id}"): "admin",
    ("DELETE", "/v1/items/{item_id}"): "admin",
    ("POST", "/v1/items"): "admin",
    ("GET", "/v1/users/{user_id}"): "read",
    ("PUT", "/v1/users/{user_id}"): "admin",
    ("PATCH", "/v1/users/{user_id}"): "admin",
    ("DELETE", "/v1/users/{user_id}"): "admin",
    ("POST", "/v1/users"): "admin",
    ("GET", "/v1/models"): "admin",
    ("PUT", "/v1/models/{model_id}"): "admin",
    ("PUT", "/v1/models/{model_id}/aliases/{alias}"): "admin",
    ("POST", "/v1/models/{model_id}/rollback"): "admin",
    ("GET", "/v1/experiments"): "admin",
    ("GET", "/v1/experiments/{name}"): "admin",
    ("PUT", "/v1/experiments/{name}"): "admin",
    ("POST", "/v1/experiments/{name}/start"): "admin",
    ("POST", "/v1/experiments/{name}/ramp"): "admin",
    ("POST", "/v1/experiments/{name}/pause"): "admin",
    ("POST", "/v1/experiments/{name}/stop"): "admin",
    ("GET", "/v1/experiments/{name}/report"): "admin",
    ("GET", "/v1/rules"): "admin",
    ("PUT", "/v1/rules"): "admin",
    ("POST", "/v1/rules/preview"): "admin",
    ("GET", "/v1/audit"): "admin",
    ("POST", "/v1/webhooks/mlflow"): None,
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
    ("GET", "/metrics"): None,
}
"""The calls of the HTTP API, version 1, and the scope that each needs."""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    nowhere = "redis://127.0.0.1:9/0"
    config = ServingConfig(
        dataset="shop",
        home=tmp_path_factory.mktemp("home"),
        mlflow_uri="http://127.0.0.1:9",
        control_url="sqlite://",
        bus_url=nowhere,
        features_url=nowhere,
        cache_url=nowhere,
    )

    def no_snapshot() -> Snapshot:
        raise AssertionError("nothing is asked here")

    answerer = Answerer(config, ListCache(config), lambda version, request: no_snapshot(), no_snapshot, GatewayMetrics())  # type: ignore[arg-type, return-value]
    return build_api(ApiContext(config, lambda: None, answerer))


@pytest.fixture(scope="module")
def document(app: FastAPI) -> dict[str, Any]:
    client = TestClient(app)
    assert client.get("/docs").status_code == 200
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            yield method.upper(), path, told


def routes() -> Iterator[APIRoute]:
    """Of every module of the API, whether the application includes it or not."""
    for found in pkgutil.iter_modules(serving.api.__path__, "serving.api."):
        router = getattr(importlib.import_module(found.name), "router", None)
        yield from (route for route in getattr(router, "routes", ()) if isinstance(route, APIRoute))


def parameters(told: dict[str, Any], where: str) -> set[str]:
    return {one["name"] for one in told.get("parameters", ()) if one["in"] == where}


def test_every_call_of_the_contract_is_there_with_its_scope_and_no_other(document) -> None:
    found = {}
    for method, path, told in operations(document):
        (security,) = told["security"] or [{"bearer": [None]}]
        found[method, path] = security["bearer"][0]
    assert found == CONTRACT


def test_every_route_below_the_gateway_is_there_with_its_parameters(document) -> None:
    walked = 0
    for route in routes():
        for method in route.methods:
            told = document["paths"][route.path_format][method.lower()]
            taken = inspect.signature(route.endpoint).parameters
            for where, fields in (("path", route.dependant.path_params), ("query", route.dependant.query_params)):
                assert parameters(told, where) == {one.name for one in fields} <= set(taken)
            assert ("requestBody" in told) == (route.body_field is not None or route.path == "/v1/webhooks/mlflow")
            walked += 1
    assert walked == len(CONTRACT) - sum(len(methods) for methods in HOT_PATHS.values())


def test_every_parameter_that_the_hot_routes_accept_is_described_and_no_other(document) -> None:
    paths = document["paths"]
    assert parameters(paths["/v1/recommendations/{user_id}"]["get"], "query") == QUERY_PARAMETERS
    for path in ("/v1/trending", "/v1/popular"):
        assert parameters(paths[path]["get"], "query") == BROWSE_PARAMETERS | {"window"}
    assert parameters(paths["/v1/items/{item_id}/similar"]["get"], "query") == BROWSE_PARAMETERS
    body = paths["/v1/recommendations"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"].keys() == BODY_PARAMETERS
    for path, methods in HOT_PATHS.items():
        for told in methods.values():
            assert parameters(told, "path") == set(re.findall(r"{(\w+)}", path))


def test_every_call_says_what_it_answers_refuses_and_takes(document) -> None:
    schemas = document["components"]["schemas"]
    for method, path, told in operations(document):
        where = f"{method} {path}"
        assert told["summary"], where
        statuses = told["responses"].keys()
        assert any(status.startswith("2") for status in statuses), where
        refused = {status for status in statuses if status >= "4"}
        if told["security"]:
            assert {"401", "403"} <= refused, where
        for status in refused:
            content = told["responses"][status]["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/ErrorBody"}, f"{where} {status}"
        for status in statuses - refused - {"204"}:
            (content,) = told["responses"][status]["content"].values()
            assert content["schema"], where
        if "requestBody" in told:
            assert "422" in refused, where
            assert not told["security"] or {"400", "413", "415"} <= refused, where
            assert has_example(told["requestBody"]["content"]["application/json"], schemas), where
    text = str(document)
    assert set(re.findall(r"#/components/schemas/([\w.-]+)", text)) <= schemas.keys()
    assert "HTTPValidationError" not in text


def has_example(content: dict[str, Any], schemas: dict[str, Any]) -> bool:
    """Whether a body has an example of its own, or in its schema or one of its fields."""

    def shown(schema: dict[str, Any]) -> bool:
        if "$ref" in schema:
            return shown(schemas[schema["$ref"].rsplit("/", 1)[1]])
        inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
        return "examples" in schema or any(shown(one) for one in inner if isinstance(one, dict))

    return "example" in content or "examples" in content or shown(content["schema"])


def test_the_experiment_file_is_described_as_it_is_parsed(document) -> None:
    schema = document["components"]["schemas"]["ExperimentSpec"]
    assert schema["properties"].keys() == ExperimentSpec.model_fields.keys()
    assert set(schema["required"]) == {"salt", "variants", "metrics"}  # the name is in the path


def test_the_python_client_has_every_call_of_the_api() -> None:
    """Each function of the client is built with placeholders for its texts; its method and path must be one of the contract's."""
    stands_for = {"{user_id}": "user_id", "{item_id}": "item_id", "{session_id}": "session_id"}
    offered = set()
    for module in (client_calls, admin_calls):
        for name, build in inspect.getmembers(module, inspect.isfunction):
            if name.startswith("_") or build.__module__ != module.__name__ or "Call[" not in str(build.__annotations__["return"]):
                continue
            call = build(**{one: placeholder(one) for one, told in inspect.signature(build).parameters.items() if needed(told)})
            assert isinstance(call, Call)
            path = re.sub(r"%7B(\w+)%7D", r"{\1}", call.path)
            offered.add((call.method, path))
    assert stands_for.keys() <= set(re.findall(r"{\w+}", str(offered)))
    machines = {("POST", "/v1/webhooks/mlflow"), ("GET", "/healthz"), ("GET", "/metrics")}
    assert offered == CONTRACT.keys() - machines


def needed(told: inspect.Parameter) -> bool:
    return told.default is inspect.Parameter.empty


def placeholder(name: str) -> Any:
    values: dict[str, Any] = {
        "events": [{"item_id": "a", "action": "click"}],
        "model_data": {},
        "attributes": {},
        "changes": {},
        "items": [],
        "users": [],
        "rules": [],
        "request": {},
        "spec": {},
    }
    return values.get(name, f"{{{name}}}")


def test_the_client_offers_every_parameter(document: dict[str, Any], tmp_path: Path) -> None:
    def taken(build: Any) -> set[str]:
        return set(inspect.signature(build).parameters)

    assert taken(client_calls.recommend) == BODY_PARAMETERS
    assert taken(client_calls.popular) == BROWSE_PARAMETERS | {"window"}
    assert taken(client_calls.trending) == BROWSE_PARAMETERS | {"window"}
    assert taken(client_calls.similar_items) == BROWSE_PARAMETERS | {"item_id"}
    event = document["paths"]["/v1/events"]["post"]["requestBody"]["content"]["application/json"]["schema"]["anyOf"][0]
    assert taken(client_calls.log_user_activity) == event["properties"].keys()
    assert taken(admin_calls.audit) == parameters(document["paths"]["/v1/audit"]["get"], "query")
