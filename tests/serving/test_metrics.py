"""What a gateway counts, as Prometheus reads it."""

from __future__ import annotations

import os
import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import GatewayMetrics


def samples(metrics: GatewayMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.text().decode())
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}


def test_latencies_are_a_cumulative_histogram() -> None:
    """An answer on an edge counts below it; the last bucket holds all."""
    metrics = GatewayMetrics()
    for seconds in (0.0004, 0.0005, 0.003, 7.0):
        metrics.answer("cache", "3", seconds)
    metrics.answer("popular", None, 0.01)
    found = samples(metrics)
    here = (("served_from", "cache"), ("version", "3"))
    name = "shortlist_recommendation_seconds"
    buckets = {
        edge: found[f"{name}_bucket", tuple(sorted((*here, ("le", edge))))] for edge in ("0.0005", "0.002", "0.005", "2.0", "+Inf")
    }
    assert buckets == {"0.0005": 2, "0.002": 2, "0.005": 3, "2.0": 3, "+Inf": 4}
    assert found[f"{name}_count", here] == 4
    assert abs(found[f"{name}_sum", here] - 7.0039) < 1e-9
    assert found[f"{name}_count", (("served_from", "popular"), ("version", ""))] == 1


def test_counts_go_on_between_readings() -> None:
    """Reading hands over what was counted since, and loses nothing."""
    metrics = GatewayMetrics()
    metrics.request("recommendations", 200)
    metrics.cache_read("hit")
    samples(metrics)
    metrics.request("recommendations", 200)
    metrics.request("recommendations", 404)
    metrics.fallback("deadline")
    found = samples(metrics)
    name = "shortlist_http_requests_total"
    assert found[name, (("route", "recommendations"), ("status", "200"))] == 2
    assert found[name, (("route", "recommendations"), ("status", "404"))] == 1
    assert found["shortlist_cache_reads_total", (("outcome", "hit"),)] == 1
    assert found["shortlist_fallbacks_total", (("reason", "deadline"),)] == 1


def test_registries_stay_apart_after_feast_was_imported(tmp_path) -> None:
    """Feast turns on prometheus_client's files for many processes, here and through the environment in every child."""
    code = """
import feast, os
assert os.environ["PROMETHEUS_MULTIPROC_DIR"]
from serving.metrics import GatewayMetrics
one, two = GatewayMetrics(), GatewayMetrics()
one.request("recommendations", 200)
one.model_trained_at.set(7)
print(b'route="recommendations"' in one.text(), b'route="recommendations"' in two.text())
print([line for line in two.text().decode().splitlines() if line.startswith("shortlist_model_trained")])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert told == ["True False", "['shortlist_model_trained_timestamp_seconds 0.0']"]
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    code = "from serving.metrics import GatewayMetrics; GatewayMetrics().request('x', 200); print('fine')"
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout == "fine\n"
    )
    assert not list(tmp_path.iterdir())


def test_every_series_carries_the_replica() -> None:
    metrics = GatewayMetrics(replica="host-7")
    metrics.request("nowhere", 200)
    metrics.answer("cache", "3", 0.004)
    for _ in range(2):  # reading changes nothing
        lines = [line for line in metrics.text().decode().splitlines() if not line.startswith("#")]
        assert 'shortlist_http_requests_total{replica="host-7",route="nowhere",status="200"} 1.0' in lines
        assert all(line.count('replica="host-7"') == 1 for line in lines)
