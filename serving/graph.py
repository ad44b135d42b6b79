"""Ray Serve applications: the gateway, and one application a version. The only file that binds deployments.

The gateway finds versions by name, so versions come and go without touching it. `serving.environment.serve_env` must have been
applied before Ray was imported.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from serving.application_status import ApplicationStatus, application_statuses
from serving.config import ServingConfig
from serving.errors import ServingError, VersionRefusedError
from serving.gateway_replica import Gateway
from serving.messages import ComputeRequest
from serving.ranker import Ranker
from serving.retriever_replica import Retriever
from serving.shadow_replica import ShadowReplica
from serving.shadow_role import is_shadow
from serving.standby import replica_environment

GATEWAY_APP = "gateway"
_NO_CPU: dict[str, Any] = {"num_cpus": 0}
"""Ray counts CPUs: replicas that asked for one would keep trials waiting on a small machine. Ray gives them OMP_NUM_THREADS=1."""
_QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")
_DESCRIBING = threading.Lock()
"""Ray Serve notes for the whole process which modules it pickles by value: versions that come up at once are described in turn."""


def start_serve(config: ServingConfig) -> None:
    """Start Ray Serve's controller and proxy on the connected Ray.

    Raises:
        ServingError: Ray was imported without `serve_env`, and would answer at a seventeenth of the speed.
    """
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        raise ServingError("Ray Serve needs serving.environment.serve_env in the environment before Ray is imported")
    serve.start(http_options=HTTPOptions(host=config.host, port=config.port), logging_config=_QUIET)


def deploy_gateway(config: ServingConfig) -> None:
    """Deploy the gateway at `/` and wait until it answers."""
    gateway = serve.deployment(serve.ingress()(Gateway))
    application = gateway.options(
        name="Gateway",
        num_replicas=config.gateway_replicas,
        max_ongoing_requests=1000,
        ray_actor_options=_NO_CPU,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
    ).bind(config.model_dump_json())
    serve.run(application, name=GATEWAY_APP, route_prefix="/", logging_config=_QUIET)


def deploy_beside(name: str, route_prefix: str, target: type) -> None:
    """Deploy a class that answers HTTP as an application of its own in the gateway's mode: what the gateway is measured against."""
    application = serve.deployment(target).options(max_ongoing_requests=1000, ray_actor_options=_NO_CPU).bind()
    serve.run(application, name=name, route_prefix=route_prefix, logging_config=_QUIET)


def version_app(config: ServingConfig, key: str) -> str:
    """Name of the application of a key: a version's number, or its `shadow_key`."""
    return f"{config.paths.registered_model}-v{key}"


def deploy_version(config: ServingConfig, version: str, bundle_folder: Path) -> str:
    """Deploy one version beside all others and wait until its replicas are ready; returns the application's name.

    Raises:
        VersionRefusedError: Ray Serve gave up on it, or it was not ready within `load_timeout_s`; the message ends with the
            replicas' own error.
    """
    name = version_app(config, version)
    with _DESCRIBING:
        target = serve.RunTarget(_application(config, version, bundle_folder), name=name, route_prefix=None, logging_config=_QUIET)
        serve.run_many([target], wait_for_applications_running=False)
    _wait_running(name, config.load_timeout_s)
    return name


def _application(config: ServingConfig, version: str, bundle_folder: Path) -> serve.Application:
    arguments = (config.model_dump_json(), str(bundle_folder))
    options: dict[str, Any] = {
        "num_replicas": config.version_replicas,
        "max_ongoing_requests": 64,
        "ray_actor_options": _NO_CPU | {"runtime_env": replica_environment(config)},
        "graceful_shutdown_timeout_s": 5,
    }
    retriever = serve.deployment(Retriever).options(name="Retriever", **options)
    if is_shadow(version):
        alone = options | {"num_replicas": 1}
        return serve.deployment(ShadowReplica).options(name="Shadow", **alone).bind(*arguments)
    if is_fused(config):
        return retriever.bind(*arguments)
    return retriever.bind(*arguments, serve.deployment(Ranker).options(name="Ranker", **options).bind(*arguments))


def _wait_running(name: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        found = application_statuses().get(name)
        if found is not None and found.status == "RUNNING":
            return
        if found is not None and found.status in {"DEPLOY_FAILED", "UNHEALTHY"}:
            raise VersionRefusedError(_reason(found))
        if time.monotonic() > deadline:
            raise VersionRefusedError(f"not ready after {timeout_s:.0f} s")
        time.sleep(0.05)


def _reason(application: ApplicationStatus) -> str:
    """The last line of the replicas' own error, which Serve buries in a traceback."""
    lines = [line.strip() for message in application.messages[:1] for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error:" in line]
    return re.sub(r"^(\w+\.)+(?=\w+: )", "", (errors or lines or ["it does not start"])[-1])


def ask_version(config: ServingConfig, version: str, requests: Sequence[ComputeRequest], timeout_s: float = 30.0) -> list[bytes]:
    """An encoded list for each request, outside the gateway; asked together of a version's replicas."""
    return _called(config, version, "compute", timeout_s, [(request,) for request in requests])


def replica_timing(config: ServingConfig, version: str, timeout_s: float = 30.0) -> tuple[int, float]:
    """Lists and seconds so far (`Retriever.timing`) of one of a version's replicas, whichever answers."""
    ((answers, seconds),) = _called(config, version, "timing", timeout_s, [()])
    return int(answers), float(seconds)


def _called(config: ServingConfig, version: str, method: str, timeout_s: float, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What the version answers to several calls of a method at once, each with its arguments."""

    async def call() -> list[Any]:
        handle = getattr(serve.get_app_handle(version_app(config, version)), method)
        return await asyncio.wait_for(asyncio.gather(*(handle.remote(*arguments) for arguments in calls)), timeout_s)

    return asyncio.run_coroutine_threadsafe(call(), _handle_loop()).result(timeout_s + 1)


@cache
def _handle_loop() -> asyncio.AbstractEventLoop:
    """An event loop that outlives each call: handles of the throughput-optimized mode need one, and stay bound to the first."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="serve-handles", daemon=True).start()
    return loop


def delete_version(config: ServingConfig, version: str) -> None:
    """Drain and remove a version's application; nothing happens where there is none."""
    name = version_app(config, version)
    if name in application_statuses():
        serve.delete(name)


def running_versions(config: ServingConfig) -> dict[str, str]:
    """Version -> Serve's status of its application (`RUNNING`, `DEPLOYING`, `DEPLOY_FAILED`, ...)."""
    prefix = version_app(config, "")
    return {name.removeprefix(prefix): app.status for name, app in application_statuses().items() if name.startswith(prefix)}


def is_fused(config: ServingConfig) -> bool:
    """Whether retriever and ranker share a replica under this configuration and cluster."""
    if config.fuse == "auto":
        return sum(bool(node["Alive"]) for node in ray.nodes()) <= 1
    return config.fuse == "fused"


def version_processes(config: ServingConfig) -> int:
    """Processes that a version takes under this configuration and cluster."""
    return config.version_replicas * (1 if is_fused(config) else 2)


def stop_serve() -> None:
    """Remove all applications and stop Serve; Ray itself goes on."""
    serve.shutdown()
