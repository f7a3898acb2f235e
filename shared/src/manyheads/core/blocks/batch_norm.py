"""Batch normalisation of sequences, with the statistics of real tokens only; the affine map that it is in evaluation.

Axes: b batch, t tokens, c channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.arguments import checked_constructor
from manyheads.core.errors import ArgumentError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


@checked_constructor
class SequenceBatchNorm(nn.BatchNorm1d):
    """Batch norm of ``(B, T, C)`` over the real tokens.

    In training it uses the statistics of the call and updates the running statistics (their cumulative average if
    ``momentum`` is None). In evaluation it is an affine map for each channel, with the running statistics. The
    arithmetic is in the dtype of the input.

    Raises:
        ArgumentError: fewer than two real tokens in training.
    """

    def forward(self, input: Float[Tensor, "b t c"], real: Bool[Tensor, "b t"] | None = None) -> Float[Tensor, "b t c"]:
        """Normalise; ``real`` is False for padding, which becomes 0 in training. None if there is no padding."""
        if not self.training:
            return self._normalise(input.flatten(0, 1), 0.0).view_as(input)
        chosen = input.flatten(0, 1) if real is None else input[real]
        if chosen.shape[0] < 2:
            raise ArgumentError(
                f"batch norm: x: found {chosen.shape[0]} real tokens in training, expected 2 or more; call eval()"
            )
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        normed = self._normalise(chosen, factor)
        if real is None:
            return normed.view_as(input)
        return torch.zeros_like(input).masked_scatter(real.unsqueeze(2).expand_as(input), normed)

    def _normalise(self, flat: Tensor, factor: float) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, var = self.running_mean.to(flat.dtype), self.running_var.to(flat.dtype)
        weight, bias = self.weight.to(flat.dtype), self.bias.to(flat.dtype)
        normed = functional.batch_norm(flat, mean, var, weight, bias, self.training, factor, self.eps)
        if self.training and mean is not self.running_mean:
            self.running_mean.copy_(mean)
            self.running_var.copy_(var)
        return normed


def affine_of(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Float[Tensor, "c"], Float[Tensor, "c"]]:
    """The scale and the shift of each channel, which a batch norm is in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias.detach() - norm.running_mean * scale
