"""Pictures of a study for its MLflow run: PNG bytes, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from training.trial_log import TrialRecord


def search_curve(records: Sequence[TrialRecord], metric: str, direction: Literal["maximize", "minimize"]) -> bytes:
    """Every trial's objective in the order in which they ended, and the best so far, one colour a source."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    best = np.maximum.accumulate if direction == "maximize" else np.minimum.accumulate
    places = [(place, record) for place, record in enumerate(records, start=1) if record.value is not None]
    for colour, source in enumerate(dict.fromkeys(record.source for _, record in places)):
        mine = [(place, float(record.value or 0.0)) for place, record in places if record.source == source]
        x, y = np.array([place for place, _ in mine]), np.array([value for _, value in mine])
        axes.scatter(x, y, s=18, color=f"C{colour}", alpha=0.6)
        axes.step(x, best(y), where="post", color=f"C{colour}", label=f"{source} (best {best(y)[-1]:.4f})")
    failed = [place for place, record in enumerate(records, start=1) if record.status == "failed"]
    if failed:
        axes.plot(failed, [axes.get_ylim()[0]] * len(failed), "x", color="black", label="failed")
    axes.set_xlabel("trial, in the order of ending")
    axes.set_ylabel(f"{metric} on validation")
    if places:
        axes.legend()
    return _png(figure)


def metric_bars(metrics: dict[str, float], title: str) -> bytes:
    """One bar a name, as for the sources and the funnel side by side."""
    figure = Figure(figsize=(8, 0.6 + 0.4 * max(len(metrics), 1)), layout="constrained")
    axes = figure.add_subplot()
    names = list(metrics)[::-1]
    bars = axes.barh(names, [metrics[name] for name in names], color="C0")
    axes.bar_label(bars, fmt="%.4f", padding=3)
    axes.margins(x=0.12)
    axes.set_title(title)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
