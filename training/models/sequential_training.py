"""Training of one network of the sequential model by epochs. What an epoch does depends on the seed and its number alone."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.interactions import FloatArray, Interactions
from training.models.sequential_batches import Stretches, lay_out, prefixes, shuffled, windows
from training.models.sequential_config import SequentialConfig
from training.models.sequential_loss import SampledItems, full_softmax, sampled_softmax
from training.models.sequential_network import SequenceNetwork
from training.torch_threads import torch_threads

AVERAGE_EVERY = 10
"""Steps between two updates of the averaged weights of a sampled catalogue, for each reads all of them; others update each step."""
PARALLEL_CELLS = 200_000
"""Tokens times width of a batch below which training keeps to one thread: a second one costs more than it gives."""
WARMUP_STEPS = 100
"""Steps over which the learning rate rises to its value. It stays there: a model after E epochs is the same however many follow."""


class Trainer:
    """A network in training, and the averaged copy of it that scores."""

    def __init__(
        self,
        interactions: Interactions,
        popularity: FloatArray,
        config: SequentialConfig,
        seed: int,
        content: FloatArray | None = None,
    ) -> None:
        self._data, self._config, self._seed = interactions, config, seed
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with seeded(seed):
            shape = config.shape(interactions.num_items, interactions.has_times)
            self._network = SequenceNetwork(
                shape,
                seed,
                content=None if content is None else torch.from_numpy(content),
                sparse=config.samples(interactions.num_items),
            ).to(self._device)
        self._sample: SampledItems | None = None
        if config.samples(interactions.num_items):
            self._sample = SampledItems(popularity, config.sampled_items, np.random.default_rng((seed, 1)))
            self._log_expected = torch.from_numpy(self._sample.log_expected).to(self._device)
        self._optimizers = _optimizers(self._network, config, sparse=self._sample is not None)
        self._averaging = copy.deepcopy(self._network) if config.average > 0 else self._network
        self._prefixes = None if config.every_position else prefixes(interactions, config.max_len)
        self._steps = self._averaged = 0

    def epoch(self, number: int) -> float:
        """Train on every stretch once; returns the mean loss."""
        rng = np.random.default_rng((self._seed, 2, number))
        stretches = self._prefixes or windows(self._data, self._config.max_len, rng)
        self._network.train()
        total = 0.0
        batch_size = self._config.step_samples(len(stretches))
        tokens = float((stretches.stop - stretches.start).mean()) * batch_size
        small = tokens * self._config.width < PARALLEL_CELLS
        with seeded(self._seed + number), torch_threads(1 if small else torch.get_num_threads()):
            for chosen in shuffled(stretches, batch_size, rng):
                total += self._step(stretches, chosen) * len(chosen)
            self._update_average()
        self._averaging.eval()
        return total / max(len(stretches), 1)

    @property
    def scoring(self) -> SequenceNetwork:
        """The network that scores: averaged weights, content added to the item vectors."""
        if self._averaging.items.projection is None:
            return self._averaging
        network = copy.copy(self._averaging)
        network._modules = {**network._modules, "items": self._averaging.items.summed()}
        return network

    def _step(self, stretches: Stretches, chosen: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
        start, stop = stretches.start[chosen], stretches.stop[chosen]
        batch = lay_out(start, stop, self._data.item_idx, self._data.time_us)
        vectors = self._network(batch, stretches.every)
        predicting = batch.valid if stretches.every else batch.last
        if stretches.every:
            vectors = vectors[torch.from_numpy(batch.valid).to(self._device)]
        # The target of an entry is the one after it: in the columns, the next row of the same user.
        target = torch.from_numpy(self._data.item_idx[batch.at[predicting] + 1].astype(np.int64)).to(self._device)
        loss = self._loss(vectors, target)
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._steps += 1
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._config.learning_rate * min(1.0, self._steps / WARMUP_STEPS)
            optimizer.step()
        if self._sample is None or self._steps % AVERAGE_EVERY == 0:
            self._update_average()
        return float(loss.detach())

    def _loss(self, vectors: Tensor, target: Tensor) -> Tensor:
        config, table = self._config, self._network.items
        if self._sample is None:
            return full_softmax(
                scaled(vectors, config),
                normalised(table.table(), config),
                target,
                config.label_smoothing,
                config.precision == "auto",
            )
        sampled = torch.from_numpy(self._sample.draw()).to(self._device)
        own, others = normalised(table(target), config), normalised(table(sampled), config)
        return sampled_softmax(scaled(vectors, config), own, target, others, sampled, self._log_expected)

    @torch.no_grad()
    def _update_average(self) -> None:
        steps, self._averaged = self._steps - self._averaged, self._steps
        if steps == 0 or self._averaging is self._network:
            return
        # Early on the average follows more closely: it reaches over a ninth of the steps so far.
        keep = min(self._config.average, (1 + self._steps) / (10 + self._steps)) ** steps
        for held, new in zip(self._averaging.parameters(), self._network.parameters(), strict=True):
            held.lerp_(new, 1 - keep)


def scaled(vectors: Tensor, config: SequentialConfig) -> Tensor:
    """Vectors of histories as they are compared: of length 1 / temperature where there is a temperature."""
    return F.normalize(vectors, dim=-1) / config.temperature if config.temperature > 0 else vectors


def normalised(items: Tensor, config: SequentialConfig) -> Tensor:
    """Item vectors as they are compared: of length 1 where there is a temperature."""
    return F.normalize(items, dim=-1) if config.temperature > 0 else items


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, torch draws from `seed`; outside, as if nothing had happened."""
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _optimizers(network: SequenceNetwork, config: SequentialConfig, *, sparse: bool) -> list[torch.optim.Optimizer]:
    rest = [p for name, p in network.named_parameters() if not (sparse and name == "items.weight")]
    dense = torch.optim.AdamW(rest, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    if not sparse:
        return [dense]
    return [dense, torch.optim.SparseAdam([network.items.weight], lr=config.learning_rate)]
