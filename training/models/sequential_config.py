"""Parameters of the sequential model. Free of torch, so that studies can be checked without loading it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from training.models.base import ModelConfig
from training.models.sequential_shape import NetworkShape
from training.queries import MAX_HISTORY

FULL_SOFTMAX_ITEMS = 50_000
"""Larger catalogues are learnt by sampled softmax: a full one costs time and memory with every item of every batch."""


EPOCH_STEPS = 100
"""Steps of an epoch at least: small data, in batches made for large data, would be learnt in hundreds of epochs of ten steps."""
LEAST_BATCH = 8


class SequentialConfig(ModelConfig):
    """Parameters of the sequential transformer.

    Args:
        targets: `every`: a history is shown once an epoch and each of its entries predicts the next. `last`: every beginning of a
            history is a sample of its own with one target, the entry after it; an epoch costs more the longer the histories are.
        width: of item vectors and layers.
        blocks: of attention and feed-forward.
        heads: of attention; divides the width.
        max_len: entries of a history that are looked at, the most recent ones.
        dropout: of embeddings and layers.
        attention_dropout: of attention weights.
        learning_rate: constant after a short rise.
        weight_decay: of AdamW.
        batch_size: samples (`last`) or stretches of histories (`every`) a step, fewer where an epoch would have under
            `EPOCH_STEPS` steps.
        epochs: over all targets.
        label_smoothing: share of each target spread over all items.
        temperature: above 0, vectors are compared by cosine / temperature; 0 compares by dot product.
        average: the scoring weights are an exponential moving average, this much kept a step; 0 scores with the last weights.
        time_bias: attention also knows the time between two entries; without effect where the data has no times.
        filter_share: share of BSARec's frequency filter beside attention; 0 leaves it out.
        filter_cutoff: frequencies of a window of `max_len` that the filter counts as slow.
        content_width: above 0, item vectors also learn from the items' texts and tags, reduced to so many dimensions each.
        text_weight: share of the texts in an item's content, the rest being the tags'.
        members: networks of different seeds whose scores are averaged.
        sampled_items: drawn a step where the catalogue is above `FULL_SOFTMAX_ITEMS`.
        precision: `auto` multiplies in bfloat16 (TF32 on a GPU) where the hardware does; `float32` never.
    """

    targets: Literal["last", "every"] = "every"
    width: int = Field(default=64, ge=4, le=1024)
    blocks: int = Field(default=2, ge=1, le=12)
    heads: int = Field(default=2, ge=1, le=16)
    max_len: int = Field(default=200, ge=1, le=MAX_HISTORY)
    dropout: float = Field(default=0.4, ge=0, lt=1)
    attention_dropout: float = Field(default=0.2, ge=0, lt=1)
    learning_rate: float = Field(default=1e-3, gt=0, le=0.1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    batch_size: int = Field(default=128, ge=1, le=65_536)
    epochs: int = Field(default=30, ge=1, le=1_000)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    temperature: float = Field(default=0.0, ge=0, le=10)
    average: float = Field(default=0.995, ge=0, lt=1)
    time_bias: bool = False
    filter_share: float = Field(default=0.0, ge=0, le=1)
    filter_cutoff: int = Field(default=5, ge=0, le=100)
    content_width: int = Field(default=0, ge=0, le=1024)
    text_weight: float = Field(default=0.7, ge=0, le=1)
    members: int = Field(default=1, ge=1, le=10)
    sampled_items: int = Field(default=4096, ge=1, le=100_000)
    precision: Literal["auto", "float32"] = "auto"

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    @property
    def every_position(self) -> bool:
        """Whether every entry of a history is learnt from at once."""
        return self.targets == "every"

    def step_samples(self, stretches: int) -> int:
        """Samples or stretches a step, of so many an epoch."""
        return min(self.batch_size, max(LEAST_BATCH, stretches // EPOCH_STEPS))

    def samples(self, num_items: int) -> bool:
        """Whether the loss looks at a sample of the catalogue."""
        return num_items > FULL_SOFTMAX_ITEMS

    def shape(self, num_items: int, has_times: bool) -> NetworkShape:
        """Of the networks for this many items."""
        return NetworkShape(
            num_items=num_items,
            width=self.width,
            blocks=self.blocks,
            heads=self.heads,
            max_len=self.max_len,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            every=self.every_position,
            time_bias=self.time_bias and has_times,
            filter_share=self.filter_share,
            filter_cutoff=self.filter_cutoff,
            fast=self.precision == "auto",
        )
