"""A linear map with its own weights for each field of a record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked_constructor

if TYPE_CHECKING:
    from jaxtyping import Float


@checked_constructor
class FieldLinear(nn.Module):
    """Linear map ``y[b, t] = W_t x[b, t] + b_t`` of each token, for exactly T = ``fields`` tokens.

    One batched product over the fields. ``y`` is a transposed view of a field-major tensor, and an ``x`` of that layout
    is read without a copy. ``weight (T, O, I)`` and ``bias (T, O)`` are initialised like those of ``nn.Linear``.

    Axes: b batch, t fields, i inputs, o outputs.
    """

    def __init__(self, fields: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(fields, outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(fields, outputs).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "b t i"]) -> Float[Tensor, "b t o"]:
        """Map each token."""
        # baddbmm would first expand the bias to full size, which takes a fourth of the time of the product.
        y = torch.bmm(x.transpose(0, 1), self.weight.mT).add_(self.bias.unsqueeze(1))
        return y.transpose(0, 1)
