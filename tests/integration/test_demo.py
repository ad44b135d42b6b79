"""What the demo claims holds, asked over HTTP; every claim is one test."""

from __future__ import annotations

import pytest

from shortlist.demo.checks import CLAIMS, ask
from shortlist.demo.flow import DemoResult

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("claim", list(CLAIMS))
def test_claim(claim: str, demo: DemoResult) -> None:
    outcome = ask(claim, demo)
    assert outcome.holds, outcome.detail


def test_the_demo_stays_within_its_memory(demo: DemoResult) -> None:
    assert max(record.peak_mb for record in demo.runner.records) < 7_000
