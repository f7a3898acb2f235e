"""Sites: batch norm and activation after a linear map, with or without spikes; batch-norm folding.

In evaluation, batch norm is ``y = a x + c`` for each channel.

- After a linear map, it is folded into weight and bias.
- Before a convolution (after the ReLU of the published stem), a is folded into the convolution and ``x + c / a``
  remains, because the zeros of the padding must remain zeros.
- Otherwise, for example on a residual path, it becomes :class:`ChannelAffine`.
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
    """Batch norm in evaluation: ``a x + c`` per channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift.to(x.dtype), x, self.scale.to(x.dtype))


class ChannelShift(nn.Module):
    """Add a constant per channel: ``x + c``."""

    shift: Tensor

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift.to(x.dtype)


class Site(nn.Module):
    """A site without spikes: ``f(N(x))``, or ``N(f(x))`` if ``norm_last``; ``x (B, T, …, C)``."""

    def __init__(self, channels: int, activation: str, *, norm: bool = True, norm_last: bool = False) -> None:
        super().__init__()
        self.norm: nn.Module = SequenceBatchNorm(channels) if norm else nn.Identity()
        self.activation, self.norm_last = activation, norm_last

    def init_state(self, batch: int, *, device: torch.device | None, dtype: torch.dtype | None) -> tuple[()]:
        return ()

    def forward(self, x: Tensor, state: tuple[()], passage: Passage, delay: int, rate: int) -> tuple[Tensor, tuple[()]]:
        # only this site reads x; writing over it without gradients is cheaper than new memory
        function = (OVERWRITING if inference() else ACTIVATIONS)[self.activation]
        real = passage.real(x.shape[1], delay, rate)
        y = normalise(self.norm, function(x), real) if self.norm_last else function(normalise(self.norm, x, real))
        return y, ()


class SpikeSite(nn.Module):
    """A spiking site: batch norm, then one leaky integrate-and-fire neuron per element of a step, ``x (B, T, …, C)``.

    The state is the membrane potentials ``(B, neurons)``. Outside the stream, inputs and outputs of the neurons are set
    to 0. The neurons could not fire there, but the surrogate gradient is not 0 below the threshold.
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
    # a tracer cannot record the fused loop
    spikes = []
    for x_t in x.split(1, 1):
        spike, membrane = lif(x_t, membrane, neuron)
        spikes.append(spike)
    return torch.cat(spikes, 1), membrane


def inference() -> bool:
    """Return whether the output of a linear map may be overwritten: without gradients and outside tracing."""
    return not (torch.is_grad_enabled() or torch.jit.is_tracing())


def add_to(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x + y``; may overwrite y, the output of a linear map."""
    return y.add_(x) if inference() else x + y


def normalise(norm: nn.Module, x: Tensor, real: Tensor | None) -> Tensor:
    """Apply a norm for ``(B, T, C)`` to ``x (B, T, …, C)``. In training, the statistics are those of the valid steps
    ``real (B, T)``, and the other steps become 0."""
    if not isinstance(norm, SequenceBatchNorm):
        return norm(x)
    if real is None or not norm.training:
        return norm(x.flatten(1, -2)).view(x.shape)
    chosen = real.flatten().nonzero().squeeze(1)
    packed = x.flatten(0, 1).index_select(0, chosen)
    normed = norm(packed.flatten(0, -2).unsqueeze(0)).view(packed.shape)
    return torch.zeros_like(x).flatten(0, 1).index_copy(0, chosen, normed).view(x.shape)


def site_affine(site: SpikeSite) -> tuple[Tensor, Tensor]:
    """Return scale ``a`` and shift ``c`` of the input of each neuron, ``(neurons,)`` each."""
    if isinstance(site.norm, SequenceBatchNorm):
        scale, shift = affine_of(site.norm)
    elif isinstance(site.norm, ChannelAffine):
        scale, shift = site.norm.scale, site.norm.shift
    else:
        scale, shift = torch.ones(site.neurons), torch.zeros(site.neurons)
    positions = site.neurons // scale.numel()
    return scale.repeat(positions), shift.repeat(positions)


def fold_after(product: Producer, site: Site | SpikeSite) -> None:
    """Fold the norm of a site into the linear map before it."""
    if isinstance(site.norm, SequenceBatchNorm):
        _scale(product, *affine_of(site.norm))
        site.norm = nn.Identity()


def fold_norm(product: Producer, norm: nn.Module) -> nn.Module:
    """Fold a norm into the linear map before it; return the module that replaces the norm."""
    if not isinstance(norm, SequenceBatchNorm):
        return norm
    _scale(product, *affine_of(norm))
    return nn.Identity()


def fold_before(site: Site, product: CausalConvolution) -> None:
    """Fold the scale of a site's norm into the convolution after it. If the scale of a channel is almost 0, the norm
    becomes an affine map instead."""
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
    """Replace the norm of a site by an affine map, because another module reads the input of the norm too."""
    if isinstance(site.norm, SequenceBatchNorm):
        site.norm = ChannelAffine(*affine_of(site.norm))


def _scale(product: Producer, scale: Tensor, shift: Tensor) -> None:
    with torch.no_grad():
        product.weight.mul_(scale.view(-1, *[1] * (product.weight.dim() - 1)))
        product.bias = nn.Parameter(
            shift.clone() if product.bias is None else product.bias * scale + shift, requires_grad=False
        )
