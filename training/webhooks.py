"""MLflow's webhooks: making the registry call a URL, signed, whenever an alias of a model moves.

Owns the registration; what a delivery means, and whether it is genuine, is for its receiver to say (`serving.webhooks`).
"""

from __future__ import annotations

from typing import Any

from training.mlflow_rest import MlflowRest

EVENTS = [
    {"entity": "MODEL_VERSION_ALIAS", "action": "CREATED"},
    {"entity": "MODEL_VERSION_ALIAS", "action": "DELETED"},
]
"""Overwriting an alias is a `CREATED`; a deletion carries no version."""


def ensure_webhook(rest: MlflowRest, *, name: str, url: str, secret: str) -> None:
    """Register a webhook of that name, or bring the registered one up to date: address, secret, events, and active.

    Raises:
        RegistryError: MLflow is unreachable or refuses it. A server on a file store has no webhooks; one that refuses `url` may
            need MLFLOW_WEBHOOK_ALLOWED_SCHEMES and MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS.
    """
    wanted = {"name": name, "url": url, "events": EVENTS, "secret": secret, "status": "ACTIVE"}
    present = [one["webhook_id"] for one in _webhooks(rest) if one.get("name") == name]
    if present:
        # The secret cannot be read back, so it is always set again.
        rest.call("PATCH", f"webhooks/{present[0]}", json=wanted)
    else:
        rest.call("POST", "webhooks", json=wanted)
    for extra in present[1:]:
        rest.call("DELETE", f"webhooks/{extra}")


def _webhooks(rest: MlflowRest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    page: str | None = None
    while True:
        answer = rest.call("GET", "webhooks", params={"page_token": page} if page else {})
        found += answer.get("webhooks", [])
        page = answer.get("next_page_token")
        if not page:
            return found
