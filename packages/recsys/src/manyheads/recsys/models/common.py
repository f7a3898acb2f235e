"""Common parts of the models: settings, tower, linear part, initialisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.errors import ArgumentError
from manyheads.lab.training.experiment import Splits
from manyheads.recsys.features.layout import Layout
from manyheads.recsys.models.global_batch import BatchNorm, own, world
from manyheads.recsys.models.tokens import FieldTokens


@dataclass(frozen=True)
class Config:
    """Settings of a model."""

    dim: int = 10
    """Width of the embeddings."""
    init_sd: float = 1e-4
    """Standard deviation of the initial embeddings."""
    numeric_tokens: int | None = None
    """Mix all numeric fields into this number of tokens; None for one token per numeric field."""
    shared_tables: bool = False
    """Use one embedding table for all fields; an id then has the same meaning in every field."""

    module: ClassVar[type[nn.Module]]

    def build(self, splits: Splits) -> nn.Module:
        return self.make(splits.facts["layout"])

    def make(self, layout: Layout) -> nn.Module:
        """Build ``module(ids (B, C), numbers (B, F)) -> logits (B, K)`` for a layout."""
        if self.dim < 1:
            raise ArgumentError(f"{type(self).module.__name__}: dim: found {self.dim}, expected 1 or more")
        return type(self).module(layout, self)

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of a saved model to the names of this version."""
        return dict(tensors)

    def tokens(self, layout: Layout) -> FieldTokens:
        return FieldTokens(
            layout,
            self.dim,
            init_sd=self.init_sd,
            numeric_tokens=self.numeric_tokens,
            shared=self.shared_tables,
        )


class _ReluDropout(torch.autograd.Function):
    """ReLU and dropout in place, with 16 random bits per element instead of a random float.

    The two functions of torch cost more than the matrix products of a tower. The backward pass needs only the sign of
    the result.
    """

    @staticmethod
    def forward(ctx, x: Tensor, dropped: float) -> Tensor:
        ctx.mark_dirty(x)
        ctx.scale = 1.0 / (1.0 - dropped)
        # drawn for the rows of all processes, so that N processes have the mask of one
        count = x.numel() * world()
        words = torch.empty((count + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        bits = own(words.view(torch.int16)[:count].view(-1, *x.shape[1:]))
        # written as float, which saves the conversion from bool
        kept = torch.ge(bits, round(dropped * _LEVELS) - _LEVELS // 2, out=torch.empty_like(x))
        x.relu_().mul_(kept).mul_(ctx.scale)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradients[0], y, 0).mul_(ctx.scale), None


_LEVELS = 1 << 16


class ReluDropout(nn.Module):
    """Fused ``dropout(relu(x))``; the dropout rate ``p`` is rounded to a multiple of 2^-16.

    Overwrites ``x`` in training, so ``x`` must not be used elsewhere, as for the result of a norm.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ArgumentError(f"dropout: found {p}, expected 0 or more and less than 1")
        self.p = round(p * _LEVELS) / _LEVELS

    def forward(self, x: Tensor) -> Tensor:
        return _ReluDropout.apply(x, self.p) if self.training and self.p else functional.relu(x)


class Tower(nn.Sequential):
    """MLP: linear map, batch norm, ReLU and dropout per hidden width; then a linear map unless ``outputs`` is None."""

    def __init__(
        self, inputs: int, hidden: Sequence[int], outputs: int | None, *, dropout: float = 0.0, batch_norm: bool = True
    ) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(inputs, width), *([BatchNorm(width)] if batch_norm else []), ReluDropout(dropout)]
            inputs = width
        if outputs is not None:
            layers.append(nn.Linear(inputs, outputs))
        super().__init__(*layers)
        self.outputs = inputs if outputs is None else outputs
        start(self)


class Wide(nn.Module):
    """Linear part: the sum of one weight per value and per number, ``(B, K)``."""

    def __init__(self, layout: Layout, *, init_sd: float = 1e-4) -> None:
        super().__init__()
        self.weights = FieldTokens(layout, len(layout.tasks), init_sd=init_sd)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        return self.weights(ids, numbers).sum(1)


def pair_sum(tokens: Tensor) -> Tensor:
    """Sum the inner products of all pairs, ``(B, T, D)`` -> ``(B, 1)``: ``(|sum e|^2 - sum |e|^2) / 2``."""
    return 0.5 * (tokens.sum(1).square() - tokens.square().sum(1)).sum(1, keepdim=True)


def start(module: nn.Module) -> None:
    """Initialise linear maps as in BARS: Xavier normal weights, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
