"""The FastAPI application below the gateway: routers, errors in the API's form, and the OpenAPI document of all routes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from features.errors import FeaturesError
from serving.api import audit, erasure, experiments, items, models, rules, users, webhooks
from serving.api.answer_schemas import errors
from serving.api.context import ApiContext
from serving.api.openapi import DESCRIPTION, openapi_document
from serving.errors import ControlStateError, RequestError
from training.errors import AliasNameError, RegistryError

_log = logging.getLogger("shortlist.serving")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def build_api(context: ApiContext) -> FastAPI:
    """The application of one replica."""
    app = FastAPI(title="Shortlist", version="1", description=DESCRIPTION, redoc_url=None, strict_content_type=False)
    app.state.context = context
    for module in (items, users, erasure, rules, models, experiments, audit):
        app.include_router(module.router, responses=errors(401, 403, 422))
    app.include_router(webhooks.router)
    app.add_exception_handler(RequestError, _request_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ControlStateError, _state_error)
    app.add_exception_handler(AliasNameError, _alias_error)
    app.add_exception_handler(RegistryError, _registry_error)
    app.add_exception_handler(FeaturesError, _unavailable)
    app.add_exception_handler(Exception, _internal)
    app.openapi = lambda: openapi_document(app)  # type: ignore[method-assign]
    return app


def _request_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return JSONResponse(error.to_json(), error.status, headers=error.headers)


def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part not in {"body", "path", "query"}]
    field = ".".join(where) or None
    if first["type"] == "extra_forbidden":
        allowed = _allowed(request, first["loc"])
        return _answer(422, "invalid", f"unknown field {where[-1]!r}; allowed: {', '.join(allowed)}", field)
    return _answer(422, "invalid", f"{field or 'the body'}: {first['msg'].removeprefix('Value error, ')}", field)


def _allowed(request: Request, loc: Sequence[int | str]) -> list[str]:
    """Names of the fields that the body's model has at the place of an unknown one: all of them, where several models may stand."""
    kinds = [request.scope["route"].body_field.field_info.annotation]
    for part in loc[1:-1]:  # loc: "body", the names and indices down to the place, the unknown name
        inside = [model.model_fields[part].annotation for model in _models(kinds) if part in model.model_fields]
        kinds = inside or kinds  # an index, or the tag of one of several models, is no field
    return sorted({field.alias or name for model in _models(kinds) for name, field in model.model_fields.items()})


def _models(kinds: Iterable[Any]) -> Iterator[type[BaseModel]]:
    """The models in annotations, lists and alternatives of them taken apart."""
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind
        else:
            yield from _models(get_args(kind))


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _answer(404, "not_found", f"there is nothing at {request.url.path}")
    if error.status_code == 405:
        allowed = ", ".join(_methods(request))
        message = f"{request.method} is not allowed at {request.url.path}, {allowed} is"
        return _answer(405, "method_not_allowed", message, headers={"Allow": allowed})
    code = {400: "malformed_body", 408: "body_too_slow", 413: "body_too_large"}.get(error.status_code, "http_error")
    return _answer(error.status_code, code, str(error.detail), headers=dict(error.headers or {}))


def _state_error(request: Request, error: Exception) -> JSONResponse:
    return _answer(409, "conflict", str(error))


def _alias_error(request: Request, error: Exception) -> JSONResponse:
    return _answer(422, "invalid", str(error), "alias")


def _registry_error(request: Request, error: Exception) -> JSONResponse:
    """A registry that cannot be reached is the server's trouble and not the caller's."""
    _log.error("%s %s: %s", request.method, _route(request), error)
    refused = RequestError(str(error), code="registry_unavailable", status=503, headers={"Retry-After": "5"})
    return _request_error(request, refused)


def _unavailable(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s %s: %s", request.method, _route(request), error)
    return _answer(503, "unavailable", str(error))


def _internal(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s %s failed", request.method, _route(request), exc_info=error)
    return _answer(500, "internal", "the request failed; the gateway's log says why")


def _route(request: Request) -> str:
    """The route's pattern: a path may hold a user's id, which must not stay in a log."""
    return str(getattr(request.scope.get("route"), "path", "nowhere"))


def _methods(request: Request) -> list[str]:
    """What may be done at a request's path. Starlette names the methods of one route alone; here each method is one of its own."""
    routes = request.app.router.routes
    asked = {"type": "http", "path": request.scope["path"], "root_path": request.scope.get("root_path", ""), "headers": []}
    return [method for method in _METHODS if any(one.matches({**asked, "method": method})[0] is Match.FULL for one in routes)]


def _answer(
    status: int, code: str, message: str, field: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message} | ({"field": field} if field else {})}, status, headers)
