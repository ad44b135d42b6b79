"""Processes that have imported everything, kept for the next version: a promotion then waits for its bundle alone.

Starting a process of Ray with what a replica imports is two thirds of what loading a version takes. Ray can be asked to start
workers ahead; one that has run nothing yet is taken for the next actor with the same runtime environment, which is the replicas'
own. Only for speed: where Ray does not start them, or kills them for their memory, versions are loaded as ever.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from serving.config import ServingConfig
from serving.standby_imports import MARK

_log = logging.getLogger("shortlist.serving")

LOOK_EVERY_S = 15.0
"""Longer than a process needs until its environment shows what it is."""
SETTLE_S = 5.0
"""After a version is loaded: gateways open it and users follow, who need the processor more."""
LONGEST_PAUSE_S = 3600.0
KEEP_FOR_S = 10 * 365 * 86_400
"""After which Ray may end an idle worker."""
TAKEN = "ray::ServeReplica"
"""Begins the title of a process that is no standby any more."""


def replica_environment(config: ServingConfig) -> dict[str, Any]:
    """Ray's runtime environment of all replicas of versions: a standby is taken by those with an equal one.

    Ray itself sets the threads for an actor without CPUs, but after the imports.
    """
    return {"env_vars": {MARK: str(config.home), "OMP_NUM_THREADS": "1"}}


class Standby:
    """Keeps as many processes ready as one version has replicas, on the node of this process.

    Args:
        config: of the stack.
        processes: of one version.
        start: starts so many; Ray by default.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        config: ServingConfig,
        processes: int,
        start: Callable[[ServingConfig, int], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._processes, self._start, self._clock = config, processes, start or start_workers, clock
        self._pause_s, self._next_s = LOOK_EVERY_S, 0.0

    def taken(self) -> None:
        """A version was loaded: look for what it left once that has settled."""
        self._pause_s, self._next_s = LOOK_EVERY_S, self._clock() + SETTLE_S

    def keep(self) -> None:
        """Start those that are lacking; to be called every few seconds. What does not come up is asked for ever more seldom."""
        now = self._clock()
        if now < self._next_s:
            return
        lacking = self._processes - sum(1 for _ in waiting(self._config.home))
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if lacking > 0 else LOOK_EVERY_S
        self._next_s = now + self._pause_s
        if lacking > 0:
            try:
                self._start(self._config, lacking)
            except Exception as error:  # private parts of Ray: whatever fails there, versions are loaded without
                _log.info("no process is kept ready for the next version: %s: %s", type(error).__name__, error)


def waiting(home: Path) -> Iterator[psutil.Process]:
    """Processes of the stack in this home that are ready for a replica, or starting."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(home) and not " ".join(process.cmdline()).startswith(TAKEN):
                yield process
        except psutil.Error:  # it ended, or is somebody else's
            continue


def start_workers(config: ServingConfig, count: int) -> None:
    """Ask this node's raylet for so many workers with the replicas' environment; returns before they are there.

    Raises:
        Exception: what Ray's own client raises.
    """
    import ray
    from ray._private.grpc_utils import init_grpc_channel  # noqa: PLC2701 -- there is no public call for this
    from ray.core.generated.common_pb2 import PYTHON
    from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest
    from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub
    from ray.runtime_env import RuntimeEnv

    here = ray.get_runtime_context().get_node_id()
    node = next(one for one in ray.nodes() if one["NodeID"] == here)
    request = PrestartWorkersRequest(language=PYTHON, keep_alive_duration_secs=KEEP_FOR_S, num_workers=count)
    request.runtime_env_info.serialized_runtime_env = RuntimeEnv(**replica_environment(config)).serialize()
    with init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=10)
