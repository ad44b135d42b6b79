"""Promotion on the whole stack: in the MLflow UI by a real browser, over our API, and what the log says of it afterwards."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from sqlalchemy import select

from features.control_store import ControlStore
from serving.standby import waiting
from serving.webhooks import DELIVERIES
from shortlist.bench.stack import title

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

MODEL = "shortlist-planted"


def test_mlflow_itself_delivers_what_has_moved_signed_and_once(rollout) -> None:
    """Polling would follow the alias as well: this is the webhook, from MLflow's process to the gateway's."""
    store = ControlStore(rollout.settings.control_url)

    def deliveries() -> int:
        with store.begin() as connection:
            return len(connection.execute(select(DELIVERIES.c.delivery_id)).all())

    before = deliveries()
    rollout.registry.set_alias("challenger", "2")
    rollout.wait(lambda: deliveries() > before, "a delivery that the gateway accepted")
    store.close()


def test_the_next_version_takes_the_process_that_was_kept_ready(rollout) -> None:
    """Ray's own calls for it are not public: this says when a release of Ray has changed them."""
    home = rollout.settings.home.absolute()

    def ready() -> set[int]:
        return {one.pid for one in waiting(home) if title(one).startswith("ray::IDLE")}

    rollout.wait(lambda: not rollout.replicas("2"), "what the test before has loaded to end")
    # A machine that takes longer to start one than the next look is away has two.
    rollout.wait(
        lambda: ready() and ready() == {one.pid for one in waiting(home)}, "processes that are kept ready, none on its way"
    )
    kept = ready()
    rollout.registry.set_alias("champion", "2")
    rollout.wait_for("2")
    taken = {one.pid for one in rollout.replicas("2")}
    assert taken
    assert taken <= kept
    rollout.wait(lambda: ready() - taken, "another one")


def chromium() -> str:
    found = os.environ.get("SHORTLIST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("no Chromium: set SHORTLIST_CHROMIUM or install it (apt-get install chromium)")
    return found


@pytest.mark.browser
def test_an_alias_set_in_the_mlflow_ui_is_served_without_a_failed_request(rollout, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    binary = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{rollout.state.mlflow_uri}/#/models/{MODEL}/versions/2")
        page.locator('[data-component-id*="modelversionviewaliaseditor"]').first.click()
        box = page.get_by_role("combobox").last
        box.fill("champion")
        box.press("Enter")
        with rollout.load() as load:
            rollout.wait(lambda: len(load.answers) > 50, "load")
            page.locator('[data-component-id="mlflow.edit-aliases-modal.save-button"]').click()
            rollout.wait(lambda: rollout.registry.aliases().get("champion") == "2", "the alias in the registry")
            rollout.wait_for("2")
        browser.close()
    assert load.statuses == {200}
    assert {"1", "2"} <= set(load.versions)
    assert rollout.tag("2") == "live"
    (tag,) = [entry for entry in rollout.control.audit.entries() if entry.subject == "alias:champion"][-1:]
    assert (tag.actor, tag.before, tag.after) == ("mlflow", "1", "2")
