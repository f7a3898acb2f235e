"""Depthwise convolution of a grid, channels last, also as a pair of branches that folds into one convolution.

    y = N(K * x)  or  y = N(K * x) + N'(K' * x)

K is k x l, one kernel for each channel (C' / C for more outputs), K' a smaller kernel with the same centre, N a batch
norm or a bias. In evaluation a norm is affine, and the sum is one convolution with a bias (RepVGG, 2101.03697):
``fused()``. Outside the grid x is 0.

Axes: b batch, h rows and w columns, c channels; o output channels; t = h w tokens of the output in raster order. A
sequence is a grid of one row. Cost: ``O(T C' k l)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.arguments import checked_constructor
from manyheads.core.blocks.batch_norm import SequenceBatchNorm, affine_of
from manyheads.core.errors import ArgumentError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


@checked_constructor
class DepthwiseConvolution(nn.Module):
    """Depthwise convolution of ``(B, H, W, C)``; see the module.

    Args:
        inputs: C.
        kernel: k and l, both odd.
        outputs: C', a multiple of C; C by default.
        small: the smaller kernel of a pair; None for one branch.
        stride: along both axes.
        norm: a batch norm after each branch, over the real tokens; else the sum has a bias.

    Raises:
        ArgumentError: sizes below 1, an even kernel, a small kernel that does not fit into the other, outputs that are
            no multiple of C.
    """

    def __init__(
        self,
        inputs: int,
        kernel: tuple[int, int],
        *,
        outputs: int | None = None,
        small: tuple[int, int] | None = None,
        stride: int = 1,
        norm: bool = False,
    ) -> None:
        super().__init__()
        outputs = inputs if outputs is None else outputs
        if min(inputs, outputs, stride) < 1 or outputs % inputs:
            raise ArgumentError(
                f"depthwise convolution: found {inputs} channels, {outputs} outputs and stride {stride}, expected 1 or "
                "more of each, and a multiple of the channels as outputs"
            )
        if any(side < 1 or side % 2 == 0 for side in (*kernel, *(small or ()))):
            raise ArgumentError(f"depthwise convolution: found kernels {kernel} and {small}, expected odd sides")
        if small is not None and (small == kernel or any(a > b for a, b in zip(small, kernel, strict=True))):
            raise ArgumentError(f"depthwise convolution: small: found {small}, expected one that fits into {kernel}")
        self.inputs, self.outputs, self.kernel, self.stride = inputs, outputs, kernel, stride
        self.large = nn.Conv2d(inputs, outputs, kernel, stride, groups=inputs, bias=not norm)
        self.large_norm = SequenceBatchNorm(outputs) if norm else None
        self.small, self.small_norm = None, None
        if small is not None:
            self.small = nn.Conv2d(inputs, outputs, small, stride, groups=inputs, bias=False)
            self.small_norm = SequenceBatchNorm(outputs) if norm else None

    def forward(
        self, x: Float[Tensor, "b h w c"], real: Bool[Tensor, "b t"] | None = None, *, pad: bool = True
    ) -> Float[Tensor, "b h2 w2 o"]:
        """Convolve; H' = ceil(H / stride).

        Args:
            real: False for padding among the outputs, which the norms leave out of their statistics.
            pad: add zeros around the grid; else the output is smaller by ``kernel - 1``.
        """
        image = x.permute(0, 3, 1, 2)
        y = self._branch(self.large, self.large_norm, image, real, pad)
        if self.small is None:
            return y
        if not pad:
            down, right = ((a - b) // 2 for a, b in zip(self.kernel, self.small.kernel_size, strict=True))
            image = image[:, :, down : image.shape[2] - down, right : image.shape[3] - right]
        return y + self._branch(self.small, self.small_norm, image, real, pad)

    def fused(self) -> DepthwiseConvolution:
        """Return one convolution with a bias that computes the same in evaluation."""
        made = DepthwiseConvolution(self.inputs, self.kernel, outputs=self.outputs, stride=self.stride)
        weight, bias = self._folded(self.large, self.large_norm)
        if self.small is not None:
            other, shift = self._folded(self.small, self.small_norm)
            down, right = ((a - b) // 2 for a, b in zip(self.kernel, self.small.kernel_size, strict=True))
            weight, bias = weight + functional.pad(other, (right, right, down, down)), bias + shift
        made.large.weight, made.large.bias = nn.Parameter(weight), nn.Parameter(bias)
        return made.train(self.training)

    def _branch(
        self, conv: nn.Conv2d, norm: SequenceBatchNorm | None, image: Tensor, real: Tensor | None, pad: bool
    ) -> Tensor:
        around = tuple(side // 2 for side in conv.kernel_size) if pad else (0, 0)
        y = functional.conv2d(image, conv.weight, conv.bias, self.stride, around, groups=self.inputs)
        y = y.permute(0, 2, 3, 1)
        return y if norm is None else norm(y.flatten(1, 2), real).view(y.shape)

    def _folded(self, conv: nn.Conv2d, norm: SequenceBatchNorm | None) -> tuple[Tensor, Tensor]:
        weight, bias = conv.weight.detach(), conv.bias
        shift = weight.new_zeros(self.outputs) if bias is None else bias.detach()
        if norm is None:
            return weight.clone(), shift.clone()
        scale, offset = affine_of(norm)
        return weight * scale.view(-1, 1, 1, 1), shift * scale + offset


@checked_constructor
class LocalPositions(nn.Module):
    """Locally enhanced position encoding (LePE; CSWin, 2107.00652): a term for the output of an attention layer, from
    the 3 x 3 neighbourhood of each cell, ``K * (W x)``.

    Raises:
        ArgumentError: a width below 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolve = DepthwiseConvolution(dim, (3, 3))
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """The term to be added before the output projection."""
        return self.convolve(self.project(x))
