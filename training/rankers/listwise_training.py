"""Training of the listwise ranker's network in torch: the softmax loss over each query's candidates, by epochs.

Source: Cao et al. 2007 (ListNet). Legend: `B` queries, `K` candidates, `F` features.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from training.interactions import BoolArray, LongArray
from training.rankers.base import RankingBatch, draw_candidates, row_blocks
from training.rankers.listwise_network import CLIP
from training.torch_threads import torch_threads

if TYPE_CHECKING:
    from training.rankers.listwise import ListwiseConfig

PARALLEL_QUERIES = 2_000
"""Below, training keeps to one thread: a second one costs more than it gives, far more where the cores are shared."""


class Network(nn.Module):
    """The network of `listwise_network` with dropout. The head starts at zero, so the first epoch starts from the blend."""

    def __init__(self, num_features: int, config: ListwiseConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))
        self.register_buffer("attribution", torch.zeros(num_features))
        self.mean: Tensor
        self.scale: Tensor
        self.attribution: Tensor
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.cross = nn.ModuleList(nn.Linear(num_features, num_features) for _ in range(config.cross_layers))
        widths = (num_features, *config.hidden)
        deep: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            deep += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(config.dropout)]
        self.deep = nn.Sequential(*deep)
        self.head = nn.Linear(num_features + widths[-1], 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor, base: Tensor) -> Tensor:
        """features (..., F), base (...) -> logits (...). NaN features count as average ones."""
        scaled = (features - self.mean) * self.scale
        x = torch.nan_to_num(scaled, nan=0.0, posinf=CLIP, neginf=-CLIP).clamp(-CLIP, CLIP)
        crossed = x
        for layer in self.cross:
            crossed = x * layer(crossed) + crossed
        corrected: Tensor = self.head(torch.cat([crossed, self.deep(x)], dim=-1)).squeeze(-1)
        return self.log_temperature.exp() * base + corrected


def train_epochs(
    batch: RankingBatch, labels: BoolArray, learn: LongArray, config: ListwiseConfig, seed: int
) -> Generator[dict[str, npt.NDArray[np.float32]], None, None]:
    """The network's parameters by name: as they start, then after each epoch, without end. Equal seeds give equal ones.

    Runs on the GPU where there is one.

    Args:
        batch: of B queries, each with a labelled candidate; inputs are scaled by all of them.
        labels: (B, K) bool, True for targets.
        learn: the queries that are learned from.
        config: of the ranker.
        seed: of every random choice.
    """
    rng, device = np.random.default_rng(seed), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]), torch_threads(1 if len(batch) < PARALLEL_QUERIES else torch.get_num_threads()):
        torch.manual_seed(seed)
        network = Network(len(batch.names), config).to(device).train()
        _set_scaling(network, batch)
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        while True:
            yield {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}
            shuffled = rng.permutation(learn)
            for block in row_blocks(len(shuffled), config.batch_queries):
                optimizer.zero_grad()
                torch.autograd.backward(_loss(network, batch, labels, shuffled[block], config.train_candidates, rng))
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()


def _loss(
    network: Network, batch: RankingBatch, labels: BoolArray, rows: LongArray, candidates: int, rng: np.random.Generator
) -> Tensor:
    """Mean cross-entropy of the targets of the queries `rows` among candidates drawn anew."""
    part, part_labels, device = batch.rows(rows), labels[rows], network.mean.device
    columns, there = draw_candidates(part, part_labels, candidates, rng)
    at = np.arange(len(rows))[:, None]
    features = torch.from_numpy(part.features[at, columns]).to(device)
    base = torch.from_numpy(part.base[at, columns]).to(device)
    target = torch.from_numpy(part_labels[at, columns]).to(device)
    logits = network(features, base).masked_fill(~torch.from_numpy(there).to(device), -torch.inf)
    log_share = torch.log_softmax(logits, dim=1)
    return -(log_share.masked_fill(~target, 0.0).sum(dim=1) / target.sum(dim=1).clamp(min=1)).mean()


def _set_scaling(network: Network, batch: RankingBatch) -> None:
    """Mean and deviation of every feature over the candidates; constants are switched off."""
    for column in range(len(batch.names)):
        values = batch.features[:, :, column][batch.valid]
        values = values[np.isfinite(values)].astype(np.float64)
        mean, deviation = (float(values.mean()), float(values.std())) if len(values) else (0.0, 0.0)
        network.mean[column] = mean
        network.scale[column] = 1.0 / deviation if deviation > 1e-6 * max(abs(mean), 1.0) else 0.0
