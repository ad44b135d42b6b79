"""`bench quality`: a study tuned on validation, its test figures over several seeds, and published results beside them.

Strict figures (models never see the validation rows) and refitted ones are rows of their own. Published rows are for display alone:
they come from `published.toml`, chosen by the name that the caller gives.
"""

from __future__ import annotations

import json
import statistics
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shortlist.runner import Runner
from training.study import Study, load_study

PUBLISHED = Path(__file__).with_name("published.toml")
BY_PROTOCOL = {"stratified": ("ndcg@10", "map@10", "precision@10", "recall@10")}
METRICS = ("ndcg@10", "hr@10", "ndcg@5", "hr@5", "recall@50", "coverage@10")
"""Columns, unless the protocol has its own."""


def measure_quality(
    runner: Runner,
    dataset: str,
    study_file: Path,
    folder: Path,
    *,
    protocol: str | None = None,
    minutes: float | None = None,
    trials: int | None = None,
    seeds: int = 3,
    refit: bool = True,
) -> dict[str, Any]:
    """Tune, then read the test, strict and refitted, once a seed each.

    Args:
        runner: runs the commands.
        dataset: an imported dataset.
        study_file: what to tune.
        folder: where a copy of the study is written and kept, if it is for another protocol or for no refit.
        protocol: instead of the study's own.
        minutes: time of the tuning, in place of the study's.
        trials: trials of the tuning, in place of the study's.
        seeds: how many times what was chosen is trained; the first with the study's seed.
        refit: whether to measure the refitted variant too; without it the tuning keeps no time for a refit either.
    """
    file, study = _as_asked(load_study(study_file), study_file, protocol, refit, folder)
    limits = ["--minutes", f"{minutes:g}"] if minutes is not None else []
    limits += ["--trials", str(trials)] if trials is not None else []
    tuned = runner.run("tune", str(file), "--dataset", dataset, *limits)
    test = ["evaluate", "--dataset", dataset, "--protocol", study.protocol, "--study", str(file)]
    by_seed = [[] if seed == 0 else ["--seed", str(study.seed + seed)] for seed in range(seeds)]
    strict = [runner.run(*test, *seed) for seed in by_seed]
    refitted = [runner.run(*test, "--refit", *seed) for seed in by_seed] if refit else []
    return {
        "dataset": dataset,
        "study": study.name,
        "protocol": study.protocol,
        "seeds": [study.seed + seed for seed in range(seeds)],
        "validation": tuned,
        "strict": strict,
        "refit": refitted,
        "commands": [record.command for record in runner.records],
        "seconds": round(sum(record.seconds for record in runner.records), 1),
        "peak_mb": max(record.peak_mb for record in runner.records),
    }


def published(data: str, protocol: str) -> list[dict[str, Any]]:
    """Published rows of a dataset's usual name under a protocol."""
    rows: list[dict[str, Any]] = tomllib.loads(PUBLISHED.read_text())["rows"]
    return [row for row in rows if row["data"] == data and row["protocol"] == protocol]


def quality_markdown(result: dict[str, Any], rows: Sequence[dict[str, Any]], machine: str) -> str:
    """One dataset's tables: ours, what was published, and the funnel's gain on each of its sources."""
    names = BY_PROTOCOL.get(result["protocol"], METRICS)
    strict, refit, validation = result["strict"], result["refit"], result["validation"]
    lines = [f"`{'`, `'.join(result['commands'])}`", f"{machine}; {result['seconds']:.0f} s, {result['peak_mb']:,} MB in all", ""]
    lines += [f"| {result['dataset']}, {result['protocol']} | " + " | ".join(names) + " | |", f"|---|{'---|' * len(names)}---|"]
    lines.append(_line("ours on validation", validation["metrics"], names, f"ranker {validation['ranker']}"))
    seeds = "seeds " + ", ".join(map(str, result["seeds"]))
    lines += _over_seeds("**ours, test, strict**", strict, names, f"{strict[0]['users']:,} users, mean of {seeds}")
    low = {name: strict[0]["ci95"][name][0] for name in names if name in strict[0]["ci95"]}
    high = {name: strict[0]["ci95"][name][1] for name in names if name in strict[0]["ci95"]}
    lines.append(_line("– 95 % interval over users, from", low, names, f"seed {result['seeds'][0]}"))
    lines.append(_line("– to", high, names, ""))
    if refit:
        lines += _over_seeds("**ours, test, refit on validation rows too**", refit, names, f"mean of {seeds}")
    for source, alone in strict[0]["sources"].items():
        lines.append(_line(f"source {source} alone, test, strict", alone, names, f"seed {result['seeds'][0]}"))
    for row in rows:
        note = row["source"] + (f"; {row['note']}" if "note" in row else "")
        lines.append(_line(f"published: {row['model']}", row["metrics"], names, note))
    lines += ["", "| funnel less one source, strict test | metric | difference | 95 % interval | p |", "|---|---|---|---|---|"]
    for source, gain in strict[0]["against_sources"].items():
        start, end = gain["ci95"]
        lines.append(
            f"| {source} | {gain['metric']} | {gain['difference']:+z.4f} | {start:+z.4f} to {end:+z.4f} | {gain['p']:.3f} |"
        )
    lines += ["", "| part of the strict test | users | ndcg@10 | hr@10 |", "|---|---|---|---|"]
    for name, segment in strict[0]["segments"].items():
        lines.append(
            f"| {name} | {segment['users']:,} | {_figure(segment['metrics'], 'ndcg@10')} | {_figure(segment['metrics'], 'hr@10')} |"
        )
    return "\n".join(lines)


def _as_asked(study: Study, file: Path, protocol: str | None, refit: bool, folder: Path) -> tuple[Path, Study]:
    """The study's file; a copy under a name of its own where the protocol is another, or no refit is wanted."""
    name = study.name
    changed: dict[str, Any] = {}
    if protocol is not None and protocol != study.protocol:
        name, changed = f"{name}-{protocol}", {"protocol": protocol}
    if study.refit and not refit:
        name, changed = f"{name}-strict", {**changed, "refit": False}
    if not changed:
        return file, study
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{name}.json"
    copy.write_text(json.dumps(study.model_dump(mode="json") | changed | {"name": name}, indent=2) + "\n")
    return copy, load_study(copy)


def _over_seeds(name: str, tests: Sequence[dict[str, Any]], names: Sequence[str], note: str) -> list[str]:
    """The mean over seeds, and how far they are apart where there are several."""
    present = [metric for metric in names if metric in tests[0]["metrics"]]
    means = {metric: statistics.mean(one["metrics"][metric] for one in tests) for metric in present}
    lines = [_line(name, means, names, note)]
    if len(tests) > 1:
        spread = {metric: statistics.stdev(one["metrics"][metric] for one in tests) for metric in present}
        lines.append(_line("– spread over seeds (standard deviation)", spread, names, ""))
    return lines


def _line(name: str, metrics: dict[str, float], names: Sequence[str], note: str) -> str:
    return f"| {name} | " + " | ".join(_figure(metrics, metric) for metric in names) + f" | {note} |"


def _figure(metrics: dict[str, float], name: str) -> str:
    value = metrics.get(name)
    return "" if value is None else f"{value:.4f}"
