"""MLflow and Ray for one command: those that the settings name, else the running stack's, else own ones for the call."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from shortlist.settings import Settings
from shortlist.stack.errors import StackError
from shortlist.stack.mlflow_server import start_mlflow
from shortlist.stack.ports import answers, free_port
from shortlist.stack.ray_cluster import attach_ray, short_temporary_folder, start_ray, stop_ray
from shortlist.stack.state import running_stack


@contextmanager
def mlflow_for_call(settings: Settings) -> Iterator[str]:
    """URL of a tracking server that answers; one started for the call keeps its data below the home, as the stack's does.

    Raises:
        StackError: the server that the settings name, or the running stack's own, does not answer, or none could be started.
    """
    home = settings.home.absolute()
    stack = running_stack(home)
    uri = settings.mlflow.tracking_uri or (stack.mlflow_uri if stack else None)
    if uri:
        if not answers(f"{uri.rstrip('/')}/health", timeout_s=3):
            if settings.mlflow.tracking_uri:
                what = "start it, or leave mlflow.tracking_uri out for an embedded one"
            else:
                what = (
                    "the running stack starts it again within a minute if it has ended; if it hangs, see mlflow/mlflow.log in "
                    f"{settings.home}, then shortlist down and shortlist up"
                )
            raise StackError(f"MLflow at {uri} does not answer: {what}")
        yield uri
        return
    child, uri = start_mlflow(home / "mlflow", free_port())
    try:
        yield uri
    finally:
        child.stop()


@contextmanager
def ray_for_call(settings: Settings) -> Iterator[None]:
    """This process connected to Ray; one started for the call ends with it.

    Raises:
        StackError: the Ray that the settings name does not answer, or none could be started.
    """
    home = settings.home.absolute()
    stack = running_stack(home)
    address = settings.ray.address or (stack.ray_address if stack else None)
    temporary = None if address else short_temporary_folder()
    try:
        if address:
            attach_ray(home, address)
        elif temporary is not None:
            start_ray(home, temporary, {})
        try:
            yield
        finally:
            if temporary is not None:
                stop_ray(temporary)
            else:
                import ray

                ray.shutdown()
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
