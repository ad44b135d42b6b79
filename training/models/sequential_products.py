"""Matrix products of the sequential model in training: float32 in and out, multiplied in bfloat16 where the CPU does that faster.

A CPU with AVX-512 BF16 or AMX multiplies two to three times as fast so; sums stay in float32. The library (oneDNN) compiles code
for each shape that it sees, which costs more than it saves where every batch has its own: products are made in blocks of `ROWS`
rows, and what is left over in float32.

Legend: `T` rows, `D` and `W` widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 512
"""Rows of a block."""
LEAST_ROWS = 64
"""Of a block with fast products."""


class Linear(nn.Linear):
    """`nn.Linear` with fast products in training."""

    def __init__(self, inputs: int, outputs: int, *, fast: bool) -> None:
        super().__init__(inputs, outputs)
        self.fast = fast

    def forward(self, x: Tensor) -> Tensor:
        """x (T, D) -> (T, W)."""
        if self.training and self.fast and x.device.type == "cpu" and has_bfloat16():
            return _linear(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        out = x.new_empty(len(x), len(weight))
        by_blocks(len(x), lambda part: torch.addmm(bias, x[part], weight.T, out=out[part]))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (x, weight), (grad,) = ctx.saved_tensors, grads
        to_x, to_weight = torch.empty_like(x), torch.zeros_like(weight)

        def block(part: slice) -> None:
            torch.mm(grad[part], weight, out=to_x[part])
            to_weight.addmm_(grad[part].T, x[part])

        by_blocks(len(x), block)
        return to_x, to_weight, grad.sum(dim=0)


_linear: Callable[[Tensor, Tensor, Tensor], Tensor] = _Linear.apply


def by_blocks(rows: int, work: Callable[[slice], object], size: int = ROWS, *, fast: bool = True) -> None:
    """Call `work` on all rows: with fast products on blocks of `size`, then of its halves; without them on the few left over."""
    done, block = 0, size
    with bfloat16_products(fast):
        while block >= LEAST_ROWS:
            for start in range(done, rows - block + 1, block):
                work(slice(start, start + block))
                done = start + block
            block //= 2
    for start in range(done, rows, size):
        work(slice(start, min(start + size, rows)))


@contextmanager
def bfloat16_products(wanted: bool) -> Iterator[None]:
    """Within, products of float32 matrices are made in bfloat16 where the CPU has instructions for that, if `wanted`."""
    if not (wanted and has_bfloat16()):
        yield
        return
    held = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(held)


@lru_cache(maxsize=1)
def has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 faster than in float32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
