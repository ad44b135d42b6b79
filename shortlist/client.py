"""The Python client: `Client` and `AsyncClient`, the same calls to wait for or to await.

    from shortlist import Client

    client = Client("http://127.0.0.1:8000")
    client.get_recommendations("42", top_k=5)
    client.log_user_activity("42", "item-7", "click")

The calls are defined once, in `shortlist.client_calls` and `shortlist.admin_calls`; this module sends them. Lost answers, overload
and restarts are retried with growing pauses; an event keeps its id, so it is never stored twice.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx
import tenacity

from shortlist import admin_calls as admin
from shortlist import client_calls as calls
from shortlist.background import BackgroundEvents
from shortlist.client_calls import Call
from shortlist.client_errors import ApiError, NoAnswerError, is_passing, pause_s

__all__ = ["ApiError", "AsyncClient", "BackgroundEvents", "Client", "NoAnswerError"]

DEFAULT_URL = "http://127.0.0.1:8000"
P = ParamSpec("P")
T = TypeVar("T")


def _pause_s(state: tenacity.RetryCallState) -> float:
    return pause_s(state.attempt_number, state.outcome.exception() if state.outcome else None)


class _Connection:
    """What both clients share: how calls become requests, answers results, and failures retries."""

    def __init__(self, base_url: str, token: str | None, timeout: float, attempts: int) -> None:
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {attempts}")
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url must start with http:// or https://, got {base_url!r}")
        self.base_url = base_url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http_options: dict[str, Any] = {"base_url": self.base_url, "headers": headers, "timeout": timeout}
        self._retry_options: dict[str, Any] = {
            "retry": tenacity.retry_if_exception(is_passing),
            "wait": _pause_s,
            "stop": tenacity.stop_after_attempt(attempts),
            "reraise": True,
        }

    def _request(self, call: Call[Any]) -> dict[str, Any]:
        return {"method": call.method, "url": call.path, "params": call.params, "json": call.body}

    def _result(self, call: Call[T], response: httpx.Response) -> T:
        if response.is_success:
            try:
                return call.read(response.json() if response.content else None)
            except (json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
                message = f"{self.base_url}{call.path} answered something that is not Shortlist's: {type(error).__name__} {error}"
                raise ApiError("unexpected_answer", message, status=response.status_code) from error
        try:
            told = dict(response.json()["error"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            told = {}
        raise ApiError(
            str(told.get("code", "http_error")),
            str(told.get("message", f"{call.method} {call.path} was answered with status {response.status_code}")),
            told.get("field"),
            response.status_code,
            _seconds(response.headers.get("Retry-After")),
        )

    def _no_answer(self, call: Call[Any], error: httpx.HTTPError) -> NoAnswerError:
        reason = str(error) or type(error).__name__
        return NoAnswerError("no_answer", f"no answer from {self.base_url} to {call.method} {call.path}: {reason}; is it up?")


def _seconds(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _sync(build: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    @functools.wraps(build)
    def method(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client.send(build(*args, **kwargs))

    return method


def _async(build: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Awaitable[T]]:
    @functools.wraps(build)
    async def method(client: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await client.send(build(*args, **kwargs))

    return method


class Client(_Connection):
    """A client that waits for each answer. Safe to share between threads; close it, or use it as a context manager.

    Args:
        base_url: of the server.
        token: bearer token; a loopback server without tokens of its own needs one for admin calls alone.
        timeout: seconds to wait for one attempt.
        attempts: how often a call is sent before its failure is raised.
    """

    def __init__(self, base_url: str = DEFAULT_URL, token: str | None = None, *, timeout: float = 5.0, attempts: int = 4) -> None:
        super().__init__(base_url, token, timeout, attempts)
        self._http = httpx.Client(**self._http_options)

    get_recommendations = _sync(calls.get_recommendations)
    recommend = _sync(calls.recommend)
    similar_items = _sync(calls.similar_items)
    popular = _sync(calls.popular)
    trending = _sync(calls.trending)
    log_user_activity = _sync(calls.log_user_activity)
    log_events = _sync(calls.log_events)
    merge_session = _sync(calls.merge_session)
    health = _sync(calls.health)
    item = _sync(admin.item)
    put_item = _sync(admin.put_item)
    patch_item = _sync(admin.patch_item)
    delete_item = _sync(admin.delete_item)
    put_items = _sync(admin.put_items)
    user = _sync(admin.user)
    put_user = _sync(admin.put_user)
    patch_user = _sync(admin.patch_user)
    put_users = _sync(admin.put_users)
    erase_user = _sync(admin.erase_user)
    rules = _sync(admin.rules)
    put_rules = _sync(admin.put_rules)
    preview_rules = _sync(admin.preview_rules)
    models = _sync(admin.models)
    update_model = _sync(admin.update_model)
    set_alias = _sync(admin.set_alias)
    rollback = _sync(admin.rollback)
    audit = _sync(admin.audit)
    experiments = _sync(admin.experiments)
    experiment = _sync(admin.experiment)
    put_experiment = _sync(admin.put_experiment)
    start_experiment = _sync(admin.start_experiment)
    ramp_experiment = _sync(admin.ramp_experiment)
    pause_experiment = _sync(admin.pause_experiment)
    stop_experiment = _sync(admin.stop_experiment)
    experiment_report = _sync(admin.experiment_report)

    def send(self, call: Call[T]) -> T:
        """Send one call and read its answer.

        Raises:
            ApiError: the server refused it, or (`NoAnswerError`) could not be reached.
        """
        return tenacity.Retrying(**self._retry_options)(self.send_once, call)

    def send_once(self, call: Call[T]) -> T:
        """`send` without another attempt."""
        try:
            response = self._http.request(**self._request(call))
        except httpx.HTTPError as error:
            raise self._no_answer(call, error) from error
        return self._result(call, response)

    def background(self, **options: Any) -> BackgroundEvents:
        """A buffer that logs activity without waiting; options as of `shortlist.background.BackgroundEvents`."""
        return BackgroundEvents(self, **options)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class AsyncClient(_Connection):
    """The same calls for an event loop: `await client.get_recommendations("42")`. Arguments as of `Client`."""

    def __init__(self, base_url: str = DEFAULT_URL, token: str | None = None, *, timeout: float = 5.0, attempts: int = 4) -> None:
        super().__init__(base_url, token, timeout, attempts)
        self._http = httpx.AsyncClient(**self._http_options)

    get_recommendations = _async(calls.get_recommendations)
    recommend = _async(calls.recommend)
    similar_items = _async(calls.similar_items)
    popular = _async(calls.popular)
    trending = _async(calls.trending)
    log_user_activity = _async(calls.log_user_activity)
    log_events = _async(calls.log_events)
    merge_session = _async(calls.merge_session)
    health = _async(calls.health)
    item = _async(admin.item)
    put_item = _async(admin.put_item)
    patch_item = _async(admin.patch_item)
    delete_item = _async(admin.delete_item)
    put_items = _async(admin.put_items)
    user = _async(admin.user)
    put_user = _async(admin.put_user)
    patch_user = _async(admin.patch_user)
    put_users = _async(admin.put_users)
    erase_user = _async(admin.erase_user)
    rules = _async(admin.rules)
    put_rules = _async(admin.put_rules)
    preview_rules = _async(admin.preview_rules)
    models = _async(admin.models)
    update_model = _async(admin.update_model)
    set_alias = _async(admin.set_alias)
    rollback = _async(admin.rollback)
    audit = _async(admin.audit)
    experiments = _async(admin.experiments)
    experiment = _async(admin.experiment)
    put_experiment = _async(admin.put_experiment)
    start_experiment = _async(admin.start_experiment)
    ramp_experiment = _async(admin.ramp_experiment)
    pause_experiment = _async(admin.pause_experiment)
    stop_experiment = _async(admin.stop_experiment)
    experiment_report = _async(admin.experiment_report)

    async def send(self, call: Call[T]) -> T:
        """Send one call and read its answer; raises as `Client.send`."""
        return await tenacity.AsyncRetrying(**self._retry_options)(self._send_once, call)

    async def _send_once(self, call: Call[T]) -> T:
        try:
            response = await self._http.request(**self._request(call))
        except httpx.HTTPError as error:
            raise self._no_answer(call, error) from error
        return self._result(call, response)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
