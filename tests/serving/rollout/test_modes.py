"""update_model on the whole stack, over HTTP and from Python: canary, shadow, rollback; and the audit log afterwards."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from serving.control import experiment_json
from shortlist.client import ApiError

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

MODEL = "shortlist-planted"


def test_a_shadow_is_scored_on_live_requests_and_never_shown(rollout) -> None:
    done = rollout.admin.update_model(MODEL, {"version": "2", "mode": "shadow"})
    assert (done["alias"], done["version"]) == ("shadow", "2")
    rollout.wait(lambda: rollout.admin.models()["shadow"]["live"], "the shadow to run")
    assert rollout.tag("2") == "shadow"
    assert rollout.admin.models()["live"] == ["1"]
    for user in range(60):
        # Seen items are not left out of cached lists, so that this one is computed.
        answer = rollout.http.post("/v1/recommendations", json={"user_id": f"u{user}", "exclude_seen": False}).json()
        assert (answer["model_version"], answer["served_from"]) == ("1", "online")
    rollout.wait(lambda: rollout.admin.models()["shadow"]["scored"] == 60, "60 scored answers")
    report = rollout.admin.models()["shadow"]
    assert 0 <= report["overlap_at_10"] < 1  # popularity does not agree with the walk
    assert report["failed"] == 0
    assert report["latency_ms"]["shadow"]["p50"] > 0
    assert "shortlist_shadow_total" in rollout.http.get("/metrics").text
    ended = rollout.admin.update_model(MODEL, {"mode": "shadow", "traffic": 0})
    assert "shadow" not in ended["aliases"]
    rollout.wait(lambda: rollout.control.state().shadow is None, "the shadow to be taken out")
    rollout.wait(lambda: rollout.tag("2") == "unloaded", "the shadow to be dropped")


def test_a_version_may_be_shown_and_shadow_at_once_and_sees_the_share_that_was_asked_for(rollout) -> None:
    rollout.admin.update_model(MODEL, {"version": "1", "mode": "shadow", "traffic": 0.5})
    rollout.wait(lambda: (rollout.admin.models()["shadow"] or {}).get("sample") == 0.5, "the sample")
    assert rollout.tag("1") == "live"  # the tag is the shown one's
    rollout.admin.update_model(MODEL, {"mode": "shadow", "traffic": 0})


def test_a_canary_is_an_experiment_that_ramps_and_ends_with_the_promotion(rollout) -> None:
    done = rollout.admin.update_model(MODEL, {"version": "2", "mode": "canary", "traffic": 0.2})
    canary = done["canary"]
    assert (canary["version"], canary["traffic"]) == ("2", 0.2)
    name = canary["experiment"]
    rollout.wait(lambda: rollout.admin.experiment(name)["status"] == "running", "the canary to run")

    def share() -> float:
        answers = [rollout.http.get(f"/v1/recommendations/someone{n}?top_k=1").json() for n in range(300)]
        return sum(one["model_version"] == "2" for one in answers) / len(answers)

    rollout.wait(lambda: share() > 0, "the canary to answer")
    assert 0.1 < share() < 0.3
    with pytest.raises(ApiError, match="version 1 is it"):
        rollout.admin.update_model(MODEL, {"version": "1", "mode": "canary"})
    ramped = rollout.admin.update_model(MODEL, {"version": "2", "mode": "canary", "traffic": 0.5})
    assert ramped["canary"] == {**canary, "traffic": 0.5, "status": "running"}
    rollout.wait(lambda: share() > 0.4, "the ramp")
    with pytest.raises(ApiError, match=r"traffic 0\.1 is below the canary's present 0\.5"):
        rollout.admin.update_model(MODEL, {"version": "2", "mode": "canary", "traffic": 0.1})
    assert rollout.admin.update_model(MODEL, {"version": "2", "mode": "canary"})["canary"]["traffic"] == 0.5
    assert rollout.admin.update_model(MODEL, {"version": "2"})["canary"] is None
    assert rollout.admin.experiment(name)["status"] == "stopped"
    rollout.wait_for("2")


def test_rollback_in_one_call_and_a_log_that_replays_to_every_state(rollout) -> None:
    seen: list[tuple[datetime, dict[str, Any]]] = []

    def note() -> None:
        # The state as it is, from the tables and the registry, at a moment when nothing moves.
        time.sleep(0.01)
        state = {
            "routing": rollout.admin.audit(subject="routing", limit=1000)["entries"][-1]["after"],
            "champion": rollout.control.state().champion,
            "alias:champion": rollout.registry.aliases()["champion"],
            "experiments": {one.spec.name: experiment_json(one) for one in rollout.control.experiments()},
        }
        seen.append((datetime.now(UTC), state))
        time.sleep(0.01)

    def settle(version: str) -> None:
        rollout.wait_for(version)
        wanted = {version}
        rollout.wait(lambda: set(rollout.control.state().versions) == wanted, f"only version {version} routed to")

    settle("1")
    note()
    rollout.admin.update_model(MODEL, {"version": "2", "mode": "promote"})
    settle("2")
    note()
    rolled = rollout.admin.rollback(MODEL)
    assert (rolled["version"], rolled["previous"]) == ("1", "2")
    settle("1")
    note()
    canary = rollout.admin.update_model(MODEL, {"version": "2", "mode": "canary"})["canary"]["experiment"]
    rollout.wait(lambda: rollout.admin.experiment(canary)["status"] == "running", "the canary")
    note()
    rollout.admin.stop_experiment(canary)
    settle("1")
    note()
    assert len({state["champion"] for _, state in seen}) == 2
    for at, state in seen:
        replayed = rollout.admin.audit(at=at)["state"]
        assert replayed["alias:champion"] == state["alias:champion"]
        assert replayed["routing"] == state["routing"]
        assert replayed["routing"]["champion"] == state["champion"]
        assert {key: value for key, value in replayed.items() if key.startswith("experiment:")} == {
            f"experiment:{name}": value for name, value in state["experiments"].items()
        }
