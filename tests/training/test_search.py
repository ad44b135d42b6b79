"""Proposals: defaults first, better than chance on a planted optimum, and a continued search goes on where it was."""

from __future__ import annotations

import math

import numpy as np

from training.search import Finished, Proposal, StudySearch
from training.study import Study


def study(trials: int, seed: int = 0) -> Study:
    space = {
        "window": {"type": "int", "low": 1, "high": 40},
        "gap_decay": {"type": "float", "low": 0.05, "high": 1.0},
        "history_decay": {"type": "float", "low": 0.05, "high": 1.0},
    }
    sources = [{"model": "popularity"}, {"model": "transition_knn", "space": space}]
    return Study.model_validate({"name": "world", "seed": seed, "trials": trials, "sources": sources})


def objective(proposal: Proposal) -> float:
    """A hill with its top at gap_decay 0.3 and history_decay 0.9; the window does not matter."""
    if proposal.source == "popularity":
        return -2.0
    return -math.hypot(proposal.params["gap_decay"] - 0.3, proposal.params["history_decay"] - 0.9)


def run(search: StudySearch, limit: int | None = None) -> list[tuple[Proposal, float]]:
    done: list[tuple[Proposal, float]] = []
    while (limit is None or len(done) < limit) and (proposal := search.ask()) is not None:
        value = objective(proposal)
        search.tell(proposal.source, proposal.number, value)
        done.append((proposal, value))
    return done


def test_the_first_proposal_is_the_model_s_defaults() -> None:
    done = run(StudySearch(study(5), study(5).allocation()))
    first = next(proposal for proposal, _ in done if proposal.source == "transition_knn")
    assert first.params == {"window": 10, "gap_decay": 0.7, "history_decay": 0.6}
    assert first.name == "transition_knn-000"


def test_budgets_are_used_exactly_and_sources_take_turns() -> None:
    done = run(StudySearch(study(12), study(12).allocation()))
    assert [p.source for p, _ in done].count("transition_knn") == 11
    assert [p.source for p, _ in done].count("popularity") == 1
    assert {p.source for p, _ in done[:2]} == {"transition_knn", "popularity"}
    assert len({p.name for p, _ in done}) == 12


def test_a_trial_outside_the_search_ends_it() -> None:
    search = StudySearch(study(12), study(12).allocation())
    done = run(search, limit=4)
    best = max((p for p, _ in done if p.params), key=objective)
    again = search.again(best.source, best.params, {**best.config, "window": 7})
    assert (again.number, again.params, again.config["window"]) == (3, best.params, 7)
    search.tell(again.source, again.number, 0.0)
    assert search.ask([best.source]) is None
    assert search.planned == 5


def test_the_search_beats_random_draws_on_a_planted_optimum(rng: np.random.Generator) -> None:
    found = [max(v for p, v in run(StudySearch(study(41, s), study(41, s).allocation())) if p.params) for s in range(3)]
    draws = rng.uniform(0.05, 1.0, size=(200, 40, 2))
    random_best = -np.hypot(draws[..., 0] - 0.3, draws[..., 1] - 0.9).min(axis=1)
    assert np.median(found) > np.median(random_best)


def test_equal_seeds_propose_equal_values() -> None:
    first, second = (run(StudySearch(study(10, 3), study(10, 3).allocation())) for _ in range(2))
    assert [p.params for p, _ in first] == [p.params for p, _ in second]


def test_a_continued_search_repeats_nothing_and_fills_the_gap() -> None:
    whole = study(20)
    done = run(StudySearch(whole, whole.allocation()), limit=9)
    lost = next(p for p, _ in done if p.number == 3)
    finished = [Finished(p.source, p.number, p.params, v) for p, v in done if p is not lost]
    search = StudySearch(whole, whole.allocation(), finished)
    rest = run(search)
    assert len(finished) + len(rest) == 20
    assert rest[0][0].number == 3
    assert not {p.name for p, _ in rest} & {f"{f.source}-{f.number:03d}" for f in finished}
    values = [tuple(p.params.values()) for p, _ in [*done, *rest] if p.params]
    assert len(set(values)) == len(values)


def test_what_was_learned_before_the_interruption_counts() -> None:
    whole = study(31)
    near = [({"window": 5, "gap_decay": 0.3 + n / 500, "history_decay": 0.9}, -n / 500) for n in range(12)]
    far = [({"window": 5, "gap_decay": 0.9, "history_decay": 0.1 + n / 100}, -1.0) for n in range(8)]
    finished = [Finished("transition_knn", n, params, value) for n, (params, value) in enumerate([*near, *far])]
    rest = [v for p, v in run(StudySearch(whole, whole.allocation(), finished)) if p.params]
    assert np.median(rest) > -0.3


def test_failed_trials_count_and_the_search_goes_on() -> None:
    whole = study(15)
    search = StudySearch(whole, whole.allocation())
    asked = 0
    while (proposal := search.ask()) is not None:
        asked += 1
        search.tell(proposal.source, proposal.number, None if asked % 2 else float("nan"))
    assert asked == 15
