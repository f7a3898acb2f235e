"""Normalisation and nonlinearity after a product, with or without spikes, and the folding of batch norm.

In evaluation batch norm is ``y = a x + c`` for each channel.

- After a product it is folded into weight and bias.
- Before a convolution (after a ReLU, in the published stem) a is folded into the convolution and ``x + c / a`` stays,
  as the zeros of the padding must stay zeros.
- If neither is possible, as beside a residual path, it becomes :class:`ChannelAffine`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.blocks.batch_norm import SequenceBatchNorm, affine_of
from manyheads.core.blocks.causal_convolution import CausalConvolution, CausalConvolution2d
from manyheads.core.functional.lif import Neuron, lif, spike_rate
from manyheads.core.functional.recurrent_mask import carried
from manyheads.kws.models.network import Passage

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "identity": lambda x: x,
}
OVERWRITING: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "gelu": torch.ops.aten.gelu_.default,
    "identity": lambda x: x,
}
Producer = nn.Linear | CausalConvolution | CausalConvolution2d


class ChannelAffine(nn.Module):
    """``a x + c`` a channel: what batch norm is in evaluation."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift.to(x.dtype), x, self.scale.to(x.dtype))


class ChannelShift(nn.Module):
    """``x + c`` a channel."""

    shift: Tensor

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift.to(x.dtype)


class Site(nn.Module):
    """Real numbers: ``f(N(x))``, or ``N(f(x))`` where ``norm_last``; ``x (B, T, …, C)``."""

    def __init__(self, channels: int, activation: str, *, norm: bool = True, norm_last: bool = False) -> None:
        super().__init__()
        self.norm: nn.Module = SequenceBatchNorm(channels) if norm else nn.Identity()
        self.activation, self.norm_last = activation, norm_last

    def init_state(self, batch: int, *, device: torch.device | None, dtype: torch.dtype | None) -> tuple[()]:
        return ()

    def forward(self, x: Tensor, state: tuple[()], passage: Passage, delay: int, rate: int) -> tuple[Tensor, tuple[()]]:
        # x is a product's and nobody else's: without a gradient it may be written over, as fresh memory costs more
        function = (OVERWRITING if inference() else ACTIVATIONS)[self.activation]
        real = passage.real(x.shape[1], delay, rate)
        y = normalise(self.norm, function(x), real) if self.norm_last else function(normalise(self.norm, x, real))
        return y, ()


class SpikeSite(nn.Module):
    """Spikes: leaky integrate-and-fire neurons after batch norm, ``x (B, T, …, C)``, one for each number of a step.

    The state is their membranes ``(B, neurons)``. Outside of the stream neurons get 0 and give 0: they could not fire,
    but a surrogate has a slope below the threshold too.
    """

    def __init__(self, name: str, channels: int, *, positions: int = 1, threshold: float = 1.0) -> None:
        super().__init__()
        self.name, self.neurons = name, channels * positions
        self.norm: nn.Module = SequenceBatchNorm(channels)
        self.neuron = Neuron(threshold=threshold)

    def init_state(self, batch: int, *, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
        return torch.zeros(batch, self.neurons, device=device, dtype=carried(dtype))

    def forward(self, x: Tensor, state: Tensor, passage: Passage, delay: int, rate: int) -> tuple[Tensor, Tensor]:
        real = passage.real(x.shape[1], delay, rate)
        driven = passage.blank(normalise(self.norm, x, real), delay, rate)
        spikes, membrane = _fire(driven if x.dim() == 3 else driven.flatten(2), state, self.neuron)
        spikes = passage.blank(spikes, delay, rate)
        passage.rates[self.name] = spike_rate(spikes, real)
        return spikes if x.dim() == 3 else spikes.unflatten(2, x.shape[2:]), membrane


def _fire(x: Tensor, membrane: Tensor, neuron: Neuron) -> tuple[Tensor, Tensor]:
    if not torch.jit.is_tracing():
        return lif(x, membrane, neuron)
    spikes = []  # a tracer does not see into the fused loop
    for x_t in x.split(1, 1):
        spike, membrane = lif(x_t, membrane, neuron)
        spikes.append(spike)
    return torch.cat(spikes, 1), membrane


def inference() -> bool:
    """Return whether what a product gave may be written over."""
    return not (torch.is_grad_enabled() or torch.jit.is_tracing())


def add_to(x: Tensor, y: Tensor) -> Tensor:
    """``x + y``; y, a product's own, may be written over."""
    return y.add_(x) if inference() else x + y


def normalise(norm: nn.Module, x: Tensor, real: Tensor | None) -> Tensor:
    """``x (B, T, …, C)`` through a norm that takes ``(B, T, C)``; in training the statistics are of the real steps
    ``(B, T)`` and the others become 0."""
    if not isinstance(norm, SequenceBatchNorm):
        return norm(x)
    if real is None or not norm.training:
        return norm(x.flatten(1, -2)).view(x.shape)
    chosen = real.flatten().nonzero().squeeze(1)
    packed = x.flatten(0, 1).index_select(0, chosen)
    normed = norm(packed.flatten(0, -2).unsqueeze(0)).view(packed.shape)
    return torch.zeros_like(x).flatten(0, 1).index_copy(0, chosen, normed).view(x.shape)


def site_affine(site: SpikeSite) -> tuple[Tensor, Tensor]:
    """``a`` and ``c`` of what drives each neuron, ``(neurons,)``."""
    if isinstance(site.norm, SequenceBatchNorm):
        scale, shift = affine_of(site.norm)
    elif isinstance(site.norm, ChannelAffine):
        scale, shift = site.norm.scale, site.norm.shift
    else:
        scale, shift = torch.ones(site.neurons), torch.zeros(site.neurons)
    positions = site.neurons // scale.numel()
    return scale.repeat(positions), shift.repeat(positions)


def fold_after(product: Producer, site: Site | SpikeSite) -> None:
    """The site's norm goes into the product before it."""
    if isinstance(site.norm, SequenceBatchNorm):
        _scale(product, *affine_of(site.norm))
        site.norm = nn.Identity()


def fold_norm(product: Producer, norm: nn.Module) -> nn.Module:
    """A norm that follows a product directly goes into it; what stands in its place."""
    if not isinstance(norm, SequenceBatchNorm):
        return norm
    _scale(product, *affine_of(norm))
    return nn.Identity()


def fold_before(site: Site, product: CausalConvolution) -> None:
    """The scale of the site's last norm goes into the convolution after it; all stays where a channel's scale is next
    to nothing."""
    if not isinstance(site.norm, SequenceBatchNorm):
        return
    scale, shift = affine_of(site.norm)
    if bool((scale.abs() < 1e-6).any()):
        site.norm = ChannelAffine(scale, shift)
        return
    with torch.no_grad():
        product.weight.mul_(scale.view(1, -1, 1))
    site.norm = ChannelShift(shift / scale)


def fold_alone(site: Site | SpikeSite) -> None:
    """The site's norm becomes an affine map: what it norms is needed elsewhere as it is."""
    if isinstance(site.norm, SequenceBatchNorm):
        site.norm = ChannelAffine(*affine_of(site.norm))


def _scale(product: Producer, scale: Tensor, shift: Tensor) -> None:
    with torch.no_grad():
        product.weight.mul_(scale.view(-1, *[1] * (product.weight.dim() - 1)))
        product.bias = nn.Parameter(
            shift.clone() if product.bias is None else product.bias * scale + shift, requires_grad=False
        )
