"""Streaming causal convolutions along time: over ``(B, T, C)`` and over ``(B, T, M, C)``, time by bins.

    y[j] = b + sum_{i < k} W[i] x[s (j + 1) - 1 - d (k - 1 - i)],   x[t] = 0 for t < 0

with kernel k, stride s and dilation d along time: output j needs the input up to ``s (j + 1) - 1`` and no later. In
chunks, whose lengths are multiples of s, the state holds the last ``d (k - 1) + 1 - s`` frames.

Look-ahead changes the meaning of the output, not the arithmetic: with ``lookahead = a`` output j belongs to step
``j - a / s``, whose window reaches a frames beyond it. A centred convolution has a = (k - 1) / 2. The first ``a / s``
outputs belong to steps before the start; a stack of such convolutions must set them to 0.

Axes: b batch, t frames, m bins, c channels; n = T / s output frames, l = M' output bins, o = C' output channels, p
frames of the state. Cost: ``O(T k C C')`` (times M and the kernel over bins), the state ``O(k C)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.arguments import checked_constructor
from manyheads.core.errors import ArgumentError, StateError

if TYPE_CHECKING:
    from jaxtyping import Float


class ConvolutionState(NamedTuple):
    """The latest ``d (k - 1) + 1 - s`` frames, which later outputs need."""

    frames: Float[Tensor, "b p *m c"]


@checked_constructor
class CausalConvolution(nn.Module):
    """Causal convolution of ``(B, T, C)``; the weight is ``(C', C, k)``, as in ``nn.Conv1d``.

    Args:
        inputs, outputs: C and C'.
        kernel: k, taps.
        stride: s; chunks must be multiples of it.
        dilation: d.
        lookahead: a, frames; a multiple of ``stride``, at most ``d (k - 1)``.
        bias: whether to add b.

    Raises:
        ArgumentError: sizes below 1, a stride above the window ``d (k - 1) + 1``, a look-ahead out of range; in
            ``forward`` an input of another width, or frames that are not a multiple of the stride.
        StateError: in ``forward`` a state of another shape.
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
        # freeze fills both: (C', k C) and (C', C, 1, k).
        self.register_buffer("row_weight", None)
        self.register_buffer("image_weight", None, persistent=False)

    @property
    def context(self) -> int:
        """The number of frames in the state."""
        return self.dilation * (self.kernel - 1) + 1 - self.stride

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ConvolutionState:
        """The state before the first frame: zeros."""
        return ConvolutionState(torch.zeros(batch, self.context, self.inputs, device=device, dtype=dtype))

    def forward(
        self, x: Float[Tensor, "b t c"], state: ConvolutionState | None = None
    ) -> tuple[Float[Tensor, "b n o"], ConvolutionState]:
        """Convolve a chunk of any multiple of ``stride`` frames, zero included; the output and the new state."""
        if x.dim() != 3 or x.shape[2] != self.inputs:
            raise ArgumentError(f"convolution: x: found shape {tuple(x.shape)}, expected (B, T, {self.inputs})")
        state = self.init_state(x.shape[0], device=x.device, dtype=x.dtype) if state is None else state
        seen, state = _extend(x, state, self.context, self.stride)
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], 0, self.outputs), state
        if self.kernel == 1 and self.stride == 1:
            return functional.linear(seen, self.weight[:, :, 0], self.bias), state
        # A single output is a matrix product.
        if seen.shape[1] == self.kernel and self.dilation == 1:
            if self.row_weight is not None:
                return functional.linear(seen.flatten(1), self.row_weight, self.bias).unsqueeze(1), state
            window = seen.transpose(1, 2).flatten(1)
            return functional.linear(window, self.weight.flatten(1), self.bias).unsqueeze(1), state
        # As an image of height 1 in channels-last order: input and output need no transposed copy.
        image = seen.transpose(1, 2).unsqueeze(2)
        weight = self.weight.unsqueeze(2) if self.image_weight is None else self.image_weight
        y = functional.conv2d(image, weight, self.bias, (1, self.stride), 0, (1, self.dilation))
        return y.squeeze(2).transpose(1, 2), state

    def freeze(self) -> None:
        """Store copies of the weight in the layouts of a single output and of an image; it must not change any more."""
        self.image_weight = self.weight.detach().unsqueeze(2).contiguous(memory_format=torch.channels_last)
        self.row_weight = self.weight.detach().transpose(1, 2).flatten(1).contiguous()


@checked_constructor
class CausalConvolution2d(nn.Module):
    """Convolution of ``(B, T, M, C)``, causal along time and centred along the bins: M' = ceil(M / bin_stride).

    The weight is ``(C', C, k, k_bins)``, as in ``nn.Conv2d``; the bins are padded with zeros on both sides.

    Args:
        inputs, outputs: C and C'.
        kernel: taps along time and along the bins; the latter odd.
        stride: s, along time; chunks must be multiples of it.
        bin_stride: along the bins.
        lookahead: a, frames; a multiple of ``stride``, at most ``k - 1``.
        bias: whether to add a bias.

    Raises:
        ArgumentError: as :class:`CausalConvolution`; an even kernel over the bins.
        StateError: as :class:`CausalConvolution`.
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
        """The number of frames in the state."""
        return self.kernel[0] - self.stride

    def bins_after(self, bins: int) -> int:
        """The number of output bins M' for M = ``bins``."""
        return -(-bins // self.bin_stride)

    def init_state(
        self, batch: int, bins: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ConvolutionState:
        """The state before the first frame: zeros."""
        return ConvolutionState(torch.zeros(batch, self.context, bins, self.inputs, device=device, dtype=dtype))

    def forward(
        self, x: Float[Tensor, "b t m c"], state: ConvolutionState | None = None
    ) -> tuple[Float[Tensor, "b n l o"], ConvolutionState]:
        """Convolve a chunk of any multiple of ``stride`` frames, zero included; the output and the new state."""
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
    """The input frames of the outputs of this chunk, and the state after it."""
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
