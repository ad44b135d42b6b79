"""The nightly job on the real stack: what users did becomes a version that is served, step by step, with a record in MLflow."""

from __future__ import annotations

import pytest

from features.paths import DatasetPaths
from shortlist.client import Client
from shortlist.demo.flow import DemoResult, study
from shortlist.pipeline.record import records
from shortlist.runner import Runner
from shortlist.settings import Settings
from tests.integration.conftest import OVERRIDES
from training.model_version import SERVING_TAG
from training.registry import Registry
from training.tracking import connect

pytestmark = [pytest.mark.integration, pytest.mark.timeout(2400)]


def test_new_activity_becomes_a_served_version(demo: DemoResult, admin: Client, stack_settings: Settings) -> None:
    user = demo.users[20]
    clicked = admin.get_recommendations(user, 3)
    for item in clicked:
        admin.log_user_activity(user, item, "click")
    runner = Runner((*OVERRIDES, f"home={stack_settings.home}"))
    words = ("--dataset", demo.dataset, "--study", study("first"), "--alias", "nightly")
    done = runner.run("pipeline", "run", *words)
    assert (done["status"], done["promoted"]) == ("done", True), done
    assert all(step["status"] == "done" and step["attempts"] == 1 for step in done["steps"].values())

    registry = Registry(demo.state.mlflow_uri, demo.dataset)
    assert registry.aliases()["nightly"] == done["model_version"]
    assert registry.version(done["model_version"]).tags[SERVING_TAG] == "live"
    answer = admin.recommend(user_id=user, top_k=50, model_version=done["model_version"])
    assert answer["model_version"] == done["model_version"]
    assert not set(clicked) & {item["item_id"] for item in answer["recommended_items"]}
    run = connect(demo.state.mlflow_uri).get_run(done["mlflow_run_id"])
    assert (run.info.status, run.data.tags["shortlist.pipeline_status"]) == ("FINISHED", "done")

    (record,) = records(DatasetPaths(stack_settings.home, demo.dataset))
    record.steps["precompute"].status = "waiting"  # as a crash between precompute and its record leaves it
    record.status = "running"
    record.save(DatasetPaths(stack_settings.home, demo.dataset))
    again = runner.run("pipeline", "run", "--dataset", demo.dataset, "--resume")
    assert (again["run_id"], again["model_version"], again["status"]) == (done["run_id"], done["model_version"], "done")
    assert len(registry.versions()) == int(done["model_version"])
