"""The hash agrees with GrowthBook's published cases, and its column form with its scalar form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from experiments.assignment import choose_variation, get_bucket_ranges, get_equal_weights
from experiments.hashing import fnv1a32, hash_v2, hash_v2_from, hash_v2_many


def test_fnv1a_published_values() -> None:
    assert fnv1a32("") == 0x811C9DC5
    assert fnv1a32("a") == 0xE40C292C
    assert fnv1a32("foobar") == 0xBF9CF968


def test_growthbook_version_2_cases(shared: Path) -> None:
    cases = json.loads((shared / "vectors" / "growthbook_hash_core.json").read_text())["cases"]
    hashed = [case for case in cases["hash"] if case[2] == 2]
    assert len(hashed) == 7
    for seed, value, _, expected in hashed:
        assert hash_v2(seed, value) == expected
    for name, n, ranges, expected in cases["chooseVariation"]:
        assert choose_variation(n, ranges) == expected, name
    for name, (num_variants, coverage, weights), expected in cases["getBucketRange"]:
        np.testing.assert_allclose(get_bucket_ranges(num_variants, coverage, weights), expected, atol=1e-9, err_msg=name)
    for num_variants, expected in cases["getEqualWeights"]:
        np.testing.assert_allclose(get_equal_weights(num_variants), expected, atol=1e-8)


@given(st.text(), st.lists(st.text(), max_size=40))
def test_column_form_equals_scalar_form(seed: str, values: list[str]) -> None:
    assert hash_v2_many(seed, values).tolist() == [hash_v2(seed, value) for value in values]


@given(st.text(), st.text())
def test_a_hashed_prefix_goes_on_where_it_stopped(seed: str, value: str) -> None:
    assert fnv1a32(value, fnv1a32(seed)) == fnv1a32(seed + value)
    assert hash_v2_from(fnv1a32(seed), value) == hash_v2(seed, value)
