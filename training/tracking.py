"""MLflow runs: a parent run a study, a nested run a trial, their parameters, metrics and files.

Owns the tracking client. Which configurations are tried is `training.tune`'s, versions and aliases are `training.registry`'s.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from training.errors import RegistryError

Result = TypeVar("Result")

PARENT_TAG = "mlflow.parentRunId"
_MAX_PARAM_LENGTH = 6000
"""MLflow refuses longer parameter values."""


def connect(tracking_uri: str) -> Any:
    """An `MlflowClient` that gives up on an unreachable server in seconds instead of minutes.

    Sets MLflow's request retries, time-out and quietness in this process's environment, unless the environment has them already.

    Raises:
        RegistryError: the server does not answer.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    try:
        client.search_experiments(max_results=1)
    except MlflowException as error:
        raise RegistryError(
            f"MLflow at {tracking_uri} cannot be reached: start it with `shortlist up`, or set mlflow.tracking_uri to a "
            f"running server ({str(error).splitlines()[0][:160]})"
        ) from error
    return client


def experiment_id(client: Any, name: str) -> str:
    """Id of the experiment of that name, created when missing and restored when deleted."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:
            # Two first runs at once: the other one created it.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


class Run:
    """One MLflow run, written through the client (no global active run, so trials and threads do not meet)."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self.run_id = run_id

    @classmethod
    def create(cls, client: Any, experiment: str, name: str, *, parent: str | None = None, tags: Mapping[str, str]) -> Run:
        """Create a run in the experiment of that id, below `parent` when given."""
        nested = {PARENT_TAG: parent} if parent else {}
        created = client.create_run(experiment, run_name=name, tags={"mlflow.source.type": "JOB", **tags, **nested})
        return cls(client, str(created.info.run_id))

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters; nested mappings become dotted names, long values are cut to what MLflow takes."""
        from mlflow.entities import Param

        flat = [Param(name, str(value)[:_MAX_PARAM_LENGTH]) for name, value in flatten(params).items()]
        for start in range(0, len(flat), 100):
            self._client.log_batch(self.run_id, params=flat[start : start + 100])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log the finite ones of `metrics` at one step, under the names of `metric_name`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [
            Metric(metric_name(name), float(value), now, step) for name, value in metrics.items() if math.isfinite(float(value))
        ]
        if batch:
            self._client.log_batch(self.run_id, metrics=batch)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)

    def log_json(self, value: object, path: str) -> None:
        """Store a JSON file among the run's artifacts."""
        self._client.log_text(self.run_id, json.dumps(value, indent=2, default=str) + "\n", path)

    def log_bytes(self, content: bytes, path: str) -> None:
        """Store a file of this content among the run's artifacts."""
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / name
            file.write_bytes(content)
            self.log_file(file, folder or None)

    def log_file(self, file: Path, folder: str | None = None) -> None:
        """Store a file among the run's artifacts."""
        self._client.log_artifact(self.run_id, str(file), folder)

    def log_table(self, table: pd.DataFrame, path: str) -> None:
        """Store a frame as Parquet among the run's artifacts."""
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / name
            table.to_parquet(file, index=False)
            self.log_file(file, folder or None)

    def read_json(self, path: str) -> Any:
        """What `log_json` stored, None where the run has no such file."""
        file = self._download(path)
        return None if file is None else json.loads(file)

    def read_table(self, path: str) -> pd.DataFrame | None:
        """What `log_table` stored, None where the run has no such file."""
        file = self._download(path)
        return None if file is None else pd.read_parquet(io.BytesIO(file))

    def _download(self, path: str) -> bytes | None:
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory() as scratch:
            try:
                return Path(self._client.download_artifacts(self.run_id, path, scratch)).read_bytes()
            except (MlflowException, OSError):
                return None

    def reopen(self) -> None:
        """Take up a run that an interrupted call left.

        Raises:
            RegistryError: MLflow has no such run any more.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(self.run_id, status="RUNNING")
        except MlflowException as error:
            raise RegistryError(f"run {self.run_id} cannot be continued ({str(error).splitlines()[0]})") from error

    def end(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.run_id, status)

    def fail(self, error: BaseException) -> None:
        """End the run as FAILED with the reason, or KILLED when the user stopped it. Never raises: the error is on its way out."""
        self._end_for(f"{type(error).__name__}: {error}", "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def kill(self, reason: str) -> None:
        """End a run whose process is gone as KILLED with the reason. Never raises: somebody may have deleted the run."""
        self._end_for(reason, "KILLED")

    def _end_for(self, reason: str, status: str) -> None:
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):
            self.set_tags({"shortlist.reason": reason[:500]})
            self.end(status)


class TrialRuns:
    """The nested runs of a study's trials.

    MLflow going away does not end a study: the first failure is told once, from then on nothing more is sent.

    Args:
        client: from `connect`.
        parent: the study's run.
        tags: given to every trial's run.
        on_failure: called once with the reason.
    """

    def __init__(self, client: Any, parent: Run, tags: Mapping[str, str], on_failure: Callable[[str], None]) -> None:
        self._client, self._parent, self._tags, self._on_failure = client, parent, dict(tags), on_failure
        self._experiment = str(client.get_run(parent.run_id).info.experiment_id)
        self._gone = False

    def start(self, name: str, params: Mapping[str, object]) -> str | None:
        """Create a trial's run, log its parameters and return its id; None when MLflow is gone."""

        def create() -> str:
            run = Run.create(self._client, self._experiment, name, parent=self._parent.run_id, tags=self._tags)
            run.log_params(params)
            return run.run_id

        return self._guarded(create)

    def log(self, run_id: str | None, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of one step."""
        if run_id is not None:
            self._guarded(lambda: Run(self._client, run_id).log_metrics(metrics, step))

    def end(self, run_id: str | None, status: str, reason: str | None = None) -> None:
        """End a trial's run with a status of MLflow's, and the tag `shortlist.reason` where there is a reason."""
        if run_id is None:
            return

        def end() -> None:
            run = Run(self._client, run_id)
            if reason:
                run.set_tags({"shortlist.reason": reason})
            run.end(status)

        self._guarded(end)

    def end_abandoned(self, ended: Mapping[str, tuple[str, str | None]]) -> int:
        """End the runs that an interrupted call left running and return how many there were.

        Args:
            ended: run id -> status and reason of trials that did end, though the call was cut off before it could say so.
        """
        query = f"tags.`{PARENT_TAG}` = '{self._parent.run_id}' and attributes.status = 'RUNNING'"
        left = self._client.search_runs([self._experiment], filter_string=query, max_results=1000)
        for run in left:
            self.end(run.info.run_id, *ended.get(run.info.run_id, ("KILLED", "the study was interrupted")))
        return len(left)

    def _guarded(self, action: Callable[[], Result]) -> Result | None:
        from mlflow.exceptions import MlflowException

        if self._gone:
            return None
        try:
            return action()
        except MlflowException as error:
            self._gone = True
            self._on_failure(str(error).splitlines()[0])
            return None


def metric_name(name: str) -> str:
    """`ndcg@10` as MLflow takes it, which refuses `@` in names: `ndcg_at_10`."""
    return name.replace("@", "_at_")


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings as dotted names: `{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def git_commit() -> str:
    """Commit of the code that runs, with `-dirty` where files differ; `unknown` outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    folder = Path(__file__).parent
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
