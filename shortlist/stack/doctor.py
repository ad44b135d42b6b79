"""`shortlist doctor`: looks for what stops a stack on this machine and says how to mend each finding."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from sqlalchemy.engine import make_url

from shortlist.settings import Settings
from shortlist.stack.errors import StackError
from shortlist.stack.ports import answers, port_is_free
from shortlist.stack.redis_server import find_redis_server, redis_answers, redis_version
from shortlist.stack.state import running_stack

MINIMUM_FREE_MEMORY_GB = 4.0
MINIMUM_FREE_DISK_GB = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    check: str
    outcome: Literal["ok", "warning", "problem"]
    detail: str
    fix: str = ""


def examine(settings: Settings) -> list[Finding]:
    """All checks, in the order in which a start meets them."""
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _python,
        _machine,
        _home,
        _redis,
        _ports,
        _mlflow,
        _ray,
        _control,
        _network,
    )
    return [finding for check in checks for finding in check(settings)]


def _python(_: Settings) -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info[:2] == (3, 11):
        yield Finding("python", "ok", version)
    else:
        yield Finding("python", "problem", f"{version}, but only 3.11 is tested", "make the virtual environment with python3.11")


def _machine(_: Settings) -> Iterator[Finding]:
    memory_gb = psutil.virtual_memory().available / 2**30
    enough = memory_gb >= MINIMUM_FREE_MEMORY_GB
    yield Finding(
        "memory",
        "ok" if enough else "warning",
        f"{memory_gb:.1f} GB free",
        "" if enough else f"a stack and one study want {MINIMUM_FREE_MEMORY_GB:.0f} GB: close other programs",
    )


def _home(settings: Settings) -> Iterator[Finding]:
    folder = settings.home.absolute()
    while not folder.exists():
        folder = folder.parent
    free_gb = shutil.disk_usage(folder).free / 2**30
    if free_gb < MINIMUM_FREE_DISK_GB:
        yield Finding("disk", "warning", f"{free_gb:.1f} GB free at {folder}", "free some, or move SHORTLIST_HOME")
    else:
        yield Finding("disk", "ok", f"{free_gb:.0f} GB free at {folder}")
    if not _writable(folder):
        yield Finding("home", "problem", f"{folder} cannot be written", "choose another with SHORTLIST_HOME=FOLDER")


def _redis(settings: Settings) -> Iterator[Finding]:
    given = {name: getattr(settings.redis, name) for name in ("bus_url", "features_url", "cache_url")}
    for name, url in given.items():
        if url is not None:
            answers = redis_answers(url, timeout_s=2)
            detail = f"{make_url(url).render_as_string(hide_password=True)} {'answers' if answers else 'does not answer'}"
            yield Finding(
                f"redis.{name}", "ok" if answers else "problem", detail, "" if answers else "start it, or drop the setting"
            )
    if None in given.values():
        try:
            binary = find_redis_server()
            version = ".".join(map(str, redis_version(binary)))
            yield Finding("redis-server", "ok", f"{version} at {binary}")
        except StackError as error:
            yield Finding("redis-server", "problem", "missing or too old", str(error))


def _ports(settings: Settings) -> Iterator[Finding]:
    if running_stack(settings.home.absolute()) is not None:
        yield Finding("ports", "ok", "this home's stack runs and holds its ports")
        return
    for port, what, setting in (
        (settings.serve.port, "gateway", "serve.port"),
        (settings.mlflow.port, "MLflow", "mlflow.port"),
    ):
        if setting == "mlflow.port" and settings.mlflow.tracking_uri is not None:
            continue
        if port == 0 or port_is_free(port):
            yield Finding(f"port {port}", "ok", f"free for the {what}")
        else:
            yield Finding(
                f"port {port}",
                "problem",
                f"taken{_who(port)}; the {what} wants it",
                f"stop that, or --set {setting}=0 for any free port",
            )


def _mlflow(settings: Settings) -> Iterator[Finding]:
    uri = settings.mlflow.tracking_uri
    if uri is not None:
        healthy = answers(f"{uri.rstrip('/')}/health", timeout_s=3)
        fix = "" if healthy else "start it, or drop mlflow.tracking_uri"
        yield Finding("mlflow", "ok" if healthy else "problem", f"{uri} {'answers' if healthy else 'does not answer'}", fix)


def _ray(settings: Settings) -> Iterator[Finding]:
    own = running_stack(settings.home.absolute())
    ours = _family(own.supervisor_pid) if own else set()
    strangers = [p.pid for p in psutil.process_iter(["name"]) if p.info["name"] == "gcs_server" and p.pid not in ours]
    if strangers and settings.ray.address is None:
        yield Finding(
            "ray",
            "warning",
            f"another Ray runs on this machine (gcs_server, process {strangers[0]}); this stack starts its own beside it",
            "none needed; 'ray stop' would end both, so stop this stack with: shortlist down",
        )
    else:
        yield Finding("ray", "ok", "no foreign Ray" if settings.ray.address is None else f"attaches to {settings.ray.address}")


def _control(settings: Settings) -> Iterator[Finding]:
    url = make_url(settings.control_url)
    yield Finding("control store", "ok", url.render_as_string(hide_password=True))


def _network(settings: Settings) -> Iterator[Finding]:
    own = running_stack(settings.home.absolute())
    others = ", ".join(f"{port} ({name})" for name, port in own.other_ports.items()) if own else "two for HAProxy statistics"
    yield Finding(
        "network",
        "warning",
        f"Ray's own ports and HAProxy's ({others}) listen on all addresses, guarded by Ray's token",
        "on a shared network, let a firewall admit only the gateway's port",
    )
    if settings.serve.host not in ("127.0.0.1", "localhost", "::1"):
        missing = [scope for scope in ("read", "write", "admin") if getattr(settings.token, scope) is None]
        if missing:
            names = ", ".join(f"SHORTLIST_TOKEN__{scope.upper()}" for scope in missing)
            yield Finding("tokens", "problem", f"serve.host is {settings.serve.host}, but scopes lack tokens", f"set {names}")


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK)


def _who(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        pass
    return ""


def _family(pid: int) -> set[int]:
    try:
        return {pid} | {child.pid for child in psutil.Process(pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()
