"""A small torch network over candidates, trained with the listwise softmax loss on the blend's residual.

logit(b, k) = exp(a) * base(b, k) + f(x(b, k)); f is cross layers (DCN-V2) and a perceptron side by side, its last layer starts at
zero, so the first epoch starts from the blend. Saved as safetensors.

Sources: Cao et al. 2007 (ListNet, the softmax loss), Wang et al. 2021 (DCN V2). Legend: `B` queries, `K` candidates, `F` features.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.blend_search import candidate_ndcg
from training.errors import BundleError
from training.interactions import BoolArray, FloatArray, LongArray
from training.rankers.base import Ranker, RankerSettings, RankingBatch, ReportRound, draw_candidates, hold_out, row_blocks
from training.torch_threads import torch_threads

MODEL_FILE = "listwise.safetensors"
CLIP = 5.0
"""Standardised features are cut here: beyond, a value is an outlier of training or of another time."""
PARALLEL_QUERIES = 2_000
"""Below, training keeps to one thread: a second one costs more than it gives, far more where the cores are shared."""
STEPS = 32
"""Points of the path that contributions are integrated over."""
SCORE_ROWS = 200_000
"""Candidates scored at once."""


class ListwiseConfig(RankerSettings):
    """Parameters of the network and of its training."""

    hidden: tuple[int, ...] = (64, 32)
    cross_layers: int = Field(default=2, ge=0, le=6)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    learning_rate: float = Field(default=2e-3, gt=0, le=1)
    weight_decay: float = Field(default=1e-3, ge=0)
    batch_queries: int = Field(default=128, ge=1)
    max_epochs: int = Field(default=30, ge=1, le=1_000)
    patience: int = Field(default=4, ge=1)
    """Epochs without improvement after which training stops."""
    train_candidates: int = Field(default=100, ge=10)
    """Candidates a query that training looks at, drawn anew each epoch."""
    held_out: float = Field(default=0.15, gt=0, lt=0.9)
    """Share of the queries that decide where to stop."""


class Network(nn.Module):
    """f of the module's formula, and its input scaling."""

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
        return self.log_temperature.exp() * base + self.correction(self.standardised(features))

    def standardised(self, features: Tensor) -> Tensor:
        """Features (..., F) on the scale of training, cut at its ends; 0 where they are not known."""
        scaled = (features - self.mean) * self.scale
        return torch.nan_to_num(scaled, nan=0.0, posinf=CLIP, neginf=-CLIP).clamp(-CLIP, CLIP)

    def correction(self, x: Tensor) -> Tensor:
        """What is learned beside the blend: standardised features (..., F) -> (...)."""
        crossed = x
        for layer in self.cross:
            crossed = x * layer(crossed) + crossed
        corrected: Tensor = self.head(torch.cat([crossed, self.deep(x)], dim=-1)).squeeze(-1)
        return corrected


class Listwise(Ranker):
    """Network over candidate features; see the module."""

    kind: ClassVar[str] = "listwise"
    Config: ClassVar[type[RankerSettings]] = ListwiseConfig
    config: ListwiseConfig
    network: Network
    names: tuple[str, ...]

    def fit(
        self,
        batch: RankingBatch,
        labels: BoolArray,
        *,
        seed: int,
        rounds: int | None = None,
        on_round: ReportRound | None = None,
        groups: LongArray | None = None,
    ) -> Self:
        """See `Ranker.fit`. Runs on the GPU where there is one."""
        config, rng = self.config, np.random.default_rng(seed)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with torch.random.fork_rng(devices=[]), torch_threads(1 if len(batch) < PARALLEL_QUERIES else torch.get_num_threads()):
            torch.manual_seed(seed)
            network = Network(len(batch.names), config).to(device)
            _set_scaling(network, batch)
            learn, held = np.arange(len(batch)), np.arange(0)
            if rounds is None:
                learn, held = hold_out(len(batch), config.held_out, seed, groups)
            optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
            best, best_state, self.rounds = -np.inf, copy.deepcopy(network.state_dict()), 0
            self.network = network
            if len(held):  # epoch 0 is the blend itself
                best = self._ndcg(batch.rows(held), labels[held])
            for epoch in range(1, (config.max_epochs if rounds is None else rounds) + 1):
                self._epoch(batch, labels, learn, optimizer, rng, device)
                if not len(held):
                    self.rounds = epoch
                    continue
                ndcg = self._ndcg(batch.rows(held), labels[held])
                if ndcg > best:
                    best, best_state, self.rounds = ndcg, copy.deepcopy(network.state_dict()), epoch
                if (on_round is not None and on_round(epoch, ndcg)) or epoch - self.rounds >= config.patience:
                    break
            if len(held):
                network.load_state_dict(best_state)
        self.network, self.names = network.eval().to("cpu"), batch.names
        self.network.attribution.copy_(_attribution(self.network, batch))
        return self

    def _epoch(
        self,
        batch: RankingBatch,
        labels: BoolArray,
        learn: np.ndarray[tuple[int], np.dtype[np.int64]],
        optimizer: torch.optim.Optimizer,
        rng: np.random.Generator,
        device: torch.device,
    ) -> None:
        self.network.train()
        shuffled = rng.permutation(learn)
        for block in row_blocks(len(shuffled), self.config.batch_queries):
            rows = shuffled[block]
            part, part_labels = batch.rows(rows), labels[rows]
            columns, there = draw_candidates(part, part_labels, self.config.train_candidates, rng)
            at = np.arange(len(rows))[:, None]
            features = torch.from_numpy(part.features[at, columns]).to(device)
            base = torch.from_numpy(part.base[at, columns]).to(device)
            target = torch.from_numpy(part_labels[at, columns]).to(device)
            logits = self.network(features, base).masked_fill(~torch.from_numpy(there).to(device), -torch.inf)
            log_share = torch.log_softmax(logits, dim=1)
            loss = -(log_share.masked_fill(~target, 0.0).sum(dim=1) / target.sum(dim=1).clamp(min=1)).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            optimizer.step()

    def _ndcg(self, batch: RankingBatch, labels: BoolArray) -> float:
        return float(candidate_ndcg(self.score(batch), labels, batch.valid, labels.sum(axis=1)).mean())

    def score(self, batch: RankingBatch) -> FloatArray:
        """See `Ranker.score`."""
        self.network.eval()
        device = self.network.log_temperature.device
        scores = np.empty(batch.base.shape, dtype=np.float32)
        with torch.inference_mode():
            for block in row_blocks(len(batch), max(SCORE_ROWS // max(batch.base.shape[1], 1), 1)):
                features = torch.from_numpy(np.ascontiguousarray(batch.features[block])).to(device)
                base = torch.from_numpy(np.ascontiguousarray(batch.base[block])).to(device)
                scores[block] = self.network(features, base).cpu().numpy()
        return scores

    @property
    def base_slope(self) -> float:
        """See `Ranker.base_slope`."""
        return float(self.network.log_temperature.detach().exp())

    def contributions(self, batch: RankingBatch) -> FloatArray:
        """See `Ranker.contributions`: integrated gradients from the average candidate, by the midpoint rule.

        What the rule misses of a candidate's correction is shared out in proportion to the features' sizes, so that sums are exact.

        Source: Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks", equations 1 and 3.
        """
        parts = np.zeros(batch.features.shape, dtype=np.float32)
        network = self.network.eval()
        features = torch.from_numpy(np.ascontiguousarray(batch.features[batch.valid]))
        with torch.no_grad():
            x = network.standardised(features)
            correction = network.correction(x) - network.correction(torch.zeros_like(x))
        gradient = torch.zeros_like(x)
        for step in range(STEPS):
            point = (x * ((step + 0.5) / STEPS)).requires_grad_()
            torch.autograd.backward(network.correction(point).sum())
            assert point.grad is not None
            gradient += point.grad / STEPS
        found = x * gradient
        size = found.abs() + 1e-12
        missed = (correction - found.sum(dim=1))[:, None] * size / size.sum(dim=1, keepdim=True)
        parts[batch.valid] = (found + missed).detach().numpy()
        return parts

    def importance(self) -> dict[str, float]:
        """See `Ranker.importance`: mean absolute effect of one standard deviation on the logit, by the gradient, in training."""
        size = self.network.attribution
        shares = (size / size.sum().clamp(min=1e-12)).tolist()
        return dict(sorted(zip(self.names, shares, strict=True), key=lambda pair: -pair[1]))

    def save(self, folder: Path) -> None:
        """See `Ranker.save`: one safetensors file."""
        save_file({name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}, str(folder / MODEL_FILE))

    @classmethod
    def load(cls, folder: Path, config: RankerSettings, names: tuple[str, ...]) -> Self:
        """See `Ranker.load`."""
        ranker = cls(config)
        ranker.network = Network(len(names), ranker.config)
        try:
            ranker.network.load_state_dict(load_file(str(folder / MODEL_FILE)))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise BundleError(
                f"{MODEL_FILE} cannot be read ({str(error).splitlines()[0]}); fetch or build the bundle again"
            ) from error
        ranker.network.eval()
        ranker.names = names
        return ranker


def _set_scaling(network: Network, batch: RankingBatch) -> None:
    """Mean and deviation of every feature over the candidates; constants are switched off."""
    for column in range(len(batch.names)):
        values = batch.features[:, :, column][batch.valid]
        values = values[np.isfinite(values)].astype(np.float64)
        mean, deviation = (float(values.mean()), float(values.std())) if len(values) else (0.0, 0.0)
        network.mean[column] = mean
        network.scale[column] = 1.0 / deviation if deviation > 1e-6 * max(abs(mean), 1.0) else 0.0


def _attribution(network: Network, batch: RankingBatch, queries: int = 500) -> Tensor:
    """(F,) mean |d correction / d standardised feature| over the candidates of the first `queries` queries."""
    features = torch.from_numpy(np.ascontiguousarray(batch.features[:queries]))
    valid = torch.from_numpy(np.ascontiguousarray(batch.valid[:queries]))
    raw = torch.where(torch.isfinite(features), features, network.mean)[valid].requires_grad_()
    if not len(raw):
        return torch.zeros(features.shape[-1])
    torch.autograd.backward(network(raw, torch.zeros(len(raw))).sum())
    assert raw.grad is not None
    deviation = torch.where(network.scale > 0, 1.0 / network.scale.clamp(min=1e-12), 0.0)
    return (raw.grad.abs().mean(dim=0) * deviation).detach()
