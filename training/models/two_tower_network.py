"""The two towers in torch: items out of id, words, tags and numbers; users out of the items of their history and attributes.

Owns the network and one step of its loss; which rows are learned from, and serving, is `two_tower`'s.

Legend: `B` samples, `C` candidates of a batch, `L` padded history, `N` items, `V` tokens, `F` numbers, `D` width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.interactions import FloatArray, LongArray
from training.models.two_tower_features import Features


class Content(nn.Module):
    """(b, D) sum of the tokens' vectors and of a linear map of the numbers."""

    def __init__(self, num_tokens: int, num_dense: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.EmbeddingBag(max(num_tokens, 1), width, mode="sum", sparse=True)
        nn.init.normal_(self.tokens.weight, std=width**-0.5)
        self.dense = nn.Parameter(0.1 * width**-0.5 * torch.randn(num_dense, width))

    def forward(self, features: Features, rows: LongArray) -> Tensor:
        """Content of the items or users `rows`."""
        device = self.dense.device
        indices, offsets, weights = (torch.from_numpy(part).to(device) for part in features.bag(rows))
        dense = torch.from_numpy(np.ascontiguousarray(features.dense[rows])).to(device)
        return self.tokens(indices, offsets, per_sample_weights=weights) + dense @ self.dense


class TwoTower(nn.Module):
    """Both towers; `fold` maps pooled item vectors into the user's."""

    def __init__(self, num_items: int, items: Features, users: Features, width: int, dropout: float) -> None:
        super().__init__()
        self.ids = nn.Embedding(num_items, width, sparse=True)
        nn.init.normal_(self.ids.weight, std=0.1 * width**-0.5)
        self.content = Content(items.tokens.shape[1], items.dense.shape[1], width)
        self.attributes = Content(users.tokens.shape[1], users.dense.shape[1], width)
        nn.init.zeros_(self.attributes.tokens.weight)
        nn.init.zeros_(self.attributes.dense)
        self.fold = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.fold.weight)
        self.dropout = nn.Dropout(dropout)

    def items(self, features: Features, rows: LongArray, with_id: FloatArray) -> Tensor:
        """(b, D) unit vectors; `with_id` is 0 where the item is to be known by its content alone."""
        device = self.ids.weight.device
        own = self.ids(torch.from_numpy(rows).to(device)) * torch.from_numpy(with_id).to(device)[:, None]
        return functional.normalize(self.dropout(own + self.content(features, rows)), dim=1)

    def users(self, pooled: Tensor, features: Features, rows: LongArray, known: FloatArray) -> Tensor:
        """(B, D) unit vectors of histories pooled to (B, D); attributes count where `known` is 1."""
        attributes = self.attributes(features, rows) * torch.from_numpy(known).to(pooled.device)[:, None]
        return functional.normalize(self.fold(pooled) + attributes, dim=1)


def sampled_softmax(
    users: Tensor, candidates: Tensor, target: Tensor, candidate_items: Tensor, log_q: Tensor, temperature: float
) -> Tensor:
    """Mean cross-entropy of each user's target among the batch's candidates, corrected for how often each is drawn.

    Source: Yang et al. 2020, "Mixed Negative Sampling for Learning Two-tower Neural Networks in Recommendations".

    Args:
        users: (B, D).
        candidates: (C, D), the first B being the targets.
        target: (B,) item numbers.
        candidate_items: (C,) item numbers; the target where it stands a second time is no negative.
        log_q: (C,) logarithm of the share of draws that are this item.
        temperature: of the softmax.
    """
    logits = users @ candidates.T / temperature - log_q
    own = torch.arange(len(users), device=users.device)
    again = candidate_items[None, :] == target[:, None]
    again[own, own] = False
    return functional.cross_entropy(logits.masked_fill(again, -torch.inf), own)
