"""A trial that Ray's memory monitor ends must fail alone.

Tune's manager of actors knows two kinds of errors, those that a task raises and those that say that an actor is gone. The monitor's
`OutOfMemoryError` is neither, and ended the whole search (Ray 2.60, `ray.air.execution`; seen with a trial that took memory without
end). Its process is gone, so here it is told as what it is: an actor that died.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager  # noqa: PLC2701 -- it has no public name
from ray.exceptions import OutOfMemoryError, RayActorError


@contextmanager
def memory_kills_fail_one_trial() -> Iterator[None]:
    """While it lasts, a search in this process goes on after a trial that the monitor has ended; its error names the cause."""
    known = RayActorManager._actor_task_failed

    def failed(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=f"{OutOfMemoryError.__name__}: {exception}")
        known(manager, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = failed
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = known
