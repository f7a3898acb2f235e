"""Self-attention distilling of Informer (2012.07436): halve the tokens between two layers by max pooling.

    y = MaxPool_3,2(ELU(BN(Conv_3(x))))      with a circular convolution

Axes: b batch, t tokens, d width; n = (T + 1) // 2 tokens of the output.

Differs from the authors' code, whose circular padding of 2 adds two tokens before the pooling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from manyheads.core.arguments import checked_constructor

if TYPE_CHECKING:
    from jaxtyping import Float


@checked_constructor
class Distilling(nn.Module):
    """Halve the tokens; see the module for the equation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(dim, dim, 3, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm1d(dim)
        self.pool = nn.MaxPool1d(3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b n d"]:
        """Convolve and pool."""
        return self.pool(nn.functional.elu(self.norm(self.convolution(x.transpose(1, 2))))).transpose(1, 2)
