"""Planted worlds: the report finds what is there, refuses what cannot be read, and counts what is not clean."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from experiments.assignment import Splitter
from experiments.exposure import EXPOSURE_SCHEMA, Exposure, decode_exposures
from experiments.inference import Estimate, NotEstimable
from experiments.metrics import BUILT_IN
from experiments.outcomes import EVENT_COLUMNS, EXPOSURE_COLUMNS, compute_outcomes, counted_actions
from experiments.report import Report, build_report
from experiments.spec import ExperimentSpec, parse_spec
from features.events import EVENT_SCHEMA

START = datetime(2026, 11, 1, tzinfo=UTC)
NOW = START + timedelta(days=30)
EVENTS = pa.schema([EVENT_SCHEMA.field(name) for name in EVENT_COLUMNS])


def make_spec(**changes: Any) -> ExperimentSpec:
    raw: dict[str, Any] = {
        "name": "world",
        "salt": "world-1",
        "variants": [{"name": "control", "model": "1", "weight": 1}, {"name": "treatment", "model": "2", "weight": 1}],
        "metrics": {"primary": "ctr", "secondary": ["active"], "guardrails": [{"name": "rejections", "margin": 0.2}]},
        "decision": {"horizon_days": 7, "minimum_exposures": 50},
    }
    return parse_spec({**raw, **changes})


def expose(unit: str, variant: str, day: float, recommendation: str, experiment: str = "world") -> Exposure:
    return Exposure(recommendation, experiment, variant, "user_id", unit, START + timedelta(days=day), "cache", ["a"], user_id=unit)


def exposure_table(exposures: list[Exposure]) -> pa.Table:
    return decode_exposures([one.encode() for one in exposures]) if exposures else EXPOSURE_SCHEMA.empty_table()


def event_table(rows: list[tuple[str, str, float, str | None, float | None]]) -> pa.Table:
    """(user, action, day, recommendation_id, value)."""
    columns = list(zip(*rows, strict=True)) or [()] * 5
    times = [START + timedelta(days=day) for day in columns[2]]
    return pa.table(
        [
            pa.array(columns[0], pa.string()),
            pa.nulls(len(rows), pa.string()),
            pa.array(columns[1], pa.string()),
            pa.array(columns[4], pa.float64()),
            pa.array(times, EVENTS.field("timestamp").type),
            pa.array(columns[3], pa.string()),
        ],
        schema=EVENTS,
    )


def simulate(
    rng: np.random.Generator, users: int, click_rates: tuple[float, float], dismiss_rates: tuple[float, float] = (0.3, 0.3)
) -> tuple[pa.Table, pa.Table]:
    """Users assigned by the real splitter; each gets 5 answers and clicks, with a taste of its own, on some."""
    ids = [f"u{number}" for number in range(users)]
    variants = Splitter(make_spec()).variant_indices(ids)
    owner, day = np.repeat(np.arange(users), 5), np.tile(np.arange(5), users) + rng.random(5 * users)
    names = np.array(ids)[owner]
    recommendations = [f"{user}-{int(when)}" for user, when in zip(names, day, strict=True)]
    constant = {"site": "local", "experiment": "world", "unit": "user_id", "served_from": "cache", "degraded": False}
    columns: dict[str, Any] = {name: [value] * len(owner) for name, value in constant.items()}
    columns |= {"exposure_id": recommendations, "recommendation_id": recommendations, "unit_id": names, "user_id": names}
    columns |= {"variant": np.array(["control", "treatment"])[variants[owner]], "item_ids": [["a"]] * len(owner)}
    columns |= {"at": [START + timedelta(days=float(when)) for when in day]}
    arrays = [pa.array(columns.get(field.name, [None] * len(owner)), field.type) for field in EXPOSURE_SCHEMA]
    exposures = pa.table(arrays, schema=EXPOSURE_SCHEMA)
    taste = rng.beta(4, 4, users) * 2
    clicked = np.flatnonzero(rng.random(len(owner)) < np.array(click_rates)[variants[owner]] * taste[owner])
    events = [(str(names[at]), "click", float(day[at]) + 0.01, recommendations[at], None) for at in clicked]
    dismissed = np.flatnonzero(rng.random(users) < np.array(dismiss_rates)[variants])
    return exposures, event_table([*events, *((ids[user], "dismiss", 5.5, None, None) for user in dismissed)])


def report(spec: ExperimentSpec, exposures: pa.Table, events: pa.Table, **changes: Any) -> Report:
    return build_report(spec, exposures, events, **{"now": NOW, "started_at": START, **changes})


def test_a_planted_lift_is_found_and_shipped(rng: np.random.Generator) -> None:
    found = report(make_spec(), *simulate(rng, 4000, (0.10, 0.15)))
    ctr = found.metrics[0]
    assert ctr.means["control"] == pytest.approx(0.10, abs=0.01)
    absolute, relative = ctr.comparisons[0].absolute, ctr.comparisons[0].relative
    assert isinstance(absolute, Estimate)
    assert isinstance(relative, Estimate)
    assert absolute.low < 0.05 < absolute.high
    assert relative.low < 0.5 < relative.high
    assert (found.decision.verdict, found.decision.variant) == ("ship", "treatment")
    assert [variant.exposures / variant.units for variant in found.variants] == [5, 5]
    json.dumps(found.to_dict())


def test_a_report_is_the_same_of_what_it_counts_alone(rng: np.random.Generator) -> None:
    """Of each kind of metric: a readers' columns and actions leave nothing out that any of them counts."""
    bought = {"name": "bought_per_click", "kind": "ratio", "actions": ["purchase"], "per": ["click"]}
    spec = make_spec(metrics={"primary": "ctr", "secondary": ["active", "revenue", bought], "guardrails": []})
    exposures, events = simulate(rng, 600, (0.3, 0.4))
    users = [f"u{number}" for number in range(600)]
    more = [(user, "purchase", 3.0, None, 2.5) for user in users[::3]]
    more += [(user, action, 2.0, None, None) for user in users for action in ("impression", "dismiss")]
    events = pa.concat_tables([events, event_table(more)])
    counted = counted_actions(spec)
    assert "purchase" in counted
    assert counted.isdisjoint({"impression", "dismiss"})
    some = events.filter(pc.is_in(events["action"], value_set=pa.array(sorted(counted))))
    assert some.num_rows < events.num_rows
    full = report(spec, exposures, events)
    assert isinstance(full.metrics[-1].comparisons[0].absolute, Estimate)
    assert report(spec, exposures.select(EXPOSURE_COLUMNS), some).to_dict() == full.to_dict()


def test_a_planted_loss_is_not_shipped(rng: np.random.Generator) -> None:
    assert report(make_spec(), *simulate(rng, 4000, (0.15, 0.10))).decision.verdict == "do_not_ship"


def test_no_difference_is_inconclusive_at_the_end_and_open_before(rng: np.random.Generator) -> None:
    tables = simulate(rng, 2000, (0.1, 0.1))
    assert report(make_spec(), *tables).decision.verdict == "inconclusive"
    early = report(make_spec(), *tables, now=START + timedelta(days=6))
    assert early.decision.verdict == "keep_running"
    assert any("late outcomes" in note for note in early.notes)
    assert early.complete_windows == 0


def test_a_violated_guardrail_outweighs_a_better_primary(rng: np.random.Generator) -> None:
    found = report(make_spec(), *simulate(rng, 4000, (0.10, 0.15), (0.2, 0.6)))
    assert found.decision.verdict == "do_not_ship"
    assert found.decision.reasons == ("treatment: guardrail rejections is violated",)
    assert found.metrics[-1].comparisons[0].guardrail == "violated"


def test_a_fixed_horizon_test_is_read_at_its_end_alone(rng: np.random.Generator) -> None:
    spec = make_spec(decision={"horizon_days": 7, "minimum_exposures": 50, "sequential": False})
    tables = simulate(rng, 4000, (0.10, 0.15))
    assert report(spec, *tables, now=START + timedelta(days=6)).decision.verdict == "keep_running"
    assert report(spec, *tables).decision.verdict == "ship"


def test_lost_exposures_of_one_variant_block_the_report(rng: np.random.Generator) -> None:
    exposures, events = simulate(rng, 4000, (0.10, 0.15))
    lost = np.array([name == "treatment" for name in exposures["variant"].to_pylist()]) & (
        np.array([int(user[1:]) % 5 == 0 for user in exposures["unit_id"].to_pylist()])
    )
    found = report(make_spec(), exposures.filter(pa.array(~lost)), events)
    assert found.decision.verdict == "blocked"
    assert found.decision.variant is None


def test_few_units_are_not_judged(rng: np.random.Generator) -> None:
    found = report(make_spec(), *simulate(rng, 60, (0.1, 0.9)))
    assert found.decision.verdict == "keep_running"
    assert "minimum_exposures asks for 50" in found.decision.reasons[0]


def test_an_experiment_without_data_says_so() -> None:
    found = report(make_spec(), EXPOSURE_SCHEMA.empty_table(), EVENTS.empty_table())
    assert found.ratio == NotEstimable("no unit was exposed yet")
    assert found.metrics[0].means == {"control": None, "treatment": None}
    assert found.decision.verdict == "keep_running"
    json.dumps(found.to_dict())


def test_only_events_inside_the_units_window_count() -> None:
    spec = make_spec(metrics={"primary": {"name": "clicks", "kind": "mean", "actions": ["click"]}})
    exposures = exposure_table([expose("u", "control", day, f"r{day}") for day in (2, 3, 9.5)])
    days = [1.99, 2.0, 5.0, 8.99, 9.0, 9.6]
    outcomes = compute_outcomes(spec, exposures, event_table([("u", "click", day, None, None) for day in days]), NOW)
    assert outcomes.metrics["clicks"].numerator.tolist() == [3]
    assert outcomes.exposures.tolist() == [2]


def test_attributed_events_are_credited_to_the_answers_unit_and_no_other() -> None:
    exposures = exposure_table(
        [expose("u", "control", 0, "r1"), expose("v", "treatment", 0, "r2"), expose("w", "control", 0, "x", experiment="other")]
    )
    events = event_table(
        [
            ("u", "click", 1, "r1", None),
            ("u", "click", 1, None, None),
            ("u", "click", 1, "nobody's", None),
            ("someone", "click", 1, "r2", None),
            ("w", "click", 1, "x", None),
            ("u", "view", 1, "r1", None),
            ("v", "click", -0.1, "r2", None),  # a clock that is late
        ]
    )
    outcomes = compute_outcomes(make_spec(), exposures, events, NOW)
    assert outcomes.metrics["ctr"].numerator.tolist() == [1, 2]
    assert outcomes.metrics["active"].numerator.tolist() == [1, 0]


def test_units_that_met_several_variants_are_left_out_and_counted() -> None:
    exposures = exposure_table(
        [
            expose("u", "control", 0, "r1"),
            expose("u", "treatment", 1, "r2"),
            expose("v", "control", 0, "r3"),
            expose("w", "gone", 0, "r4"),
        ]
    )
    found = report(make_spec(), exposures, EVENTS.empty_table())
    assert [variant.units for variant in found.variants] == [1, 0]
    assert any("1 units met more than one variant" in note for note in found.notes)
    assert any("1 units have a variant that the file does not name" in note for note in found.notes)


def test_outcomes_agree_with_a_slow_reading_of_the_definition(rng: np.random.Generator) -> None:
    spec = make_spec(
        metrics={
            "primary": {"name": "clicks_per_view", "kind": "ratio", "actions": ["click"], "per": ["view"]},
            "secondary": [
                "revenue",
                "conversion",
                "hits",
                {**BUILT_IN["ctr"], "name": "rate", "attributed": False},
            ],
        }
    )
    users = [f"u{number}" for number in range(12)]
    exposures = [
        expose(user, "control" if number % 2 else "treatment", float(rng.uniform(0, 12)), f"{user}-{turn}")
        for number, user in enumerate(users[:9])
        for turn in range(3)
    ]
    answers = [one.recommendation_id for one in exposures]
    events = [
        (
            str(rng.choice(users)),
            str(rng.choice(["click", "view", "purchase", "dismiss"])),
            float(rng.uniform(0, 20)),
            str(rng.choice(answers)) if rng.random() < 0.5 else None,
            float(rng.integers(1, 9)) if rng.random() < 0.7 else None,
        )
        for _ in range(400)
    ]
    found = compute_outcomes(spec, exposure_table(exposures), event_table(events), NOW)
    for row, user in enumerate(sorted({one.unit_id for one in exposures})):
        first = min(one.at for one in exposures if one.unit_id == user)

        def inside(day: float, first: datetime = first) -> bool:
            return first <= START + timedelta(days=day) < first + timedelta(days=7)

        own = [event for event in events if event[0] == user and inside(event[2])]
        ends = first + timedelta(days=7)
        quoting = [event for event in events if event[3] is not None and event[3].startswith(f"{user}-")]
        credited = [event for event in quoting if START + timedelta(days=event[2]) < ends]
        clicks = sum(event[1] == "click" for event in own)
        assert found.metrics["clicks_per_view"].numerator[row] == clicks
        assert found.metrics["clicks_per_view"].denominator is not None
        assert found.metrics["clicks_per_view"].denominator[row] == sum(event[1] == "view" for event in own)
        assert found.metrics["revenue"].numerator[row] == sum(event[4] or 0 for event in own if event[1] == "purchase")
        assert found.metrics["conversion"].numerator[row] == any(event[1] == "purchase" for event in own)
        assert found.metrics["hits"].numerator[row] == sum(event[1] in {"click", "view", "purchase"} for event in credited)
        shown = sum(one.unit_id == user and one.at < first + timedelta(days=7) for one in exposures)
        assert found.exposures[row] == shown
        assert found.metrics["rate"].denominator is not None
        assert found.metrics["rate"].denominator[row] == shown


def test_several_treatments_share_the_error_rate(rng: np.random.Generator) -> None:
    two = report(make_spec(), *simulate(rng, 2000, (0.1, 0.1)))
    variants = [{"name": name, "model": "1", "weight": 1} for name in ("control", "treatment", "third")]
    exposures, events = simulate(rng, 2000, (0.1, 0.1))
    three = report(make_spec(variants=variants), exposures, events)
    widths = []
    for one in (two, three):
        absolute = one.metrics[0].comparisons[0].absolute
        assert isinstance(absolute, Estimate)
        widths.append((absolute.high - absolute.low) / absolute.standard_error)
    assert widths[1] > widths[0]


def test_a_guardrail_on_what_never_happens_holds(rng: np.random.Generator) -> None:
    found = report(make_spec(), *simulate(rng, 4000, (0.10, 0.15), (0.0, 0.0)))
    assert found.metrics[-1].comparisons[0].guardrail == "holds"
    assert found.decision.verdict == "ship"


def test_a_guardrail_sees_that_everything_stopped(rng: np.random.Generator) -> None:
    """Nobody is active any more in the treatment: there is no relative interval around -100 %, and yet nothing is clearer."""
    metrics = {"primary": "revenue", "guardrails": [{"name": "active", "margin": 0.1}, {"name": "rejections", "margin": 0.2}]}
    found = report(make_spec(metrics=metrics), *simulate(rng, 2000, (0.5, 0.0), (0.0, 0.3)))
    _, active, rejections = found.metrics
    assert isinstance(active.comparisons[0].relative, NotEstimable)
    assert active.comparisons[0].guardrail == "violated"
    assert isinstance(rejections.comparisons[0].relative, NotEstimable)
    assert rejections.comparisons[0].guardrail == "violated"
    assert found.decision.verdict == "do_not_ship"
