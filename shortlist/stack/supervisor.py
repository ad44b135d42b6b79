"""The process that owns a local stack: starts its parts in order, watches them, and stops them in the reverse order.

`shortlist up` starts it as `python -m shortlist.stack.supervisor` and reads its progress from the state file; SIGTERM, as sent by
`shortlist down`, or Ctrl-C ends it. Parts that the settings name by address are attached to and never stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

from serving.config import ServingConfig
from shortlist.settings import Settings, load_settings
from shortlist.stack.errors import StackError
from shortlist.stack.leftovers import HomeTakenError, end_leftovers, mark_processes, sole_supervisor
from shortlist.stack.mlflow_server import start_mlflow
from shortlist.stack.ports import answers, free_port, take_port, wait_until
from shortlist.stack.process import Child
from shortlist.stack.ray_cluster import attach_ray, ray_environment, short_temporary_folder, start_ray, stop_ray
from shortlist.stack.redis_server import redis_answers, start_redis
from shortlist.stack.serving_config import base_url, serving_config
from shortlist.stack.state import HOME_TAKEN, ProcessNote, StackState, load_state, started_s
from shortlist.stack.watch import keep_running


class Supervisor:
    """One local stack.

    Args:
        settings: of the stack; `serve.dataset` is set.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.serve.dataset is None:
            raise StackError("no dataset to serve: --set serve.dataset=NAME")
        self.settings = settings
        self.home = settings.home.absolute()
        self.stop_requested = threading.Event()
        self._children: list[Child] = []
        self._undo: list[Callable[[], None]] = []
        me = psutil.Process()
        self.state = StackState(
            phase="starting",
            dataset=settings.serve.dataset,
            supervisor_pid=me.pid,
            supervisor_started_s=started_s(me),
            control_url=settings.control_url,
            log_dir=str(self.home / "logs"),
        )

    def run(self) -> None:
        """Start everything, serve until asked to stop, stop everything.

        Raises:
            HomeTakenError: another supervisor of the home runs; nothing was started or noted.
            StackError: a part cannot start.
        """
        with sole_supervisor(self.home):
            self._clear()
            self._run()

    def _clear(self) -> None:
        """End and remove what a stack that was killed has left."""
        if left := end_leftovers(self.home):
            sys.stderr.write(f"ended what an earlier stack left: processes {', '.join(map(str, left))}\n")
        earlier = load_state(self.home)
        if earlier is not None and earlier.temporary_dir.startswith("/tmp/sl-"):
            shutil.rmtree(earlier.temporary_dir, ignore_errors=True)
        mark_processes(self.home)

    def _run(self) -> None:
        self._listen_for_stop()
        try:
            self._start()
            self._watch()
            self._note(phase="stopping")
        except Exception as error:
            self._note(phase=f"failed: {error}")
            raise
        finally:
            self._stop()
            if not self.state.phase.startswith("failed"):
                self._note(phase="stopped", processes=())

    def _listen_for_stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop_requested.set())

    def _note(self, **changes: object) -> None:
        self.state = dataclasses.replace(self.state, **changes)  # type: ignore[arg-type]
        self.state.save(self.home)

    def _step(self, what: str) -> None:
        if self.stop_requested.is_set():
            raise StackError("stopped while starting")
        self._note(phase=f"starting: {what}")

    def _start(self) -> None:
        self._step("Redis")
        self._start_redis()
        self._step("MLflow")
        self._start_mlflow()
        self._step("Ray")
        config = self._start_ray()
        self._step("gateway")
        self._start_serve(config)
        self._step("event worker")
        self._start_worker()
        self._step("model versions")
        self._start_reconciler(config)
        self._register_webhook(config)
        self._start_scheduler()
        self._note(phase="ready", processes=self._process_notes())

    def _own(self, child: Child) -> None:
        self._children.append(child)
        self._undo.append(child.stop)

    def _start_redis(self) -> None:
        chosen, folder = self.settings.redis, self.home / "redis"
        urls = {"bus_url": chosen.bus_url, "features_url": chosen.features_url, "cache_url": chosen.cache_url}
        for name, url in urls.items():
            if url is not None and not redis_answers(url, timeout_s=2):
                raise StackError(
                    f"redis.{name} names a Redis that does not answer: start it, or leave the setting out for an embedded one"
                )
        if urls["bus_url"] is None or urls["features_url"] is None:
            child, url = start_redis("redis-bus", "event bus and online features (append-only file)", folder / "bus", durable=True)
            self._own(child)
            urls["bus_url"], urls["features_url"] = urls["bus_url"] or url, urls["features_url"] or url
        if urls["cache_url"] is None:
            child, urls["cache_url"] = start_redis(
                "redis-cache",
                "precomputed lists (no persistence, LRU)",
                folder / "cache",
                durable=False,
                max_mb=chosen.cache_max_mb,
            )
            self._own(child)
        self._note(**urls)

    def _start_mlflow(self) -> None:
        uri = self.settings.mlflow.tracking_uri
        if uri is not None:
            if not answers(f"{uri.rstrip('/')}/health", timeout_s=3):
                raise StackError(f"MLflow at {uri} does not answer: start it, or leave mlflow.tracking_uri out for an embedded one")
        else:
            port = take_port(self.settings.mlflow.port, "MLflow", "mlflow.port")
            child, uri = start_mlflow(self.home / "mlflow", port)
            self._own(child)
        self._note(mlflow_uri=uri)

    def _start_ray(self) -> ServingConfig:
        from serving.environment import serve_env

        port = take_port(self.settings.serve.port, "the gateway", "serve.port")
        config = serving_config(self.settings, self.state, port)
        temporary = short_temporary_folder()
        environment = serve_env(temporary, stats_port=free_port(), metrics_port=free_port())
        if self.settings.ray.address is None:
            address = start_ray(self.home, temporary, environment)
            self._undo.append(lambda: stop_ray(temporary))
        else:
            address = self.settings.ray.address
            attach_ray(self.home, address)
        self._listen_for_stop()  # Ray has put its own handlers in place of ours
        ports = {key: int(value) for key, value in environment.items() if key.endswith("_PORT")}
        self._note(
            ray_address=address,
            ray_token_path=ray_environment(self.home)["RAY_AUTH_TOKEN_PATH"],
            temporary_dir=str(temporary),
            other_ports=ports,
        )
        return config

    def _start_serve(self, config: ServingConfig) -> None:
        from serving import graph

        self._undo.append(graph.stop_serve)
        graph.start_serve(config)
        graph.deploy_gateway(config)
        url = base_url(self.settings, config.port)
        wait_until(lambda: answers(f"{url}/healthz"), seconds=60, what="the gateway")
        self._note(base_url=url, graph="fused" if graph.is_fused(config) else "separate")

    def _start_worker(self) -> None:
        state, port = self.state, take_port(self.settings.worker.metrics_port, "the worker's metrics", "worker.metrics_port")
        settings = {
            "worker.metrics_port": port,
            "home": self.home,
            "serve.dataset": state.dataset,
            "redis.bus_url": state.bus_url,
            "redis.features_url": state.features_url,
            "control.url": state.control_url,
            "features.user_ttl_days": self.settings.features.user_ttl_days,
        }
        if self.settings.store.url is not None:
            settings["store.url"] = self.settings.store.url
        worker = Child(
            "worker",
            "drains the event bus into the activity store, the online features and the exposure log",
            [sys.executable, "-m", "shortlist.stack.worker", *(f"{key}={value}" for key, value in settings.items())],
            self.home / "logs" / "worker.log",
        )
        worker.start()
        self._own(worker)
        self._note(worker_metrics_url=f"http://127.0.0.1:{port}/metrics")

    def _start_reconciler(self, config: ServingConfig) -> None:
        from serving.reconciler import Reconciler

        reconciler = Reconciler(config)
        reconciler.step()
        thread = threading.Thread(target=reconciler.run, args=(self.stop_requested,), name="reconciler", daemon=True)
        thread.start()
        self._undo.append(lambda: thread.join(10))

    def _register_webhook(self, config: ServingConfig) -> None:
        """Let MLflow say at once when an alias moves. Without it the reconciler sees a move at its next look."""
        from training.errors import RegistryError
        from training.mlflow_rest import MlflowRest
        from training.webhooks import ensure_webhook

        public = self.settings.mlflow.webhook_url
        if public is None and self.settings.mlflow.tracking_uri is not None:
            return  # whether a named server reaches this machine is for the settings to say
        url = f"{(public or self.state.base_url).rstrip('/')}/v1/webhooks/mlflow"
        name = f"{config.paths.registered_model}-{hashlib.sha256(str(self.home).encode()).hexdigest()[:8]}"
        try:
            assert config.webhook_secret_file is not None
            rest = MlflowRest(config.mlflow_uri)
            ensure_webhook(rest, name=name, url=url, secret=config.webhook_secret_file.read_text())
            rest.close()
        except RegistryError as error:
            sys.stderr.write(f"MLflow's webhook is not registered, aliases are looked at every {config.poll_s:g} s: {error}\n")

    def _start_scheduler(self) -> None:
        from shortlist.stack.scheduler import Scheduler

        scheduler = Scheduler(self.settings.paths(self.state.dataset), self.state.control_url, (f"home={self.home}",))
        thread = threading.Thread(target=scheduler.run, args=(self.stop_requested,), name="scheduler", daemon=True)
        thread.start()
        self._undo.append(lambda: thread.join(15))

    def _watch(self) -> None:
        keep_running(self._children, self.stop_requested, lambda: self._note(processes=self._process_notes()))

    def _stop(self) -> None:
        self.stop_requested.set()
        for undo in reversed(self._undo):
            try:
                undo()
            except Exception as error:  # one part that does not stop must not keep the others running
                sys.stderr.write(f"while stopping: {type(error).__name__}: {error}\n")

    def _process_notes(self) -> tuple[ProcessNote, ...]:
        notes = [
            ProcessNote(
                "supervisor", os.getpid(), "owns the stack; follows MLflow's aliases (reconciler); starts scheduled pipelines"
            )
        ]
        notes += [ProcessNote(child.name, child.pid or 0, child.why, child.restarts) for child in self._children]
        return tuple(notes)


def main() -> None:
    """Entry point of the supervisor process; settings come from its environment and arguments as `--set` strings."""
    settings = load_settings(tuple(sys.argv[1:]))
    Path(settings.home).mkdir(parents=True, exist_ok=True)
    try:
        Supervisor(settings).run()
    except HomeTakenError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(HOME_TAKEN)
    except StackError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
