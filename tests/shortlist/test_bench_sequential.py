"""The reference that an epoch of the sequential model is timed against learns the same thing."""

from __future__ import annotations

import numpy as np
import torch

from shortlist.bench.sequential import Reference, bench_sequential, drawn_histories, sequential_markdown
from training.models.sequential_batches import prefixes, windows
from training.models.sequential_config import SequentialConfig

TINY = {"width": 8, "max_len": 6, "batch_size": 16, "dropout": 0.0, "attention_dropout": 0.0, "learning_rate": 5e-3}


def test_both_are_timed_and_shown() -> None:
    result = bench_sequential(SequentialConfig(**TINY), users=30, items=40, mean_length=6, rounds=1)
    assert result["cpu_ratio"] > 0
    table = sequential_markdown([result], "a machine")
    assert "`every`, length 6" in table


def test_reference_learns_and_does_not_look_ahead() -> None:
    data = drawn_histories(60, 20, 8)
    assert (np.diff(data.indptr) >= 3).all()
    for targets in ("last", "every"):
        config = SequentialConfig(targets=targets, **TINY)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            reference = Reference(data, config)
            stretches = prefixes(data, 6) if targets == "last" else windows(data, 6, np.random.default_rng(0))
            before = float(reference._loss(stretches, np.arange(len(stretches))).detach())
            for number in range(8):
                reference.epoch(number)
            after = float(reference._loss(stretches, np.arange(len(stretches))).detach())
        # Items are drawn without regard to what came before: 20 of them, so a loss far below log 20 = 3 would be a look ahead.
        assert 2.0 < after < before
