"""Experiment files: what is accepted, and the one line that each mistake earns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import experiments
from experiments.errors import FrozenSpecError, SpecError
from experiments.spec import ExperimentSpec, load_spec, parse_spec

DEMO = Path(experiments.__file__).parent / "ab" / "demo.toml"


def demo(**changes: Any) -> dict[str, Any]:
    return {**load_spec(DEMO).model_dump(mode="json"), **changes}


def test_the_demo_file_splits_half_of_the_traffic_in_two() -> None:
    spec = load_spec(DEMO)
    assert spec.traffic == 0.5
    assert spec.weights == (0.5, 0.5)
    assert [variant.model for variant in spec.variants] == ["champion", "challenger"]
    assert spec.metrics.primary.name == "ctr"
    assert spec.metrics.guardrails[0].margin == 0.1


def test_a_spec_survives_json() -> None:
    spec = load_spec(DEMO)
    assert ExperimentSpec.model_validate_json(spec.model_dump_json()) == spec


def test_weights_are_relative() -> None:
    variants = [{"name": name, "model": 7, "weight": weight} for name, weight in (("a", 3), ("b", 1))]
    spec = parse_spec(demo(variants=variants))
    assert spec.weights == (0.75, 0.25)
    assert spec.variants[0].model == "7"


VARIANT = {"name": "a", "model": "champion", "weight": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"traffic": 1.5}, r"traffic: .*less than or equal to 1 \(got 1.5\)"),
        ({"name": "Has Space"}, "name 'Has Space' must be"),
        ({"unit": "cookie"}, "unit: .*'user_id' or 'session_id'"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"variants": [VARIANT]}, "variants: "),
        ({"variants": [VARIANT, VARIANT]}, "names must differ"),
        ({"variants": [VARIANT, {"name": "b", "model": "x", "weight": 0}]}, "at least two variants"),
        ({"variants": [VARIANT, {"name": "b", "weight": 1}]}, "variant 'b' needs either model or params"),
        ({"variants": [VARIANT, {"name": "b", "params": {}, "weight": 1}]}, "every variant"),
        ({"variants": [VARIANT, {"name": "b", "model": "x", "weight": -1}]}, r"variants\.1\.weight"),
        ({"metrics": {"primary": "clickiness"}}, "unknown metric 'clickiness': name one of ctr"),
        ({"metrics": {"primary": {"name": "m", "kind": "mean", "actions": ["view"], "per": "exposure"}}}, "`per` belongs to"),
        ({"layer_range": [0.5, 0.5]}, "layer_range"),
        ({"ramp": {"steps": [0.5, 0.2]}}, "ramp steps must rise"),
        ({"decision": {"alpha": 0}}, "decision.alpha"),
    ],
)
def test_a_mistake_is_one_line_naming_field_and_limit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as error:
        parse_spec(demo(**changes), source="x.toml")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("x.toml: ")


@pytest.mark.parametrize("truth", [True, False])
@pytest.mark.parametrize(
    "field",
    [
        "traffic",
        "holdout",
        "layer_range.1",
        "variants.0.weight",
        "metrics.guardrails.0.margin",
        "decision.alpha",
        "decision.minimum_exposures",
        "decision.horizon_days",
        "decision.tuning_units",
        "ramp.steps.0",
    ],
)
def test_a_truth_value_is_no_number(field: str, truth: bool) -> None:
    spec = demo(ramp={"steps": [0.6, 0.7]})
    *way, last = (int(part) if part.isdigit() else part for part in field.split("."))
    inside: Any = spec
    for part in way:
        inside = inside[part]
    inside[last] = truth
    with pytest.raises(SpecError, match=rf"{re.escape(field)}: must be a number, not true or false \(got {truth}\)") as error:
        parse_spec(spec)
    assert error.value.field == field


def test_whole_numbers_are_shares_too() -> None:
    spec = parse_spec(demo(traffic=1, layer_range=[0, 1], holdout=0, ramp={"steps": [1]}))
    assert (spec.traffic, spec.layer_range, spec.holdout) == (1.0, (0.0, 1.0), 0.0)


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no experiment file"):
        load_spec(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(SpecError, match=r"bad\.toml is not TOML"):
        load_spec(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(tmp_path / "binary.toml")


def test_only_traffic_and_ramp_may_change_after_the_start() -> None:
    started = load_spec(DEMO)
    started.check_change(parse_spec(demo(traffic=0.9, ramp={"steps": [0.9, 1.0]})))
    with pytest.raises(FrozenSpecError, match="salt cannot change from 'demo-1' to 'x'"):
        started.check_change(parse_spec(demo(salt="x")))


def test_traffic_does_not_fall_after_the_start() -> None:
    started = parse_spec(demo(traffic=0.5))
    started.check_change(parse_spec(demo(traffic=0.5)))
    with pytest.raises(FrozenSpecError, match="units would leave their variant"):
        started.check_change(parse_spec(demo(traffic=0.4)))
