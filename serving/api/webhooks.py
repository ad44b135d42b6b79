"""`/v1/webhooks/mlflow`: MLflow says that an alias has moved."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from serving.announce import WANTED, announce
from serving.api.answer_schemas import Delivery, errors
from serving.api.context import Context
from serving.errors import RequestError
from serving.http import read_body

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])
MAX_DELIVERY_BYTES = 64 << 10
_TEXT = {"type": "string"}
_HEADERS = {
    "X-MLflow-Signature": "`v1,` and the base64 of HMAC-SHA256 over delivery id, time and body",
    "X-MLflow-Delivery-Id": "accepted once",
    "X-MLflow-Timestamp": "epoch seconds; an old delivery is refused",
}
_SIGNED = {
    "security": [],
    "parameters": [
        {"name": name, "in": "header", "required": True, "description": told, "schema": _TEXT} for name, told in _HEADERS.items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "object", "required": ["name"], "properties": {"name": _TEXT}}},
                },
                "example": {
                    "entity": "model_version_alias",
                    "action": "created",
                    "data": {"name": "shortlist-shop", "alias": "champion", "version": "3"},
                },
            }
        },
    },
}


@router.post("/mlflow", status_code=202, response_model=Delivery, responses=errors(401, 409, 413, 422, 503), openapi_extra=_SIGNED)
async def mlflow_delivery(request: Request, context: Context) -> dict[str, Any]:
    """Take a signed delivery: serving looks at the aliases at once. One about another model is accepted and changes nothing."""
    body = await read_body(request.receive, MAX_DELIVERY_BYTES)
    await run_in_threadpool(context.deliveries.check, request.headers, body)
    try:
        model = orjson.loads(body)["data"]["name"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise RequestError("the delivery is not about a registered model", code="unknown_delivery", status=422) from None
    ours = model == context.config.paths.registered_model
    if ours:
        await run_in_threadpool(announce, context.config, WANTED)
    return {"accepted": True, "followed": ours}
