"""A linear map for each token's place: what layers over fields of a record use instead of a shared one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked_constructor


@checked_constructor
class FieldLinear(nn.Module):
    """``y[b, t] = W_t x[b, t] + b_t``: ``(B, T, I)`` -> ``(B, T, O)`` for exactly T = ``fields`` tokens.

    One batched product over the fields. ``y`` is a transposed view of a field-major tensor, and an ``x`` of that layout
    is read without a copy. ``weight (T, O, I)``, ``bias (T, O)``, each started as nn.Linear's.
    """

    def __init__(self, fields: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(fields, outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(fields, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        # baddbmm would first write the bias out at full size, for a fourth of the product's time
        y = torch.bmm(x.transpose(0, 1), self.weight.mT).add_(self.bias.unsqueeze(1))
        return y.transpose(0, 1)
