"""Item vectors of the sequential model: one a row, and with content also what the item's texts and tags say.

vector(j) = own vector of j + projection of the content of j. Items of few interactions borrow from items with like texts; who has
many finds its own place beside. Once trained, both are added up and the content is not needed any more.

Legend: `N` items, `D` width, `C` width of the content.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ItemVectors(nn.Embedding):
    """(N, D) vectors; with content (N, C) a learnt projection of it is added."""

    content: Tensor

    def __init__(self, num_items: int, width: int, content: Tensor | None = None, *, sparse: bool = False) -> None:
        super().__init__(num_items, width, sparse=sparse)
        self.register_buffer("content", content, persistent=False)
        self.projection = None if content is None else nn.Parameter(torch.zeros(width, content.shape[1]))

    def forward(self, input: Tensor) -> Tensor:
        """Item numbers of any shape -> (..., D)."""
        own = super().forward(input)
        return own if self.projection is None else own + F.linear(self.content[input], self.projection)

    def table(self) -> Tensor:
        """(N, D): the vectors of all items."""
        return self.weight if self.projection is None else self.weight + F.linear(self.content, self.projection)

    @torch.no_grad()
    def summed(self) -> Self:
        """The same vectors without content."""
        plain = type(self)(self.num_embeddings, self.embedding_dim).to(self.weight.device)
        plain.weight.copy_(self.table())
        return plain
