"""Deliveries of MLflow's webhooks over HTTP: only genuine, recent and new ones are accepted. MLflow's own signer signs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from features.control_store import ControlStore
from serving.api.app import build_api
from serving.api.context import ApiContext
from serving.webhooks import WINDOW_S, Deliveries, sign

SECRET = "between-mlflow-and-us"
BODY = json.dumps(
    {"entity": "model_version_alias", "action": "created", "data": {"name": "shortlist-planted", "alias": "champion"}}
)

Deliver = Callable[..., httpx.Response]


@pytest.fixture
def deliver(make_config: Callable[..., Any], tmp_path: Path) -> Deliver:
    """Sends a delivery as MLflow does, with changes."""
    (tmp_path / "webhook.secret").write_text(SECRET + "\n")
    config = make_config(webhook_secret_file=tmp_path / "webhook.secret")
    ControlStore(config.control_url).create()
    client = TestClient(build_api(ApiContext(config, lambda: None, None)))

    def send(
        delivery_id: str, *, body: str = BODY, age_s: int = 0, sent: str | None = None, **changed: str | None
    ) -> httpx.Response:
        from mlflow.webhooks.delivery import _generate_hmac_signature

        timestamp = str(int(time.time()) - age_s)
        headers = {
            "X-MLflow-Delivery-Id": delivery_id,
            "X-MLflow-Timestamp": timestamp,
            "X-MLflow-Signature": _generate_hmac_signature(SECRET, delivery_id, timestamp, body),
        }
        headers |= {name.replace("_", "-"): value for name, value in changed.items() if value is not None}
        headers = {name: value for name, value in headers.items() if changed.get(name.replace("-", "_"), "") is not None}
        return client.post("/v1/webhooks/mlflow", content=sent or body, headers=headers)

    return send


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_genuine_delivery_is_accepted_once(deliver: Deliver) -> None:
    first = deliver("a1")
    assert (first.status_code, first.json()) == (202, {"accepted": True, "followed": True})
    assert code(deliver("a1")) == (409, "replayed_delivery")
    assert deliver("a2").status_code == 202


def test_what_is_not_signed_with_the_secret_is_refused(deliver: Deliver) -> None:
    assert code(deliver("b1", X_MLflow_Signature="v1,AAAA")) == (401, "bad_signature")
    assert code(deliver("b1", sent=BODY.replace("champion", "shadow"))) == (401, "bad_signature")
    assert code(deliver("b1", X_MLflow_Delivery_Id="b2")) == (401, "bad_signature")
    assert code(deliver("b1", X_MLflow_Signature=None)) == (401, "unsigned")
    assert deliver("b1").status_code == 202  # what was refused has used up no id


@pytest.mark.parametrize("age_s", [WINDOW_S + 5, -WINDOW_S - 5])
def test_a_delivery_outside_the_window_is_refused(deliver: Deliver, age_s: int) -> None:
    assert code(deliver("c1", age_s=age_s)) == (401, "stale_delivery")


def test_other_models_and_other_bodies_change_nothing(deliver: Deliver) -> None:
    other = deliver("d1", body=BODY.replace("planted", "else"))
    assert (other.status_code, other.json()["followed"]) == (202, False)
    assert code(deliver("d2", body="[]")) == (422, "unknown_delivery")
    assert code(deliver("d3", body="x" * 70_000))[0] == 413


def test_without_a_secret_everything_is_refused(make_config: Callable[..., Any], tmp_path: Path) -> None:
    config = make_config(webhook_secret_file=tmp_path / "missing")
    ControlStore(config.control_url).create()
    answer = TestClient(build_api(ApiContext(config, lambda: None, None))).post(
        "/v1/webhooks/mlflow",
        content=BODY,
        headers={"X-MLflow-Delivery-Id": "e", "X-MLflow-Timestamp": "1", "X-MLflow-Signature": sign("", "e", "1", BODY.encode())},
    )
    assert code(answer) == (503, "no_secret")


def test_old_ids_are_forgotten_only_when_their_time_refuses_them(make_config: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    now = [1_000_000.0]
    deliveries = Deliveries(ControlStore(make_config().control_url).create(), tmp_path / "secret", lambda: now[0])

    def check(delivery_id: str, at: int) -> str | None:
        signed = {"x-mlflow-signature": sign(SECRET, delivery_id, str(at), b"{}")}
        try:
            deliveries.check(signed | {"x-mlflow-delivery-id": delivery_id, "x-mlflow-timestamp": str(at)}, b"{}")
        except Exception as error:
            return error.code  # type: ignore[attr-defined]
        return None

    assert check("f1", 1_000_000) is None
    for later in (0, WINDOW_S - 1, WINDOW_S + 1, 10 * WINDOW_S):
        now[0] = 1_000_000.0 + later
        assert check(f"other{later}", int(now[0])) is None
        assert check("f1", 1_000_000) == ("replayed_delivery" if later <= WINDOW_S else "stale_delivery")


@pytest.mark.parametrize("timestamp", ["9" * 5000, "9" * 20, "-1", "1.5", "1e9"])
@pytest.mark.parametrize("signed", [True, False])
def test_a_time_that_no_clock_shows_is_refused(deliver: Deliver, timestamp: str, signed: bool) -> None:
    changed = {"X_MLflow_Timestamp": timestamp}
    if signed:
        changed["X_MLflow_Signature"] = sign(SECRET, "g1", timestamp, BODY.encode())
    assert code(deliver("g1", **changed)) == (401, "stale_delivery" if signed else "bad_signature")
