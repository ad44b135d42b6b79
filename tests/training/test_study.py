"""Study files: what is refused, with which words, and how trials are shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import StudyError
from training.study import Study, load_study, parse_study

STUDIES = Path(__file__).parents[2] / "experiments" / "studies"


def study(**changes: Any) -> dict[str, Any]:
    """A valid study with a few keys replaced."""
    knn = {"model": "transition_knn", "space": {"window": {"type": "int", "low": 1, "high": 9}}}
    return {"name": "world", "sources": [{"model": "popularity"}, knn], **changes}


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_study_that_we_ship_is_valid_and_named_after_its_file(path: Path) -> None:
    assert load_study(path).name == path.stem


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"model": "magic"}, r"unknown model 'magic'; known: .*popularity"),
        ({"model": "popularity", "fixed": {"half_life": 3}}, r"has no parameter 'half_life'; it has: half_life_days"),
        ({"model": "popularity", "fixed": {"half_life_days": -1}}, r"'half_life_days': -1 is not allowed"),
        (
            {"model": "popularity", "space": {"half_life_days": {"type": "float", "low": 0, "high": 9}}},
            r"'half_life_days': 0.0 is not allowed",
        ),
        ({"model": "popularity", "space": {"half_life_days": {"type": "float", "low": 9, "high": 9}}}, r"low 9.0 must be below"),
        ({"model": "popularity", "space": {"half_life_days": {"type": "float", "low": -1, "high": 9, "log": True}}}, "above 0"),
        ({"model": "popularity", "space": {"half_life_days": {"type": "normal", "low": 1}}}, r"float.*int.*categorical"),
        ({"model": "popularity", "quota": 0}, "greater than or equal to 1"),
        ({"model": "popularity", "kwota": 3}, r"unknown key; known here: .*quota"),
        (
            {
                "model": "popularity",
                "fixed": {"half_life_days": 3},
                "space": {"half_life_days": {"type": "float", "low": 1, "high": 9}},
            },
            "both fixed and searched",
        ),
    ],
)
def test_a_wrong_source_is_refused_with_what_is_allowed(source: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        parse_study(study(sources=[source]), "world.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "ndcg@7"}, r"unknown metric 'ndcg@7'; known: .*ndcg@\{5,10,20,50\}"),
        ({"metric": "loss"}, "unknown metric"),
        ({"protocol": "random"}, "leave-one-out"),
        ({"among": "cold"}, 'goes with protocol = "cold-items"'),
        ({"trials": 0}, "greater than or equal to 1"),
        ({"minutes": 0}, "greater than 0"),
        ({"sources": []}, "at least 1"),
        ({"seeds": 3}, r"unknown key; known here: .*seed"),
        ({"sources": [{"model": "popularity"}, {"model": "popularity"}]}, "listed twice"),
        ({"name": "My Study"}, "match"),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        parse_study(study(**changes), "world.toml")
    assert "\n" not in str(caught.value)
    assert "world.toml" in str(caught.value)


def test_an_unreadable_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="No such file"):
        load_study(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(StudyError, match="not valid TOML"):
        load_study(broken)


def test_the_digest_follows_the_content_and_nothing_else() -> None:
    assert parse_study(study(), "a").digest() == parse_study(study(), "b").digest()
    assert parse_study(study(), "a").digest() != parse_study(study(seed=1), "a").digest()


def test_an_outcome_has_nothing_left_to_search_and_reads_back(tmp_path: Path) -> None:
    chosen = parse_study(study(), "a").with_configs({"popularity": {}, "transition_knn": {"window": 4}})
    assert not chosen.searches
    (tmp_path / "outcome.json").write_text(chosen.model_dump_json())
    assert load_study(tmp_path / "outcome.json") == chosen


@given(
    dimensions=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    trials=st.integers(1, 60),
)
def test_trials_are_shared_within_the_cap_and_every_source_gets_one_first(dimensions: list[int], trials: int) -> None:
    names = ["window", "gap_decay", "history_decay", "source_exponent", "target_exponent"]
    spaces = [
        {
            name: {"type": "int", "low": 1, "high": 9} if name == "window" else {"type": "float", "low": 0.1, "high": 0.9}
            for name in names[:count]
        }
        for count in dimensions
    ]
    found = Study.model_validate(
        study(sources=[{"model": "transition_knn", "name": f"s{i}", "space": space} for i, space in enumerate(spaces)])
    )
    shares = found.allocation(trials)
    assert sum(shares.values()) <= trials
    if trials >= len(spaces):
        assert min(shares.values()) >= 1
    if any(dimensions) and trials >= len(spaces):
        assert sum(shares.values()) == trials
    assert all(shares[f"s{i}"] <= 1 for i, count in enumerate(dimensions) if count == 0)
    for i, few in enumerate(dimensions):
        assert all(shares[f"s{i}"] <= shares[f"s{j}"] + 1 for j, many in enumerate(dimensions) if few <= many)


def test_a_source_never_gets_more_trials_than_it_asks_for() -> None:
    sources = study()["sources"]
    sources[1]["trials"] = 3
    assert parse_study(study(sources=sources, trials=50), "a").allocation() == {"popularity": 1, "transition_knn": 3}
