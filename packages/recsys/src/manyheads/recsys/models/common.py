"""What the models have in common: their settings, the tower, the linear part, how they start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.lab.experiment import Splits
from manyheads.recsys.layout import Layout
from manyheads.recsys.models.tokens import FieldTokens
from manyheads.recsys.ranks import BatchNorm, Dropout


@dataclass(frozen=True)
class Config:
    """Settings of a model; ``build`` makes it for a layout."""

    dim: int = 10
    """Width of the embeddings."""
    init_sd: float = 1e-4
    """Standard deviation that the embeddings start from."""
    numeric_tokens: int | None = None
    """Mix all numeric fields into so many tokens; one for each without."""

    module: ClassVar[type[nn.Module]]

    def build(self, splits: Splits) -> nn.Module:
        return self.make(splits.facts["layout"])

    def make(self, layout: Layout) -> nn.Module:
        """``module(ids (B, C), numbers (B, F)) -> logits (B, K)``."""
        if self.dim < 1:
            raise ArgumentError(f"{type(self).module.__name__}: dim: found {self.dim}, expected 1 or more")
        return type(self).module(layout, self)

    def tokens(self, layout: Layout) -> FieldTokens:
        return FieldTokens(layout, self.dim, init_sd=self.init_sd, numeric_tokens=self.numeric_tokens)


class Tower(nn.Sequential):
    """Linear, batch norm, ReLU, dropout for each of ``hidden``; then a linear map to ``outputs`` unless it is None."""

    def __init__(
        self, inputs: int, hidden: Sequence[int], outputs: int | None, *, dropout: float = 0.0, batch_norm: bool = True
    ) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(inputs, width), *([BatchNorm(width)] if batch_norm else []), nn.ReLU()]
            layers += [Dropout(dropout)] if dropout else []
            inputs = width
        if outputs is not None:
            layers.append(nn.Linear(inputs, outputs))
        super().__init__(*layers)
        self.outputs = inputs if outputs is None else outputs
        start(self)


class Wide(nn.Module):
    """A weight for each value and number, summed: ``(B, K)``."""

    def __init__(self, layout: Layout, *, init_sd: float = 1e-4) -> None:
        super().__init__()
        self.weights = FieldTokens(layout, len(layout.tasks), init_sd=init_sd)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        return self.weights(ids, numbers).sum(1)


def pair_sum(tokens: Tensor) -> Tensor:
    """The sum of all products of two fields, ``(B, T, D)`` -> ``(B, 1)``: half of ``|sum e|^2 - sum |e|^2``."""
    return 0.5 * (tokens.sum(1).square() - tokens.square().sum(1)).sum(1, keepdim=True)


def start(module: nn.Module) -> None:
    """Linear maps from Xavier's normal, biases from 0, as BARS trains them."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
