"""The network of the sequential model: a causal transformer over item histories, reading what `sequential_batches` lays out.

Post-norm blocks of attention and a feed-forward layer. Positions count from the prediction point: as an embedding where only the
last position predicts, as a bias of attention by distance where every position does. Item vectors serve as input and as output.

Sources: Kang and McAuley 2018 (SASRec); Shin et al. 2024 (BSARec, the frequency filter); Raffel et al. 2020 (bias by distance);
Zhai et al. 2024 (HSTU, bias by time).

Legend: `T` tokens, `S` sequences, `D` width, `H` heads, `n` sequences of a group, `L` their padded length.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.sequential_batches import Group, TokenBatch
from training.models.sequential_items import ItemVectors
from training.models.sequential_products import Linear
from training.models.sequential_shape import NORM_EPSILON, TIME_BUCKETS, NetworkShape

INIT_STD = 0.02
"""Of item vectors, positions and layers: logits start near zero and blocks near the identity, so that item vectors learn first."""


class Noise:
    """Random bytes for dropout on the CPU: a mask of a batch costs a tenth of torch's own."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.Generator(np.random.SFC64(seed))

    def mask(self, shape: torch.Size, rate: float) -> Tensor:
        """Float32 of `shape`: 0 with probability `rate` (to 1/256), else what keeps the mean at 1."""
        count = shape.numel()
        drawn = self._rng.integers(0, 2**64, -(-count // 8), dtype=np.uint64).view(np.uint8)[:count]
        least = min(max(round(rate * 256), 1), 255)
        kept = torch.from_numpy(drawn).view(shape) >= least
        return kept.to(torch.float32).mul_(256 / (256 - least))


class Dropout(nn.Module):
    """Dropout by `Noise` on the CPU, by torch elsewhere."""

    def __init__(self, rate: float, noise: Noise) -> None:
        super().__init__()
        self.rate, self.noise = rate, noise

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.rate)
        return x * self.noise.mask(x.shape, self.rate)


class Block(nn.Module):
    """Attention, mixed with the frequency filter where there is one, and the feed-forward layer."""

    def __init__(self, shape: NetworkShape, noise: Noise) -> None:
        super().__init__()
        self.shape, width = shape, shape.width
        self.query = Linear(width, width, fast=shape.fast)
        self.key_value = Linear(width, 2 * width, fast=shape.fast)
        self.out = Linear(width, width, fast=shape.fast)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.widen = Linear(width, 4 * width, fast=shape.fast)
        self.narrow = Linear(4 * width, width, fast=shape.fast)
        self.feed_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.dropout, self.attention_dropout = Dropout(shape.dropout, noise), Dropout(shape.attention_dropout, noise)
        self.distance = nn.Parameter(torch.zeros(shape.heads, shape.max_len)) if shape.every else None
        self.since = nn.Parameter(torch.zeros(TIME_BUCKETS, shape.heads)) if shape.time_bias else None
        if shape.filter_share > 0:
            self.high = nn.Parameter(torch.ones(width))
            self.filter_norm = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, x: Tensor, tokens: Tokens, last_only: bool) -> Tensor:
        """x (T, D) -> (T, D), or (S, D) for the last token of each sequence alone."""
        asked = x[tokens.last] if last_only else x
        query, key_value = self.query(asked), self.key_value(x)
        # One split, not a slice a group: the way back joins its parts once instead of adding up whole rows.
        queries = torch.split(query, [g.count if last_only else g.count * g.length for g in tokens.groups])
        keys_values = _by_group(key_value, tokens.groups)
        mixed = [self._attend(queries[n], keys_values[n], tokens, n, last_only) for n in range(len(tokens.groups))]
        attended = self.norm(self.dropout(self.out(torch.cat(mixed))) + asked)
        if self.shape.filter_share > 0:
            low = tokens.low_pass(x, last_only)
            filtered = low + self.high.square() * (asked - low)
            filtered = self.filter_norm(self.dropout(filtered) + asked)
            attended = self.shape.filter_share * filtered + (1 - self.shape.filter_share) * attended
        fed = self.narrow(F.gelu(self.widen(attended)))
        return self.feed_norm(self.dropout(fed) + attended)

    def _attend(self, query: Tensor, key_value: Tensor, tokens: Tokens, number: int, last_only: bool) -> Tensor:
        """Attention within the sequences of one group: (n * L, D), or (n, D)."""
        heads, width = self.shape.heads, self.shape.width
        count, length = tokens.groups[number].count, tokens.groups[number].length
        part = key_value.view(count, length, 2, heads, width // heads)
        key, value = part[:, :, 0].transpose(1, 2), part[:, :, 1].transpose(1, 2)
        wanted = query.view(count, -1, heads, width // heads).transpose(1, 2) * (width // heads) ** -0.5
        scores = wanted @ key.transpose(2, 3)
        bias = tokens.mask(number, last_only)
        if self.distance is not None:
            bias = bias + tokens.by_distance(self.distance, length, last_only)
        if self.since is not None:
            bias = bias + tokens.by_time(self.since, number, last_only)
        share = self.attention_dropout(torch.softmax(scores + bias, dim=-1))
        return (share @ value).transpose(1, 2).reshape(-1, width)


class SequenceNetwork(nn.Module):
    """Item histories to vectors that are compared with item vectors."""

    def __init__(self, shape: NetworkShape, seed: int = 0, *, content: Tensor | None = None, sparse: bool = False) -> None:
        super().__init__()
        self.shape, noise = shape, Noise(seed)
        self.items = ItemVectors(shape.num_items, shape.width, content, sparse=sparse)
        self.position = None if shape.every else nn.Parameter(torch.zeros(shape.max_len, shape.width))
        self.norm = nn.LayerNorm(shape.width, eps=NORM_EPSILON)
        self.dropout = Dropout(shape.dropout, noise)
        self.blocks = nn.ModuleList(Block(shape, noise) for _ in range(shape.blocks))
        nn.init.normal_(self.items.weight, std=INIT_STD)
        if self.items.projection is not None:
            nn.init.normal_(self.items.projection, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)
        if self.position is not None:
            nn.init.normal_(self.position, std=INIT_STD)

    def forward(self, batch: TokenBatch, every: bool) -> Tensor:
        """(T, D) for each token where `every`, else (S, D) for the last token of each sequence, in the order of the tokens."""
        tokens = Tokens(batch, self.shape, self.items.weight.device)
        x = self.items(tokens.item_idx)
        if self.position is not None:
            x = x + self.position[tokens.from_end]
        x = self.dropout(self.norm(x))
        for number, block in enumerate(self.blocks):
            x = block(x, tokens, last_only=not every and number == len(self.blocks) - 1)
        return x


class Tokens:
    """A batch on the device, with what the blocks share: masks, distances and times."""

    def __init__(self, batch: TokenBatch, shape: NetworkShape, device: torch.device) -> None:
        self.groups, self._shape, self._device = batch.groups, shape, device
        self.item_idx = torch.from_numpy(batch.item_idx).to(device)
        self.from_end = torch.from_numpy(batch.from_end).to(device)
        self.last = torch.from_numpy(batch.last).to(device)
        self._masks = [self._mask_of(group, batch) for group in batch.groups]
        self._times = [self._buckets_of(group, batch) if shape.time_bias else None for group in batch.groups]

    def mask(self, number: int, last_only: bool) -> Tensor:
        """Added to attention: 0 or -inf, (n or 1, 1, L or 1, L)."""
        return self._masks[number][:, :, -1:] if last_only else self._masks[number]

    def by_distance(self, table: Tensor, length: int, last_only: bool) -> Tensor:
        """(H, L or 1, L) out of the table (H, max_len)."""
        places = torch.arange(length, device=self._device)
        asked = places[-1:] if last_only else places
        return table[:, (asked[:, None] - places).clamp(min=0)]

    def by_time(self, table: Tensor, number: int, last_only: bool) -> Tensor:
        """(n, H, L or 1, L) out of the table (TIME_BUCKETS, H)."""
        buckets = self._times[number]
        assert buckets is not None
        return _lookup(table, buckets[:, -1:] if last_only else buckets).permute(0, 3, 1, 2)

    def low_pass(self, x: Tensor, last_only: bool) -> Tensor:
        """The slow part of each sequence, (T, D) or (S, D): frequencies up to the cutoff of a sequence of `max_len`."""
        parts = []
        for number, part in enumerate(_by_group(x, self.groups)):
            length = self.groups[number].length
            kernel = torch.from_numpy(self._shape.low_pass_kernel(length)).to(x.device)
            if last_only:
                kernel = kernel[-1:]
            seen = self._masks[number][:, 0, -1, :].exp()[:, :, None]
            parts.append((kernel @ (part.view(-1, length, x.shape[1]) * seen)).reshape(-1, x.shape[1]))
        return torch.cat(parts)

    def _mask_of(self, group: Group, batch: TokenBatch) -> Tensor:
        causal = torch.full((group.length, group.length), -math.inf).triu(1)
        valid = batch.valid[group.offset : group.offset + group.count * group.length].reshape(group.count, group.length)
        if valid.all():
            return causal[None, None].to(self._device)
        padding = torch.from_numpy(np.where(valid, np.float32(0), np.float32(-np.inf)))
        mask = causal + padding[:, None, None, :]
        # Tokens of the padding look at themselves, so that their softmax is finite; nobody looks at them.
        mask.diagonal(dim1=2, dim2=3).zero_()
        return mask.to(self._device)

    def _buckets_of(self, group: Group, batch: TokenBatch) -> Tensor:
        times = batch.time_us[group.offset : group.offset + group.count * group.length].reshape(group.count, group.length)
        # In float32 a time of today is known to two minutes only.
        seconds = torch.from_numpy(times).to(self._device, torch.float64).div_(1e6)
        gap = (seconds[:, :, None] - seconds[:, None, :]).clamp_(min=0).float()
        return gap.add_(1).log2_().to(torch.int64).clamp_(max=TIME_BUCKETS - 1)


def _by_group(x: Tensor, groups: tuple[Group, ...]) -> tuple[Tensor, ...]:
    """The tokens (T, ...) of each group."""
    return torch.split(x, [group.count * group.length for group in groups])


class _Lookup(torch.autograd.Function):
    """table[index] whose gradient is summed by `bincount`: torch's own adds rows one by one."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = table.shape[0]  # type: ignore[attr-defined]
        return table[index]

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors  # type: ignore[attr-defined]
        flat, rows = index.reshape(-1), ctx.rows  # type: ignore[attr-defined]
        grad = grads[0].reshape(len(flat), -1)
        columns = [torch.bincount(flat, grad[:, head].contiguous(), rows) for head in range(grad.shape[1])]
        return torch.stack(columns, dim=1).to(grad.dtype), None


_lookup: Callable[[Tensor, Tensor], Tensor] = _Lookup.apply
