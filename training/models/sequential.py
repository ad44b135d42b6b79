"""The sequential transformer: what comes next, given the order of a history. Nothing is learnt of users, only of items.

score(b, j) = mean over the members of <network(history of b), vector of j>; the user is folded in from the history, so activity of
a second ago counts, and users unseen in training are like any other.

Sources: Kang and McAuley 2018 (SASRec); Tan et al. 2016 (every beginning of a sequence as a sample); Klenitskiy and Vasilev 2023
(cross entropy over the catalogue). Batches, network, encoder, loss and epochs have files of their own beside this one.

Legend: `B` queries, `N` items, `M` members, `D` width.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from training.arrays import map_arrays, save_arrays
from training.content_columns import content_columns
from training.errors import BundleError, NotTrainableError
from training.interactions import FloatArray, Interactions, LongArray
from training.models.base import ModelConfig, ReportEpoch, TrainingData
from training.models.content import ContentConfig, content_vectors
from training.models.item_item import PRIOR, popularity_share
from training.models.sequential_batches import TokenBatch, lay_out
from training.models.sequential_config import SequentialConfig
from training.models.sequential_encoder import SequenceEncoder
from training.models.vector_retriever import VectorRetriever
from training.queries import QueryBatch

if TYPE_CHECKING:
    from training.models.sequential_network import SequenceNetwork

MODEL_FILE = "sequential.safetensors"
FEW_QUERIES = 16
"""Encoded in numpy on one core, as requests are. More of them are faster in torch, once that is imported."""
ENCODE_TOKENS = 16_384
"""Tokens that are encoded at once, padding left out of the count: bounds memory."""


class Sequential(VectorRetriever):
    """The sequential transformer; see the module and `SequentialConfig`."""

    name: ClassVar[str] = "sequential"
    Config: ClassVar[type[ModelConfig]] = SequentialConfig
    epochs_parameter: ClassVar[str | None] = "epochs"
    members_parameter: ClassVar[str | None] = "members"
    slow: ClassVar[bool] = True
    config: SequentialConfig
    vectors: FloatArray
    popularity: FloatArray
    _encoders: list[SequenceEncoder]
    _networks: list[SequenceNetwork] | None = None
    """The members in torch; None until many histories are encoded at once."""

    def fit(self, data: TrainingData, *, seed: int = 0, on_epoch: ReportEpoch | None = None) -> Self:
        """See `Retriever.fit`. Runs on the GPU where there is one; scoring runs where training ran.

        Raises:
            NotTrainableError: nobody has a second item.
        """
        from training.models.sequential_training import Trainer

        interactions, config = data.interactions, self.config
        if not (np.diff(interactions.indptr) > 1).any():
            raise NotTrainableError("sequential: no history has two entries, so nothing follows anything: use popularity")
        popularity = popularity_share(interactions)
        content = item_content(data, config, seed)
        trainers = [Trainer(interactions, popularity, config, seed + 1_000 * member, content) for member in range(config.members)]
        for epoch in range(1, config.epochs + 1):
            self.training_loss = sum(trainer.epoch(epoch) for trainer in trainers) / len(trainers)
            if on_epoch is not None or epoch == config.epochs:
                self.set_networks([trainer.scoring for trainer in trainers], popularity)
            if on_epoch is not None and on_epoch(epoch, self):
                break
        self.vectors_changed(interactions, seed)
        return self

    @classmethod
    def training_bytes(cls, config: ModelConfig, interactions: Interactions) -> int:
        """See `Retriever.training_bytes`."""
        assert isinstance(config, SequentialConfig)
        num_items, width, blocks = interactions.num_items, config.width, config.blocks
        weights = (num_items + config.max_len) * width + blocks * 13 * width * width
        # Weights, gradients, two moments, the average, item vectors as they are compared and their gradients.
        state = 4 * 7 * weights * config.members
        longest = min(config.max_len, int(np.diff(interactions.indptr).max(initial=1)))
        mean = min(longest, len(interactions) / max(interactions.num_users, 1))
        # A long batch may hold twice the mean; a token keeps some 30 rows a block for the way back, attention a few matrices.
        tokens = config.batch_size * min(float(longest), 2 * mean)
        activations = 4 * tokens * blocks * (30 * width + 8 * config.heads * longest)
        loss = 8 * (max(3_000_000, num_items) if not config.samples(num_items) else 4 * config.batch_size * config.sampled_items)
        # Texts, their words and what both are reduced to.
        content = num_items * (4_000 + 24 * config.content_width) if config.content_width else 0
        return int(state + activations + loss + content + 60 * len(interactions) + 300 * 2**20)

    def query_vectors(self, queries: QueryBatch) -> FloatArray:
        """See `VectorRetriever.query_vectors`: (B, M * D + 1); a query without history gets popularity."""
        found = np.zeros((len(queries), self.vectors.shape[1]), dtype=np.float32)
        found[:, -1] = 1.0
        start = np.maximum(queries.indptr[:-1], queries.indptr[1:] - self.config.max_len)
        encode = self._encode if len(queries) <= FEW_QUERIES else self._encode_many
        for rows in _blocks_of_like_length(queries.indptr[1:] - start):
            batch = lay_out(start[rows], queries.indptr[1:][rows], queries.item_idx, queries.time_us)
            found[rows[batch.row], :-1] = encode(batch)
        return found

    def _encode(self, batch: TokenBatch) -> FloatArray:
        """(S, M * D) float32."""
        temperature = self.config.temperature
        parts = [encoder(batch) for encoder in self._encoders]
        if temperature > 0:
            parts = [part / (temperature * np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)) for part in parts]
        encoded: FloatArray = np.hstack(parts)
        encoded /= len(parts)
        return encoded

    def _encode_many(self, batch: TokenBatch) -> FloatArray:
        """As `_encode` by torch, with all its cores or on the GPU."""
        import torch

        from training.models.sequential_training import scaled

        if self._networks is None:
            self._networks = [_network(encoder) for encoder in self._encoders]
        with torch.inference_mode():
            parts = [scaled(network(batch, every=False), self.config) for network in self._networks]
            encoded: FloatArray = (torch.cat(parts, dim=1) / len(parts)).cpu().numpy()
        return encoded

    def save(self, folder: Path) -> None:
        """See `Retriever.save`: one safetensors file. It also holds the vectors of search, which processes then share as a map."""
        time_bias = np.array([self._encoders[0].shape.time_bias])
        arrays = {"popularity": self.popularity, "time_bias": time_bias, "vectors": self.vectors}
        for member, encoder in enumerate(self._encoders):
            arrays |= {f"{member}.{name}": array for name, array in encoder.weights.items()}
        save_arrays(folder / MODEL_FILE, arrays)
        self.save_index(folder)

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        """See `Retriever.load`."""
        model, arrays = cls(config), map_arrays(folder / MODEL_FILE, copy_on_write=True)
        try:
            model.popularity = arrays["popularity"].astype(np.float32, copy=False)
            model.vectors = arrays["vectors"].astype(np.float32, copy=False)
            shape = model.config.shape(len(model.popularity), bool(arrays["time_bias"][0]))
            marks = [f"{member}." for member in range(model.config.members)]
            states = [{name.removeprefix(m): array for name, array in arrays.items() if name.startswith(m)} for m in marks]
            model._encoders = [SequenceEncoder(shape, state) for state in states]
        except (KeyError, ValueError) as error:
            raise BundleError(f"{MODEL_FILE} does not fit its configuration ({error}); fetch or build the bundle again") from error
        model._known = model.popularity > 0
        model.load_index(folder)
        return model

    def set_networks(self, networks: list[SequenceNetwork], popularity: FloatArray) -> None:
        """Install the fitted state: the members, and the (N,) popularity share in [0, 1]."""
        import torch

        from training.models.sequential_training import normalised

        self._networks, self.popularity, self._known = [network.eval() for network in networks], popularity, popularity > 0
        self._encoders = [
            SequenceEncoder(network.shape, {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()})
            for network in networks
        ]
        trace = torch.from_numpy(np.float32(PRIOR) * popularity)[:, None]
        with torch.inference_mode():
            tables = [normalised(network.items.weight, self.config).cpu() for network in networks]
            self.vectors = torch.cat([*tables, trace], dim=1).numpy()


def _network(encoder: SequenceEncoder) -> SequenceNetwork:
    """The torch network of the same weights."""
    import torch

    from training.models.sequential_network import SequenceNetwork
    from training.torch_skeleton import skeleton

    with skeleton():
        network = SequenceNetwork(encoder.shape)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in encoder.weights.items()}, assign=True)
    return network.eval()


def item_content(data: TrainingData, config: SequentialConfig, seed: int) -> FloatArray | None:
    """(N, C) float32 content vectors of the items; None where they are not wanted or the items have neither texts nor tags."""
    if not config.content_width:
        return None
    columns = content_columns(data.item_attributes, data.interactions.num_items)
    wanted = ContentConfig(width=config.content_width, text_weight=config.text_weight)
    vectors = content_vectors(columns, wanted, seed)
    return vectors if vectors.shape[1] else None


def _blocks_of_like_length(lengths: LongArray) -> Iterator[LongArray]:
    """Numbers of the sequences that are not empty, short ones first, in blocks of about `ENCODE_TOKENS` tokens."""
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    block = np.cumsum(lengths[order]) // ENCODE_TOKENS
    for rows in np.split(order, np.flatnonzero(np.diff(block)) + 1):
        if len(rows):
            yield rows
