"""One real stack for all integration tests: what `shortlist demo` makes, in a private home on free ports."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from shortlist.client import Client
from shortlist.commands.console import CommandError
from shortlist.demo.flow import DemoResult, run_demo
from shortlist.settings import Settings, load_settings
from shortlist.stack.control import stop_stack

OVERRIDES = ("serve.port=0", "mlflow.port=0", "serve.poll_s=1")


@pytest.fixture(scope="session")
def stack_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of the session's stack; the environment names its home, for commands that tests run."""
    home: Path = tmp_path_factory.mktemp("stack") / "home"
    os.environ["SHORTLIST_HOME"] = str(home)
    return load_settings((*OVERRIDES, f"home={home}"), environ={}, folder=home.parent)


@pytest.fixture(scope="session")
def demo(stack_settings: Settings) -> Iterator[DemoResult]:
    """The demo, run once: real data, Redis, Feast, Ray Tune, MLflow and Ray Serve, two versions and an A/B test."""
    try:
        yield run_demo(stack_settings, (*OVERRIDES, f"home={stack_settings.home}"))
    except CommandError:
        log = stack_settings.home / "logs" / "supervisor.log"
        sys.stderr.write(f"the supervisor's log ends:\n{log.read_text()[-2000:] if log.exists() else '(none)'}\n")
        raise
    finally:
        stop_stack(stack_settings.home)


@pytest.fixture(scope="session")
def admin(demo: DemoResult) -> Iterator[Client]:
    """A client with the admin token."""
    with Client(demo.state.base_url, token=demo.admin_token) as client:
        yield client


@pytest.fixture(scope="session")
def http(demo: DemoResult) -> Iterator[httpx.Client]:
    """Plain HTTP without a token."""
    with httpx.Client(base_url=demo.state.base_url, timeout=30) as client:
        yield client
