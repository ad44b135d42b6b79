"""How a route reads a request: who calls comes first, then the body, strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.convertors import PathConvertor, register_url_convertor

from serving.api.context import Require
from serving.errors import RequestError
from serving.http import check_is_json

MAX_INTEGER = 2**63 - 1
"""What columns and the control store can hold."""
MAX_DIGITS = 20
_LONG_NUMBER = re.compile(rb"[0-9]{19}")
"""Where this is found, the body is read a second time: orjson makes large integers floats, and cannot say where they are."""


class _AnyId(PathConvertor):
    """An id in a path, as `{item_id:id}`: slashes and, unlike `path`, line breaks too. Events and batches bring such ids, so they
    must be read, changed and erased like others."""

    regex = "(?s:.*)"


register_url_convertor("id", _AnyId())  # Starlette knows convertors by name alone, and before the first route is made


class Route(APIRoute):
    """A route that refuses callers without its scope before it looks at the body, and bodies that are no JSON or none that other
    readers would take."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's ASGI handler."""
        handle = super().get_route_handler()
        wanted = [one.call for one in self.dependant.dependencies if isinstance(one.call, Require)]
        has_body = self.body_field is not None

        async def handler(request: Request) -> Response:
            for require in wanted:
                require(request)
            strict = _StrictRequest(request.scope, request.receive)
            if has_body:
                await strict.check()
            return await handle(strict)

        return handler


class _StrictRequest(Request):
    """A request whose JSON has no NaN, no infinity, no half of a surrogate pair, and no integer beyond 64 bits."""

    async def check(self) -> None:
        """Refuse the body, where there is one.

        Raises:
            RequestError: 415 it says that it is no JSON, or encoded; 400 it is not JSON; 422 an integer is too large, `field` says
                which.
        """
        if await self.body():
            check_is_json(self.scope)
            await self.json()

    async def json(self) -> Any:
        """The body."""
        if not hasattr(self, "_json"):
            body = await self.body()
            try:
                self._json = orjson.loads(body)
                if _LONG_NUMBER.search(body):
                    _check_integers(json.loads(body, parse_int=_integer))
            except orjson.JSONDecodeError as error:
                raise RequestError(f"the body is not JSON: {error}", code="malformed_json", status=400) from None
            except RecursionError:
                raise RequestError("the body is nested too deeply", code="malformed_json", status=400) from None
        return self._json


def _integer(text: str) -> int:
    return int(text) if len(text) <= MAX_DIGITS else MAX_INTEGER + 1


def _check_integers(body: Any) -> None:
    left: list[tuple[str, Any]] = [("", body)]
    while left:
        where, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{where}.{name}" if where else name, one) for name, one in value.items()]
        elif isinstance(value, list):
            left += [(f"{where}.{place}" if where else str(place), one) for place, one in enumerate(value)]
        elif isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise RequestError(f"{where or 'the body'}: integers are from -(2**63 - 1) to 2**63 - 1", field=where or None)
