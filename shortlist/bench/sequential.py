"""An epoch of the sequential transformer against plain torch with equal settings, in turn in one process.

The reference is what one would write first: `nn.TransformerEncoder` over batches padded to their longest history, dropout, logits
over all items, `F.cross_entropy`, AdamW. It learns the same targets from the same stretches of histories.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.interactions import Interactions
from training.models.item_item import popularity_share
from training.models.sequential_batches import Stretches, prefixes, shuffled, windows
from training.models.sequential_config import SequentialConfig
from training.models.sequential_training import Trainer


@dataclass(frozen=True)
class EpochTimes:
    """Seconds of one epoch: of processor time, all threads, and by the clock."""

    cpu_s: float
    wall_s: float


def bench_sequential(config: SequentialConfig, users: int, items: int, mean_length: float, rounds: int) -> dict[str, Any]:
    """Ours and the reference in turn, an epoch each, after one that is not counted; the ratios are medians over the rounds."""
    data = drawn_histories(users, items, mean_length)
    trainer, reference = Trainer(data, popularity_share(data), config, seed=0), Reference(data, config)
    found = []
    for number in range(rounds + 1):
        ours = _timed(lambda number=number: trainer.epoch(number + 1))
        plain = _timed(lambda number=number: reference.epoch(number + 1))
        if number:
            found.append((ours, plain))
    return {
        "config": config.model_dump(),
        "users": users,
        "items": items,
        "interactions": len(data),
        "threads": torch.get_num_threads(),
        "ours_cpu_s": statistics.median(ours.cpu_s for ours, _ in found),
        "plain_cpu_s": statistics.median(plain.cpu_s for _, plain in found),
        "cpu_ratio": statistics.median(ours.cpu_s / plain.cpu_s for ours, plain in found),
        "wall_ratio": statistics.median(ours.wall_s / plain.wall_s for ours, plain in found),
    }


def sequential_markdown(results: list[dict[str, Any]], machine: str) -> str:
    """One row a setting."""
    lines = [f"{machine}; {results[0]['threads']} threads", ""]
    lines += ["| targets | users / items / interactions | ours, s of CPU an epoch | plain torch | ratio, CPU | ratio, clock |"]
    lines += ["|---|---|---|---|---|---|"]
    for one in results:
        size = f"{one['users']:,} / {one['items']:,} / {one['interactions']:,}"
        figures = f"{one['ours_cpu_s']:.1f} | {one['plain_cpu_s']:.1f} | {one['cpu_ratio']:.2f} | {one['wall_ratio']:.2f}"
        lines.append(f"| `{one['config']['targets']}`, length {one['config']['max_len']} | {size} | {figures} |")
    return "\n".join(lines)


def drawn_histories(users: int, items: int, mean_length: float) -> Interactions:
    """Histories of geometric length, 3 at least, over items of Zipf popularity: what an epoch costs depends on sizes alone."""
    rng = np.random.default_rng(0)
    lengths = 2 + rng.geometric(1 / max(mean_length - 2, 1.0), users)
    user_idx = np.repeat(np.arange(users, dtype=np.int32), lengths)
    chance = 1 / np.arange(1, items + 1) ** 0.8
    item_idx = rng.choice(items, len(user_idx), p=chance / chance.sum()).astype(np.int32)
    return Interactions(
        user_ids=np.array([f"u{n}" for n in range(users)], dtype=object),
        item_ids=np.array([f"i{n}" for n in range(items)], dtype=object),
        user_idx=user_idx,
        item_idx=item_idx,
        time_us=np.arange(len(user_idx), dtype=np.int64),
        time_known=np.zeros(len(user_idx), dtype=bool),
        value=np.full(len(user_idx), np.nan, dtype=np.float32),
        split=np.full(len(user_idx), None, dtype=object),
        action=np.zeros(len(user_idx), dtype=np.uint8),
    )


class Reference(nn.Module):
    """Plain torch; see the module."""

    def __init__(self, data: Interactions, config: SequentialConfig) -> None:
        super().__init__()
        self.data, self.config = data, config
        self.items = nn.Embedding(data.num_items, config.width)
        self.position = nn.Embedding(config.max_len, config.width)
        self.norm, self.dropout = nn.LayerNorm(config.width), nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, 4 * config.width, config.dropout, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.blocks, enable_nested_tensor=False)
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)

    def epoch(self, number: int) -> None:
        """Train on every stretch once."""
        rng = np.random.default_rng(number)
        every = self.config.every_position
        stretches = windows(self.data, self.config.max_len, rng) if every else prefixes(self.data, self.config.max_len)
        self.train()
        for chosen in shuffled(stretches, self.config.step_samples(len(stretches)), rng):
            loss = self._loss(stretches, chosen)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()

    def _loss(self, stretches: Stretches, chosen: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        start, lengths = stretches.start[chosen], stretches.stop[chosen] - stretches.start[chosen]
        place = np.arange(int(lengths.max()))
        valid = place < lengths[:, None]
        at = np.where(valid, start[:, None] + place, start[:, None])
        x = self.items(torch.from_numpy(self.data.item_idx[at].astype(np.int64))) + self.position.weight[: len(place)]
        causal = nn.Transformer.generate_square_subsequent_mask(len(place))
        # Padding lies on the right, where no entry of a history looks.
        hidden = self.encoder(self.dropout(self.norm(x)), mask=causal, is_causal=True)
        if stretches.every:
            vectors, target = hidden[torch.from_numpy(valid)], self.data.item_idx[at[valid] + 1]
        else:
            vectors, target = hidden[torch.arange(len(chosen)), torch.from_numpy(lengths - 1)], self.data.item_idx[start + lengths]
        return F.cross_entropy(vectors @ self.items.weight.T, torch.from_numpy(target.astype(np.int64)))


def _timed(work: Any) -> EpochTimes:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return EpochTimes(time.process_time() - cpu, time.perf_counter() - wall)
