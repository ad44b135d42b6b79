"""The FastAPI application below the gateway: everything that is not hot, and the OpenAPI document of the whole API."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from features.errors import FeaturesError
from serving.admin import catalogue, experiments, models
from serving.admin.context import AdminContext
from serving.admin.docs import hot_paths
from serving.config import ServingConfig
from serving.errors import RequestError
from training.errors import RegistryError

API_VERSION = "1"


def build_admin_app(config: ServingConfig) -> FastAPI:
    """All routes but the hot ones, with errors in the API's form."""
    app = FastAPI(
        title="Shortlist", version=API_VERSION, description=f"Recommendations of the dataset {config.dataset!r}.", redoc_url=None
    )
    context = AdminContext(config)
    for resource in (models, experiments, catalogue):
        app.include_router(resource.router(context))
    _answer_errors(app)
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        document["paths"] = {**hot_paths(), **document["paths"]}
        document.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    def refused(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.to_json(), error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        message = f"{'.'.join(where) or 'the body'}: {first['msg']}"
        return JSONResponse(RequestError(message, field=".".join(where) or None).to_json(), 422)

    @app.exception_handler(HTTPException)
    def plain(_: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "error")
        return JSONResponse(RequestError(str(error.detail), code=code).to_json(), error.status_code)

    @app.exception_handler(RegistryError)
    def no_registry(_: Request, error: RegistryError) -> JSONResponse:
        return JSONResponse(RequestError(str(error), code="registry_unavailable").to_json(), 503)

    @app.exception_handler(FeaturesError)
    def no_store(_: Request, error: FeaturesError) -> JSONResponse:
        return JSONResponse(RequestError(str(error), code="store_unavailable").to_json(), 503)
