"""Convolutions along time that stream: over ``(B, T, C)`` and over ``(B, T, M, C)``, time by bins.

    y[j] = b + sum_{i < k} W[i] x[s (j + 1) - 1 - d (k - 1 - i)],   x[t] = 0 for t < 0

with kernel k, stride s and dilation d along time: output j needs the input up to ``s (j + 1) - 1`` and no later. In
chunks, whose lengths are multiples of s, the state holds the last ``d (k - 1) + 1 - s`` frames.

Look-ahead is a matter of reading: with ``lookahead = a`` the output that appears at step j is meant for step
``j - a / s``, whose window then reaches a frames beyond it; a centred convolution is the one with a = (k - 1) / 2. The
first ``a / s`` outputs are meant for steps before the start, and whoever stacks such convolutions blanks them.

Axes: B batch, T frames, M bins, C channels. Cost: ``O(T k C C')`` (times M and the kernel over bins), the state
``O(k C)``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.arguments import checked_constructor
from manyheads.core.errors import ArgumentError, StateError


class ConvolutionState(NamedTuple):
    """The frames that later outputs still see."""

    frames: Tensor  # (B, d (k - 1) + 1 - s, …)


@checked_constructor
class CausalConvolution(nn.Module):
    """``(B, T, C) -> (B, T / s, C')``; the weight is ``(C', C, k)``, as in ``nn.Conv1d``.

    Args:
        inputs, outputs: C and C'.
        kernel: k.
        stride: s; chunks must be multiples of it.
        dilation: d.
        lookahead: a, frames; a multiple of ``stride``, at most ``d (k - 1)``.
        bias: whether there is b.

    Raises:
        ArgumentError: sizes below 1, a stride beyond the kernel's reach, a look-ahead that does not fit.
    """

    row_weight: Tensor | None
    image_weight: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        lookahead: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        _check(inputs, outputs, kernel, stride, dilation, lookahead)
        self.inputs, self.outputs, self.kernel = inputs, outputs, kernel
        self.stride, self.dilation, self.lookahead = stride, dilation, lookahead
        made = nn.Conv1d(inputs, outputs, kernel, bias=bias)
        self.weight, self.bias = made.weight, made.bias
        self.register_buffer("row_weight", None)  # (C', k C): see freeze
        self.register_buffer("image_weight", None, persistent=False)  # (C', C, 1, k)

    @property
    def context(self) -> int:
        """Frames in the state."""
        return self.dilation * (self.kernel - 1) + 1 - self.stride

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ConvolutionState:
        """Before the first frame."""
        return ConvolutionState(torch.zeros(batch, self.context, self.inputs, device=device, dtype=dtype))

    def forward(self, x: Tensor, state: ConvolutionState | None = None) -> tuple[Tensor, ConvolutionState]:
        """Any number of frames that is a multiple of the stride, none included."""
        if x.dim() != 3 or x.shape[2] != self.inputs:
            raise ArgumentError(f"convolution: x: found shape {tuple(x.shape)}, expected (B, T, {self.inputs})")
        state = self.init_state(x.shape[0], device=x.device, dtype=x.dtype) if state is None else state
        seen, state = _extend(x, state, self.context, self.stride)
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], 0, self.outputs), state
        if self.kernel == 1 and self.stride == 1:
            return functional.linear(seen, self.weight[:, :, 0], self.bias), state
        if seen.shape[1] == self.kernel and self.dilation == 1:  # one output: a product
            if self.row_weight is not None:
                return functional.linear(seen.flatten(1), self.row_weight, self.bias).unsqueeze(1), state
            window = seen.transpose(1, 2).flatten(1)
            return functional.linear(window, self.weight.flatten(1), self.bias).unsqueeze(1), state
        # as an image of height 1 with the channels last: in and out lie as they are, nothing is transposed
        image = seen.transpose(1, 2).unsqueeze(2)
        weight = self.weight.unsqueeze(2) if self.image_weight is None else self.image_weight
        y = functional.conv2d(image, weight, self.bias, (1, self.stride), 0, (1, self.dilation))
        return y.squeeze(2).transpose(1, 2), state

    def freeze(self) -> None:
        """Keeps the weight in the orders of a stream's window and of an image too: it will not change any more."""
        self.image_weight = self.weight.detach().unsqueeze(2).contiguous(memory_format=torch.channels_last)
        self.row_weight = self.weight.detach().transpose(1, 2).flatten(1).contiguous()


@checked_constructor
class CausalConvolution2d(nn.Module):
    """``(B, T, M, C) -> (B, T / s, M', C')``, causal along time, centred along the bins: M' = ceil(M / bin_stride).

    The weight is ``(C', C, k, k_bins)``, as in ``nn.Conv2d``; zeros stand beside the outermost bins.

    Args:
        inputs, outputs: C and C'.
        kernel: taps along time and along the bins; the latter odd.
        stride: along time.
        bin_stride: along the bins.
        lookahead: frames; a multiple of ``stride``, at most ``k - 1``.
        bias: whether there is one.

    Raises:
        ArgumentError: as :class:`CausalConvolution`; an even kernel over the bins.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        bin_stride: int = 1,
        lookahead: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        _check(inputs, outputs, kernel[0], stride, 1, lookahead)
        if kernel[1] < 1 or kernel[1] % 2 == 0 or bin_stride < 1:
            raise ArgumentError(
                f"convolution: found a kernel of {kernel[1]} bins and a stride of {bin_stride}, expected an odd kernel "
                "and a stride of 1 or more"
            )
        self.inputs, self.outputs, self.kernel = inputs, outputs, kernel
        self.stride, self.bin_stride, self.lookahead = stride, bin_stride, lookahead
        made = nn.Conv2d(inputs, outputs, kernel, bias=bias)
        self.weight, self.bias = made.weight, made.bias

    @property
    def context(self) -> int:
        """Frames in the state."""
        return self.kernel[0] - self.stride

    def bins_after(self, bins: int) -> int:
        """M' for M."""
        return -(-bins // self.bin_stride)

    def init_state(
        self, batch: int, bins: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ConvolutionState:
        """Before the first frame."""
        return ConvolutionState(torch.zeros(batch, self.context, bins, self.inputs, device=device, dtype=dtype))

    def forward(self, x: Tensor, state: ConvolutionState | None = None) -> tuple[Tensor, ConvolutionState]:
        """Any number of frames that is a multiple of the stride, none included."""
        if x.dim() != 4 or x.shape[3] != self.inputs:
            raise ArgumentError(f"convolution: x: found shape {tuple(x.shape)}, expected (B, T, M, {self.inputs})")
        batch, tokens, bins, _ = x.shape
        state = self.init_state(batch, bins, device=x.device, dtype=x.dtype) if state is None else state
        seen, state = _extend(x, state, self.context, self.stride)
        if tokens == 0:
            return x.new_zeros(batch, 0, self.bins_after(bins), self.outputs), state
        y = functional.conv2d(
            seen.permute(0, 3, 1, 2),
            self.weight,
            self.bias,
            (self.stride, self.bin_stride),
            (0, self.kernel[1] // 2),
        )
        return y.permute(0, 2, 3, 1), state


def _extend(x: Tensor, state: ConvolutionState, context: int, stride: int) -> tuple[Tensor, ConvolutionState]:
    """The frames that this chunk's outputs see, and the state after it."""
    if x.shape[1] % stride:
        raise ArgumentError(f"convolution: x: found {x.shape[1]} frames, expected a multiple of the stride {stride}")
    if state.frames.shape != (x.shape[0], context, *x.shape[2:]):
        raise StateError(
            f"convolution: state: found shape {tuple(state.frames.shape)}, expected "
            f"{(x.shape[0], context, *x.shape[2:])}"
        )
    seen = torch.cat([state.frames.to(x.dtype), x], 1)
    return seen, ConvolutionState(seen[:, -context:] if context else seen[:, :0])


def _check(inputs: int, outputs: int, kernel: int, stride: int, dilation: int, lookahead: int) -> None:
    sizes = {"inputs": inputs, "outputs": outputs, "kernel": kernel, "stride": stride, "dilation": dilation}
    for name, value in sizes.items():
        if value < 1:
            raise ArgumentError(f"convolution: {name}: found {value}, expected 1 or more")
    reach = dilation * (kernel - 1)
    if stride > reach + 1:
        raise ArgumentError(f"convolution: stride: found {stride}, expected at most the {reach + 1} frames of a window")
    if not 0 <= lookahead <= reach or lookahead % stride:
        raise ArgumentError(
            f"convolution: lookahead: found {lookahead}, expected a multiple of the stride {stride} from 0 to {reach}"
        )
