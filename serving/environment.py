"""Environment of Ray Serve in HAProxy mode with direct ingress, which answers some 17 times what the default proxy does.

It must be in `os.environ` before Ray is imported, in the process that starts the head node and in every process that connects: Ray
reads it at import. This module therefore imports no Ray.
"""

from __future__ import annotations

from pathlib import Path

from serving.ingress import CALLBACK

STANDBY_IMPORTS = "serving.standby_imports"

MAX_SOCKET_PATH_BYTES = 107
"""Limit of Linux for the path of a Unix socket."""


def serve_env(
    runtime_folder: Path, *, stats_port: int, metrics_port: int, direct_ports: tuple[int, int] | None = None
) -> dict[str, str]:
    """Variables for one stack.

    Args:
        runtime_folder: short private folder for HAProxy's sockets and state; must exist.
        stats_port, metrics_port: free ports that HAProxy binds on all addresses.
        direct_ports: range in which Ray looks for ports of the replicas' own HTTP servers; its default, 30000 to 31000, when None.

    Raises:
        ValueError: the folder's path is too long for sockets.
    """
    folder = runtime_folder.absolute() / "haproxy"
    if len(str(folder / "metrics.sock")) > MAX_SOCKET_PATH_BYTES - 20:  # HAProxy appends a suffix while it binds
        raise ValueError(f"{folder} is too long for Unix sockets ({MAX_SOCKET_PATH_BYTES} bytes): use a shorter temporary folder")
    ports = {} if direct_ports is None else _port_range(*direct_ports)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK,
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # costs 70 us a request; the gateway has its own
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # The gateway has metrics of its own. Under load Ray's agent spends a second of a core in every ten on Ray's, and answers of
        # that second wait.
        "RAY_enable_metrics_collection": "0",
        # Workers at Ray's default niceness of 15 starve beside any other load.
        "RAY_worker_niceness": "0",
        "RAY_preload_python_modules": STANDBY_IMPORTS,
        # The default of 30 s would floor every shutdown at 35 s.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        # A dead HAProxy fails its check at once and is replaced after three (a constant): an outage of 3 s instead of 26 s even at
        # a load of 28, for 2 % of a core more when idle than a look every 0.5 s. The time-outs are for live ones on a busy machine:
        # at 1 s, proxies that were merely slow to start were killed.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.1",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "3",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",
        **ports,
    }


def _port_range(low: int, high: int) -> dict[str, str]:
    return {"RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(low), "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(high)}
