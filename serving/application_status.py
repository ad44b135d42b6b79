"""What Ray Serve says of its applications, and no more.

`serve.status()` puts together all that there is to know of Serve, with every deployment's configuration and the functions pickled
in it. Of the supervisor's processor time while a version came up, nine tenths were that; the controller pays as much again. Ray's
client, which `serve.status()` is made of, tells the statuses alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray.serve.context import _get_global_client  # noqa: PLC2701 -- the public call costs a hundred times as much


@dataclass(frozen=True, slots=True)
class ApplicationStatus:
    """One application.

    Args:
        status: Serve's word for it: `RUNNING`, `DEPLOYING`, `DEPLOY_FAILED`, `UNHEALTHY`, `DELETING`, ...
        messages: what Serve says of its deployments, and last of the application; those that say something.
    """

    status: str
    messages: tuple[str, ...]


def application_statuses() -> dict[str, ApplicationStatus]:
    """Name -> status of each application; nothing where Serve does not run."""
    client = _get_global_client(raise_if_no_controller_running=False)
    found = {}
    for one in [] if client is None else client.list_serve_statuses():
        told = [deployment.message for deployment in one.deployment_statuses] + [one.app_status.message]
        found[one.name] = ApplicationStatus(one.app_status.status.value, tuple(message for message in told if message))
    return found
