"""The cache on a real Redis Cluster of three servers: keys reach their nodes; one node that is gone takes its units alone."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import redis
from redis.cluster import RedisCluster

from serving.cache import ListCache, list_key, user_unit
from serving.cached_list import CachedList
from serving.config import ServingConfig
from serving.recent_activity import RecentEvent
from serving.redis_cluster import blocking_client, slot_of
from shortlist.stack.ports import free_port
from shortlist.stack.redis_server import find_redis_server

pytestmark = pytest.mark.integration
USERS = [f"user-{n}" for n in range(60)]


@dataclass
class Cluster:
    ports: list[int]
    servers: list[subprocess.Popen[bytes]]

    @property
    def url(self) -> str:
        return f"redis+cluster://127.0.0.1:{self.ports[0]}"


def ready(ports: list[int]) -> bool:
    try:
        for port in ports:
            with redis.Redis(port=port) as node:
                told = node.execute_command("CLUSTER INFO")
                # Without full coverage a node is "ok" before it has heard of the slots of the others.
                if told["cluster_state"] != "ok" or told["cluster_slots_assigned"] != "16384":
                    return False
    except redis.RedisError:
        return False
    return True


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    ports = [free_port() for _ in range(3)]
    servers = []
    for port in ports:
        folder = tmp_path / str(port)
        folder.mkdir()
        command = [str(find_redis_server()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        # The bus of the cluster takes its port from the other's by default, which may be taken or too high.
        command += ["--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--cluster-require-full-coverage", "no"]
        servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    try:
        clients = [redis.Redis(port=port) for port in ports]

        def answers() -> bool:
            try:
                return all(client.ping() for client in clients)
            except redis.RedisError:
                return False

        wait(answers)
        bounds = [0, 5461, 10923, 16384]
        for number, client in enumerate(clients):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for port, server in zip(ports[1:], servers[1:], strict=True):
            with redis.Redis(port=port) as node:
                bus = node.config_get("cluster-port")["cluster-port"]
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus)
            assert server.poll() is None
        wait(lambda: ready(ports))
        for client in clients:
            client.close()
        yield Cluster(ports, servers)
    finally:
        for server in servers:
            server.kill()
            server.wait()


def some_list(number: int) -> bytes:
    rows = np.array([number, 1000], dtype=np.int32)
    return CachedList(rows, np.array([2.0, 1.0], np.float32), np.zeros(2, np.uint8), computed_at_us=1, activity_at_us=5).encode()


def test_slots_are_redis_own(cluster: Cluster) -> None:
    with redis.Redis(port=cluster.ports[0]) as node:
        for key in ("plain", "a{tag}b", "{}x", "a{}", "{u:ü}", "{a}{b}", "}{", "{a"):
            assert slot_of(key) == node.execute_command("CLUSTER", "KEYSLOT", key)


@pytest.mark.parametrize("named_by", ["ip", "unknown-endpoint"])
def test_reads_writes_and_marks(named_by: str, cluster: Cluster, make_config: Callable[..., ServingConfig]) -> None:
    for port in cluster.ports:
        with redis.Redis(port=port) as node:  # without hosts in its map, that of the node asked holds
            node.config_set("cluster-preferred-endpoint-type", named_by)
    config = make_config(cache_url=cluster.url, cache_timeout_ms=5_000)

    async def run() -> None:
        cache = ListCache(config)
        await cache.start()
        assert cache.up
        for number, user in enumerate(USERS):
            cache.write("1", user_unit(user), some_list(number))
        reads = await asyncio.gather(*(cache.read("1", user_unit(user)) for user in USERS))  # one turn of the loop
        for number, read in enumerate(reads):
            assert read.reachable
            assert read.fresh
            assert read.cached is not None
            assert read.cached.item_idx[0] == number
        event = RecentEvent("i1", 7, True)
        assert await cache.append_activity({user_unit(user): [event] for user in USERS[:20]}, 10)
        after = await asyncio.gather(*(cache.read("1", user_unit(user)) for user in USERS))
        assert [read.fresh for read in after] == [False] * 20 + [True] * 40
        await cache.stop()

    asyncio.run(run())
    kept = []
    for port in cluster.ports:
        with redis.Redis(port=port) as node:
            kept.append(node.dbsize())
    assert sum(kept) == 80
    assert min(kept) > 0


def test_a_node_that_is_gone_takes_its_units_alone(cluster: Cluster, make_config: Callable[..., ServingConfig]) -> None:
    config = make_config(cache_url=cluster.url, cache_timeout_ms=5_000)

    async def run() -> None:
        cache = ListCache(config)
        await cache.start()
        for number, user in enumerate(USERS):
            cache.write("1", user_unit(user), some_list(number))
        await asyncio.gather(*(cache.read("1", user_unit(user)) for user in USERS))
        cluster.servers[2].kill()
        cluster.servers[2].wait()
        await asyncio.sleep(0.2)
        reads = await asyncio.gather(*(cache.read("1", user_unit(user)) for user in USERS))
        lost = [slot_of(list_key(config, "1", user_unit(user))) >= 10923 for user in USERS]
        assert [read.reachable for read in reads] == [not gone for gone in lost]
        assert [read.cached is not None for read in reads] == [not gone for gone in lost]
        await cache.stop()

    asyncio.run(run())


def test_slots_that_move_are_found_again(cluster: Cluster, make_config: Callable[..., ServingConfig]) -> None:
    """A slot without keys is given to another node: after one failed read the map is asked for anew."""
    config = make_config(cache_url=cluster.url, cache_timeout_ms=5_000)
    unit = user_unit(USERS[0])
    slot = slot_of(list_key(config, "1", unit))
    source = next(number for number, (low, high) in enumerate([(0, 5460), (5461, 10922), (10923, 16383)]) if low <= slot <= high)
    target = (source + 1) % 3

    async def run() -> None:
        cache = ListCache(config)
        await cache.start()
        assert (await cache.read("1", unit)).reachable
        with redis.Redis(port=cluster.ports[target]) as node:
            name = node.execute_command("CLUSTER", "MYID")
        for port in (cluster.ports[target], cluster.ports[source]):
            with redis.Redis(port=port) as node:
                node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", name)
        assert not (await cache.read("1", unit)).reachable
        deadline = time.monotonic() + 20
        while not (await cache.read("1", unit)).reachable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        await cache.stop()

    asyncio.run(run())


def test_pipelines_of_precompute(cluster: Cluster, make_config: Callable[..., ServingConfig]) -> None:
    """What `precompute` writes, the gateway reads."""
    config = make_config(cache_url=cluster.url, cache_timeout_ms=5_000)
    with blocking_client(config.cache_url) as client:
        assert isinstance(client, RedisCluster)
        with client.pipeline(transaction=False) as steps:
            for number, user in enumerate(USERS):
                steps.set(list_key(config, "1", user_unit(user)), some_list(number), ex=100, nx=False)
            steps.execute()

    async def run() -> None:
        cache = ListCache(config)
        await cache.start()
        reads = await asyncio.gather(*(cache.read("1", user_unit(user)) for user in USERS))
        assert all(read.cached is not None and read.fresh for read in reads)
        await cache.stop()

    asyncio.run(run())
