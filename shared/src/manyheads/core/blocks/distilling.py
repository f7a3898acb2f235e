"""Distilling between two layers of Informer (2012.07436): half as many tokens, the strongest features of each pair.

    y = MaxPool_3,2(ELU(BN(Conv_3(x))))      the convolution on a circle

Shapes: ``(B, T, D)`` to ``(B, (T + 1) // 2, D)``.

Differs from the authors' code, which pads the circle by 2 and so adds two tokens before the pooling.
"""

from __future__ import annotations

from torch import Tensor, nn

from manyheads.core.arguments import checked_constructor


@checked_constructor
class Distilling(nn.Module):
    """See the module for the equation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(dim, dim, 3, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm1d(dim)
        self.pool = nn.MaxPool1d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(nn.functional.elu(self.norm(self.convolution(x.transpose(1, 2))))).transpose(1, 2)
