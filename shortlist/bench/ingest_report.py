"""The tables that `shortlist bench ingest` prints and docs/benchmarks.md keeps: each figure beside what it must be and the aim."""

from __future__ import annotations

from typing import Any

from shortlist.bench.ingest import BATCH, STEADY_EVENTS_PER_S


def ingest_markdown(result: dict[str, Any]) -> str:
    """One table of all figures, and one of processor time."""
    rows = _store_rows(result)
    for name, intake in _intakes(result):
        rows += _intake_rows(name, intake, must=name == "steady")
    if "freshness" in result:
        fresh = result["freshness"]
        shown = f"{fresh['ms_p50']} / {fresh['ms_p99']} ms, {fresh['never']} of {fresh['events']} never"
        rows.append(("event to changed answer at 50 requests/s, p50 / p99", shown, "100 / 500 ms", "- / 200 ms"))
    lines = [result["machine"], "", "| | measured | must | aim |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *_cpu_lines(result)])


def _store_rows(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    imported = result["import"]
    rows = [
        (f"bulk import of {imported['events']:,}, by the clock", f"{imported['events_per_s']:,} events/s", "200,000", "1,000,000"),
        ("- by processor time", f"{imported['events_per_cpu_s']:,} events/s", "", ""),
    ]
    rows += [
        (
            f"online memory of a user of {one['events_per_user']} events: key mean / max; used_memory",
            f"{one['key_bytes_mean']} / {one['key_bytes_max']}; {one['used_memory_per_user']} bytes",
            "800",
            "",
        )
        for one in result["memory"]
    ]
    sync = ", ".join(f"{policy} {rate:,.0f}/s" for policy, rate in result["sync"].items())
    return [*rows, (f"bus alone, batches of {BATCH}, by appendfsync", sync, "", "")]


def _intakes(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, result[name]) for name in ("steady", "saturated") if name in result]


def _intake_rows(name: str, intake: dict[str, Any], *, must: bool) -> list[tuple[str, str, str, str]]:
    refused = {status: number for status, number in intake["statuses"].items() if status != "202"}
    behind = "; ".join(f"{group}: {lag['entries']:,} entries, {lag['seconds']:.1f} s" for group, lag in intake["lag"].items())
    drained = "not within a minute" if intake["drain_seconds"] is None else f"{intake['drain_seconds']} s"
    rate = (f"{STEADY_EVENTS_PER_S:,}", "") if must else ("", "10,000")
    sent = "on a schedule" if must else "as fast as they are taken"
    return [
        (f"HTTP batches of {BATCH} {sent}: accepted durably", f"{intake['events_per_s']:,} events/s", *rate),
        ("- a batch, p50 / p99", f"{intake['batch_ms_p50']} / {intake['batch_ms_p99']} ms", "", ""),
        ("- lag of the readers at the end", behind, "5 s" if must else "", "" if must else "5 s"),
        ("- until the readers had everything", drained, "", ""),
        ("- accepted, stored, refused", f"{intake['accepted']:,}, {intake['stored']:,}, {refused or 'none'}", "equal", ""),
    ]


def _cpu_lines(result: dict[str, Any]) -> list[str]:
    """Milliseconds of processor time for 1,000 events, by process."""
    found = {name: intake["cpu_s_per_1000"] for name, intake in _intakes(result)}
    if not found:
        return []
    most = {kind: max(one.get(kind, 0) for one in found.values()) for spent in found.values() for kind in spent}
    kinds = sorted(most, key=lambda kind: -most[kind])
    lines = ["| processor time of 1,000 events, ms | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for kind in kinds:
        lines.append(f"| {kind} | " + " | ".join(f"{1000 * spent.get(kind, 0):.1f}" for spent in found.values()) + " |")
    return lines
