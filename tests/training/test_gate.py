"""The gate on planted outcomes: who passes, who fails, and why."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from training.gate import GateRule, Validated, decide


def validated(ndcg: np.ndarray, *, history: int | np.ndarray = 30, name: str = "version 1", **changes: str) -> Validated:
    users = [f"u{i}" for i in range(len(ndcg))]
    table = pd.DataFrame({"user_id": users, "history_length": history, "ndcg@10": ndcg})
    return Validated(**{"dataset": "world", "protocol": "leave-one-out", "per_user": table, "name": name, **changes})


@pytest.fixture
def champion(rng: np.random.Generator) -> np.ndarray:
    """NDCG@10 of 1,000 users as leave-one-out gives it: mostly zero, mean about 0.12."""
    return np.where(rng.random(1000) < 0.25, rng.uniform(0.29, 1.0, 1000), 0.0) * 0.75


def test_the_first_version_has_nothing_to_beat(champion: np.ndarray) -> None:
    assert decide(validated(champion), None).verdict == "first"


def test_an_equal_version_passes(champion: np.ndarray) -> None:
    assert decide(validated(champion), validated(champion)).verdict == "pass"


def test_an_equal_model_of_another_seed_passes_nearly_always(champion: np.ndarray, rng: np.random.Generator) -> None:
    verdicts = []
    for _ in range(40):
        moved = champion.copy()
        swap = rng.random(len(champion)) < 0.15
        moved[swap] = rng.permutation(champion[swap])
        verdicts.append(decide(validated(moved), validated(champion)).verdict)
    assert verdicts.count("pass") >= 36


def test_a_version_that_loses_a_fifth_fails_and_says_how_much(champion: np.ndarray) -> None:
    decision = decide(validated(champion * 0.8), validated(champion))
    assert decision.verdict == "fail"
    assert "worse beyond the tolerance" in decision.reason
    assert "1000 users" in decision.reason


def test_a_certain_but_tiny_loss_passes(champion: np.ndarray) -> None:
    assert decide(validated(champion * 0.995), validated(champion)).verdict == "pass"


def test_a_gain_on_regulars_does_not_pay_for_newcomers(champion: np.ndarray) -> None:
    history = np.where(np.arange(1000) < 200, 3, 50)
    candidate = np.where(history == 3, champion * 0.3, champion * 1.3)
    decision = decide(validated(candidate, history=history), validated(champion, history=history))
    assert decision.verdict == "fail"
    assert "10 interactions or fewer" in decision.reason
    few = np.where(np.arange(1000) < 20, 3, 50)
    assert decide(validated(np.where(few == 3, 0, champion), history=few), validated(champion, history=few)).verdict == "pass"


def test_what_cannot_be_compared_fails_with_the_reason(champion: np.ndarray) -> None:
    mine = validated(champion)
    assert "dataset 'world', the champion on 'other'" in decide(mine, validated(champion, dataset="other")).reason
    assert "run its study with protocol temporal" in decide(mine, validated(champion, protocol="temporal")).reason
    strangers = Validated("world", "leave-one-out", mine.per_user.assign(user_id=lambda t: "x" + t["user_id"]), "version 1")
    decision = decide(mine, strangers)
    assert decision.verdict == "fail"
    assert "only 0 of the 1000 users" in decision.reason


def test_the_rule_s_limits_are_used(champion: np.ndarray) -> None:
    worse = validated(champion * 0.8)
    lenient = GateRule(tolerance=0.5, margin=0.5)
    assert decide(worse, validated(champion), lenient).verdict == "pass"
