"""Starts that cannot succeed end with one clear line and leave no process behind."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shortlist.settings import load_settings
from shortlist.stack.control import start_stack
from shortlist.stack.errors import StackError
from shortlist.stack.ports import free_port

pytestmark = pytest.mark.integration


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


def refusal(home: Path, *overrides: str) -> str:
    """Start a stack that must fail; the message, after checking that nothing is left of it."""
    (home / "datasets" / "shop").mkdir(parents=True)
    given = (f"home={home}", *overrides)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(StackError) as refused:
        start_stack(load_settings(given, environ={}, folder=home), "shop", given, lambda phase: None)
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    _, alive = psutil.wait_procs([child for child in left if child.status() != psutil.STATUS_ZOMBIE], timeout=10)
    assert alive == []
    return str(refused.value)


def test_a_redis_that_does_not_answer_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, f"redis.bus_url=redis://127.0.0.1:{free_port()}/0")
    assert "redis.bus_url names a Redis that does not answer" in message
    assert "\n" not in message


def test_an_mlflow_that_does_not_answer_is_named(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    message = refusal(tmp_path, f"mlflow.tracking_uri={uri}")
    assert f"MLflow at {uri} does not answer" in message


def test_a_taken_port_is_named_with_its_setting(tmp_path: Path, taken_port: int) -> None:
    message = refusal(tmp_path, f"mlflow.port={taken_port}")
    assert message.startswith(f"port {taken_port} for MLflow is taken")
    assert "--set mlflow.port=PORT" in message


def test_another_address_than_loopback_wants_tokens(tmp_path: Path) -> None:
    message = refusal(tmp_path, "serve.host=0.0.0.0", "serve.port=0", "mlflow.port=0")
    assert "set SHORTLIST_TOKEN__READ, SHORTLIST_TOKEN__WRITE, SHORTLIST_TOKEN__ADMIN" in message
