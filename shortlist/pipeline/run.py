"""Running a pipeline: its steps in order, each retried, recorded on disk and in an MLflow run; continued where it stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from features.errors import FeaturesError
from features.paths import DatasetPaths
from serving.errors import ServingError
from shortlist.commands.console import CommandError
from shortlist.pipeline.record import PipelineOptions, PipelineRecord, StepRecord, records
from shortlist.pipeline.steps import STEPS, StepContext, StepFunction
from shortlist.runner import Runner
from shortlist.stack.state import StackState
from training.errors import RegistryError, TrainingError
from training.tracking import Run, connect, experiment_id

RETRIED = (CommandError, FeaturesError, ServingError, TrainingError, OSError)
"""Failures after which a step is tried again; a bug is not."""
RETRY_WAIT_S = wait_exponential(multiplier=2, max=120)

KIND_TAG = "shortlist.kind"

Notify = Callable[[str], None]


def begin(paths: DatasetPaths, options: PipelineOptions) -> PipelineRecord:
    """A new run, recorded and not yet started."""
    now = datetime.now(UTC)
    record = PipelineRecord(
        run_id=f"{now:%Y%m%dT%H%M%S}-{now.microsecond:06d}",
        dataset=paths.dataset,
        options=options,
        started_at=now,
        steps={name: StepRecord() for name in STEPS},
    )
    record.save(paths)
    return record


def settle(paths: DatasetPaths, stack: StackState) -> list[PipelineRecord]:
    """End what killed runs left running: their records say `interrupted`, MLflow says KILLED. Only while holding `only_run`.

    Returns:
        Those that were settled.

    Raises:
        CommandError: a record cannot be read.
        RegistryError: MLflow does not answer.
    """
    left = [record for record in records(paths) if record.status == "running"]
    for record in left:
        if record.mlflow_run_id is not None:
            Run(connect(stack.mlflow_uri), record.mlflow_run_id).kill("its process ended before it did")
        record.interrupt()
        record.save(paths)
    return left


def go(
    record: PipelineRecord,
    paths: DatasetPaths,
    stack: StackState,
    runner: Runner,
    *,
    notify: Notify = lambda _: None,
    steps: Mapping[str, StepFunction] = STEPS,
) -> PipelineRecord:
    """Do what is left of a run; finished steps are not repeated.

    Args:
        record: new, or of a run that was interrupted or failed; changed and saved as it goes.
        paths: of its dataset.
        stack: the running stack.
        runner: runs the commands.
        notify: told what is being done.
        steps: name -> what it does.

    Returns:
        The record: `done`, or `refused` where the gate did not let the version pass.

    Raises:
        CommandError: a step failed as often as it may be tried; the record says which, and the run can be continued.
        RegistryError: MLflow does not answer; the record says so, and the run can be continued.
    """
    try:
        run = _mlflow_run(record, stack)
    except RegistryError as error:
        record.status, record.error = "failed", str(error)
        record.save(paths)
        raise
    record.status, record.error, record.mlflow_run_id = "running", None, run.run_id
    record.save(paths)
    context = StepContext(record, paths, stack, runner)
    try:
        for name, function in steps.items():
            if record.steps.setdefault(name, StepRecord()).status in ("done", "skipped"):
                continue
            reason = _left_out(record, name)
            if reason is not None:
                record.steps[name] = StepRecord(status="skipped", error=reason)
                notify(f"{name}: left out, {reason}")
            else:
                _attempt(name, function, context, notify)
            record.save(paths)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            record.interrupt()
        else:
            record.status = "failed"
        record.save(paths)
        _close(run, record, error)
        raise
    record.status = "refused" if not record.result_of("gate").get("servable", True) else "done"
    record.save(paths)
    _close(run, record, None)
    return record


def _left_out(record: PipelineRecord, step: str) -> str | None:
    if step not in ("precompute", "alias"):
        return None
    if not record.result_of("gate").get("servable", True):
        return f"the gate refused the version: {record.result_of('gate').get('reason')}"
    if step == "alias" and record.options.alias is None:
        return "no alias was asked for"
    return None


def _attempt(name: str, function: StepFunction, context: StepContext, notify: Notify) -> None:
    """Run one step until it succeeds or may not be tried again."""
    record, step = context.record, context.record.steps[name]

    def told(state: RetryCallState) -> None:
        assert state.outcome is not None
        step.error = str(state.outcome.exception())
        notify(f"{name} failed ({step.error}); trying again")

    retrying = Retrying(
        stop=stop_after_attempt(record.options.attempts),
        wait=RETRY_WAIT_S,
        retry=retry_if_exception_type(RETRIED),
        before_sleep=told,
        reraise=True,
    )
    began = time.monotonic()
    step.status = "running"
    try:
        for attempt in retrying:
            with attempt:
                step.attempts += 1
                record.save(context.paths)
                notify(name)
                step.result = function(context)
    except RETRIED as error:
        step.status, step.error = "failed", str(error)
        raise CommandError(
            f"step {name!r} failed {record.options.attempts} times, the last with: {error}. Once mended, continue with: "
            f"shortlist pipeline run --dataset {record.dataset} --resume"
        ) from error
    finally:
        step.seconds = round(step.seconds + time.monotonic() - began, 3)
    step.status, step.error = "done", None


def _mlflow_run(record: PipelineRecord, stack: StackState) -> Run:
    """The run's own MLflow run, beside those of the studies; a continued run takes up its old one."""
    client = connect(stack.mlflow_uri)
    if record.mlflow_run_id is not None:
        run = Run(client, record.mlflow_run_id)
        with contextlib.suppress(RegistryError):  # somebody may have deleted it: a new one takes its place
            run.reopen()
            return run
    run = Run.create(
        client,
        experiment_id(client, f"shortlist-{record.dataset}"),
        f"pipeline {record.run_id}",
        tags={KIND_TAG: "pipeline", "shortlist.dataset": record.dataset, "shortlist.pipeline_run": record.run_id},
    )
    run.log_params(record.options.model_dump(mode="json"))
    return run


def _close(run: Run, record: PipelineRecord, error: BaseException | None) -> None:
    """Tell MLflow how it went; MLflow being gone by now does not change that."""
    try:
        run.log_metrics({f"seconds.{name}": step.seconds for name, step in record.steps.items()})
        run.log_json(record.model_dump(mode="json"), "pipeline.json")
        version = record.steps["train"].result.get("model_version") if "train" in record.steps else None
        run.set_tags({"shortlist.pipeline_status": record.status} | ({"shortlist.model_version": version} if version else {}))
        if error is None:
            run.end()
        else:
            run.fail(error)
    except Exception as failure:  # the outcome is on disk; a lost copy of it must not hide the error on its way out
        if error is None:
            raise RegistryError(f"the run is finished, and MLflow could not be told: {failure}") from failure
