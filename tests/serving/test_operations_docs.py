"""What operators are told of metrics is what there is, and the dashboard shows what the issue of speed and trouble needs."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import numpy as np
import yaml

from serving.filters import MAX_LENGTH
from serving.http import MAX_BODY_BYTES
from serving.metrics import GatewayMetrics

ROOT = Path(__file__).parents[2]
SHOWN = {
    "request rate": "shortlist_http_requests_total",
    "errors": '{status=~"5.."}',
    "latency by rung": "by (le, served_from) (rate(shortlist_recommendation_seconds_bucket",
    "latency by version": "by (le, version) (rate(shortlist_recommendation_seconds_bucket",
    "cache hit ratio": 'shortlist_cache_reads_total{outcome="hit"}',
    "fallbacks": "shortlist_fallbacks_total",
    "candidates by source": "by (source) (rate(shortlist_candidates_total",
    "model age": "shortlist_model_trained_timestamp_seconds",
}


def used() -> GatewayMetrics:
    """Metrics in which everything was counted once."""
    metrics = GatewayMetrics(replica="r")
    metrics.request("recommendations", 200)
    metrics.answer("cache", "1", 0.001)
    metrics.cache_read("hit")
    metrics.fallback("deadline")
    metrics.events("accepted", 1, "click")
    metrics.exposures("published", 1)
    metrics.slates("published", 1)
    metrics.computed("1", ["knn"], np.zeros(3, dtype=np.uint8))
    metrics.shadow("1", scored=1, shed=0, failed=0, overlap=0.5)
    return metrics


def test_every_metric_of_the_gateway_and_the_worker_is_documented_and_no_other() -> None:
    typed = re.findall(r"^# TYPE (shortlist_\w+) \w+$", used().text().decode(), re.MULTILINE)
    there = {name for name in typed if not name.endswith("_created")}
    worker = (ROOT / "shortlist" / "stack" / "worker_metrics.py").read_text()
    there |= {name + ("_total" if kind == "Counter" else "") for kind, name in re.findall(r'(\w+)\(\s*"(shortlist_\w+)"', worker)}
    documented = set(re.findall(r"`(shortlist_\w+)`", (ROOT / "docs" / "operations.md").read_text()))
    assert documented == there


def test_the_limits_that_the_pages_name_are_those_that_hold() -> None:
    constants = importlib.import_module("ray.serve._private.constants")
    template = importlib.import_module("ray.serve._private.haproxy_templates").HAPROXY_CONFIG_TEMPLATE
    assert "tune.bufsize {{ config.bufsize }}" in template
    assert "tune.maxrewrite" not in template  # HAProxy's own: 1,024
    for page in ("api.md", "operations.md"):
        text = (ROOT / "docs" / page).read_text()
        assert f"{constants.RAY_SERVE_HAPROXY_TUNE_BUFSIZE:,}" in text, page
        assert f"{MAX_LENGTH:,} characters" in text, page
        assert f"{MAX_BODY_BYTES >> 20} MiB" in text, page


def test_the_dashboard_shows_what_is_to_be_watched_and_asks_for_nothing_else() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    for what, part in SHOWN.items():
        assert any(part in expression for expression in asked), what
    documented = (ROOT / "docs" / "operations.md").read_text()
    for name in set(re.findall(r"shortlist_\w+", " ".join(asked))):
        assert f"`{re.sub('_(bucket|count|sum)$', '', name)}`" in documented, name


def test_alerts_ask_for_what_there_is_and_say_where_to_look() -> None:
    [group] = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"]
    documented = (ROOT / "docs" / "operations.md").read_text()
    for rule in group["rules"]:
        asked = set(re.findall(r"shortlist_\w+", rule["expr"]))
        assert asked, rule["alert"]
        for name in asked:
            assert f"`{re.sub('_(bucket|count|sum)$', '', name)}`" in documented, f"{rule['alert']}: {name}"
        assert rule["labels"]["severity"] in {"page", "ticket"}
        named = re.findall(r"shortlist (events|experiment|models|pipeline) ([a-z]+)", rule["annotations"]["look"])
        for command, verb in named:
            module = importlib.import_module(f"shortlist.commands.{command}")
            assert hasattr(module, verb) or hasattr(module, f"{verb}_"), f"{rule['alert']}: {command} {verb}"
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    assert scraped["rule_files"] == ["alerts.yml"]
    jobs = {job["job_name"] for job in scraped["scrape_configs"]}
    assert set(re.findall(r'job="([^"]+)"', " ".join(rule["expr"] for rule in group["rules"]))) <= jobs


def test_every_test_that_the_page_names_exists() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for name in set(re.findall(r"`([\w/]*test_\w+\.py)`", page)):
        here = name if name.startswith("tests/") else f"tests/serving/{name}"
        assert (ROOT / here).is_file(), name
