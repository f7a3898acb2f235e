"""Leaky integrate-and-fire (LIF) neurons with surrogate gradients (1901.09948), as one function with its own backward.

    h[t] = v[t - 1] + (x[t] - v[t - 1]) / tau      (with ``decay_input``; else h[t] = (1 - 1 / tau) v[t - 1] + x[t])
    s[t] = 1 if h[t] >= threshold else 0
    v[t] = h[t] (1 - s[t])   (hard reset to 0)   or   h[t] - threshold s[t]   (soft reset)

Backward, from the last step to the first, with the surrogate ``g(h - threshold)`` for ds/dh and ``a = 1 - 1 / tau``:

    dh[t] = ds[t] g[t] + dv[t] r[t],   dv[t - 1] = a dh[t],
    r = 1 - s (hard, reset detached), 1 - s - h g (hard), 1 (soft, reset detached), 1 - threshold g (soft).

Terms that do not depend on the previous step are computed for all steps at once, so that a step costs two small
operations forward (three with a soft reset) and one backward. Only h is kept for the backward pass. A second derivative
raises :class:`DerivativeError`.

Surrogates are ``g(z) = alpha * shape(alpha z)``, each with area 1; a larger alpha is narrower. Their shapes: sigmoid
``s (1 - s), s = 1 / (1 + exp(-y))``; atan ``1 / 2 / (1 + (pi y / 2)^2)``; triangle ``max(0, 1 - |y|)``; rectangular
``1 where |y| < 1 / 2``.

Axes: b batch, t steps, d neurons.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError, DerivativeError, UnknownNameError
from manyheads.core.functional.own_backward import is_transformed, once_differentiable
from manyheads.core.functional.recurrent_mask import RecurrentMask

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


class Surrogate(NamedTuple):
    """A surrogate gradient: ``times(upstream, y)`` returns ``upstream * shape(y)``; ``alpha`` is the usual scale.

    The result overwrites y, because fresh memory of the size of the sequence costs more than the arithmetic.
    """

    times: Callable[[Tensor, Tensor], Tensor]
    alpha: float


def _sigmoid(upstream: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.sigmoid_backward.grad_input(upstream, y.sigmoid_(), grad_input=y)


def _atan(upstream: Tensor, y: Tensor) -> Tensor:
    y.mul_(math.pi / 2).square_().mul_(2).add_(2)
    return torch.div(upstream, y, out=y)


def _triangle(upstream: Tensor, y: Tensor) -> Tensor:
    return y.abs_().neg_().add_(1).clamp_(min=0).mul_(upstream)


def _rectangular(upstream: Tensor, y: Tensor) -> Tensor:
    return torch.lt(y.abs_(), 0.5, out=y).mul_(upstream)


SURROGATES = {
    "sigmoid": Surrogate(_sigmoid, 4.0),
    "atan": Surrogate(_atan, 2.0),
    "triangle": Surrogate(_triangle, 1.0),
    "rectangular": Surrogate(_rectangular, 1.0),
}


class Neuron(NamedTuple):
    """Parameters of the neurons; ``alpha=None`` takes the usual scale of the surrogate."""

    tau: float = 2.0  # steps
    threshold: float = 1.0
    reset: str = "hard"  # or "soft"
    decay_input: bool = True
    detach_reset: bool = True
    surrogate: str = "sigmoid"  # or a name in SURROGATES
    alpha: float | None = None

    def check(self, owner: str) -> Neuron:
        """Check the parameters and return them.

        Raises:
            ArgumentError: tau that is not finite and above 1, a threshold or alpha that is not finite and above 0, an
                unknown reset.
            UnknownNameError: an unknown surrogate.
        """
        if not 1 < self.tau < math.inf:
            raise ArgumentError(f"{owner}: tau: found {self.tau}, expected a finite number above 1")
        for name, value in (("threshold", self.threshold), ("alpha", self.alpha)):
            if value is not None and not 0 < value < math.inf:
                raise ArgumentError(f"{owner}: {name}: found {value}, expected a finite number above 0")
        if self.reset not in ("hard", "soft"):
            raise ArgumentError(f"{owner}: reset: found {self.reset!r}, expected 'hard' or 'soft'")
        if self.surrogate not in SURROGATES:
            raise UnknownNameError("surrogate", self.surrogate, SURROGATES)
        return self


def lif(
    x: Float[Tensor, "b t d"],
    initial: Float[Tensor, "b d"],
    neuron: Neuron,
    *,
    starts: Bool[Tensor, "b t"] | None = None,
    trace: bool = False,
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b d"] | Float[Tensor, "b t d"]]:
    """Spikes, 0 or 1, and the membrane v after the reset: of the last step, or of all steps with ``trace``.

    The membrane has the dtype of ``initial`` and is computed in it.

    Args:
        x: the input current.
        initial: the membrane before the first step.
        neuron: parameters that have been checked.
        starts: True if the membrane is 0 before this step.
        trace: whether to return the membranes of all steps.

    Raises:
        DerivativeError: the call runs under a ``torch.func`` transform.
    """
    if (
        x.shape[1] == 1
        and starts is None
        and not (torch.is_grad_enabled() and (x.requires_grad or initial.requires_grad))
    ):
        spikes, membranes = _one_step(x[:, 0].to(initial.dtype), initial, neuron)
        return spikes.to(x.dtype).unsqueeze(1), membranes.unsqueeze(1) if trace else membranes
    if is_transformed():
        raise DerivativeError("lif: found a torch.func transform, expected torch.autograd: run the rows one by one")
    if torch.compiler.is_exporting():
        # An exported graph would differentiate the step function, not the surrogate.
        with torch.no_grad():
            return _LIF.apply(x, initial, starts, neuron, trace)
    # Empty slices connect the graph to the inputs without keeping them in memory.
    sources = (x[:, :0].clone(), initial[:0].clone()) if torch.is_grad_enabled() else ()
    spikes, membranes = _LIF.apply(x, initial, starts, neuron, trace, *sources)
    return spikes, membranes


def fire(
    x: Float[Tensor, "b t d"], initial: Float[Tensor, "b d"], neuron: Neuron, told: RecurrentMask
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b d"]]:
    """:func:`lif` under padding and resets: spikes in packed order and the membrane after the last real token."""
    padded = told.real is not None
    spikes, membranes = lif(x, initial, neuron, starts=told.starts(), trace=padded)
    return spikes, told.last(membranes, initial) if padded else membranes


def spike_rate(spikes: Float[Tensor, "b t d"], real: Bool[Tensor, "b t"] | None) -> Float[Tensor, ""]:
    """Mean number of spikes per real token and neuron."""
    if real is None:
        return spikes.mean()
    return (spikes * real.unsqueeze(2)).sum() / (real.sum().clamp(min=1) * spikes.shape[2])


def _one_step(x_t: Tensor, v: Tensor, neuron: Neuron) -> tuple[Tensor, Tensor]:
    """One step of a stream without gradients; the same arithmetic as the loop."""
    h = torch.add(x_t * (1 / neuron.tau) if neuron.decay_input else x_t, v, alpha=1 - 1 / neuron.tau)
    fired = h >= neuron.threshold
    v = h.masked_fill(fired, 0.0) if neuron.reset == "hard" else torch.add(h, fired, alpha=-neuron.threshold)
    return fired.to(h.dtype), v


class _LIF(torch.autograd.Function):
    """The buffer runs in time first and holds ``-h``: a hard reset is then torch's threshold, one operation."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, initial: Tensor, starts: Tensor | None, neuron: Neuron, trace: bool, *sources: Tensor
    ) -> tuple[Tensor, Tensor]:
        below, hard = -neuron.threshold, neuron.reset == "hard"
        decay = 1 - 1 / neuron.tau
        keep = None if starts is None else (~starts).mT.unsqueeze(2).to(initial.dtype)  # (T, B, 1)
        h = torch.empty(x.shape[1], x.shape[0], x.shape[2], dtype=initial.dtype, device=x.device)
        torch.mul(x.transpose(0, 1).to(initial.dtype), -1 / neuron.tau if neuron.decay_input else -1.0, out=h)
        v = -initial
        for t, h_t in enumerate(h.unbind(0)):
            if keep is not None:
                v = v * keep[t]
            h_t.add_(v, alpha=decay)
            v = torch.threshold(h_t, below, 0.0) if hard else torch.add(h_t, h_t <= below, alpha=neuron.threshold)
        spikes = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        torch.le(h.transpose(0, 1), below, out=spikes)
        if trace:
            every = torch.threshold(h, below, 0.0) if hard else torch.add(h, h <= below, alpha=neuron.threshold)
            v = every.transpose(0, 1)
        ctx.save_for_backward(h, keep, *sources)
        ctx.set_materialize_grads(False)
        ctx.neuron, ctx.decay, ctx.dtype = neuron, decay, x.dtype
        return spikes, -v

    @staticmethod
    @once_differentiable("lif")
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        from_spikes, from_membranes = gradients
        h, keep, *sources = ctx.saved_tensors
        neuron: Neuron = ctx.neuron
        shape, alpha = SURROGATES[neuron.surrogate]
        alpha = alpha if neuron.alpha is None else neuron.alpha
        hard, one = neuron.reset == "hard", h.new_ones(())
        below = -neuron.threshold
        through = torch.gt(h, below, out=torch.empty_like(h)) if hard else None  # r; None stands for 1
        dh = torch.add(h.new_tensor(alpha * neuron.threshold), h, alpha=alpha)  # -alpha z; the shapes are even
        upstream = torch.zeros_like(h) if from_spikes is None else from_spikes.transpose(0, 1).to(h.dtype)
        if neuron.detach_reset:
            dh = shape(upstream, dh)
        else:
            curve = shape(one.expand_as(h), dh)
            dh = upstream * curve
            if through is None:
                through = torch.add(one, curve, alpha=alpha * below)
            else:
                through.addcmul_(h, curve, value=alpha)
        # From here on dh is in units of alpha, so that no pass over it is spent on the factor.
        if from_membranes is not None:
            every = from_membranes.dim() == 3
            part = from_membranes.transpose(0, 1) if every else from_membranes
            target = dh if every else dh[-1]
            if through is None:
                target.add_(part, alpha=1 / alpha)
            else:
                target.addcmul_(part, through if every else through[-1], value=1 / alpha)
        if keep is not None:
            later = torch.cat([keep[1:], torch.ones_like(keep[:1])])
            through = later.expand_as(h) if through is None else through * later
        steps = dh.unbind(0)
        gates = None if through is None else through.unbind(0)
        for t in range(len(steps) - 2, -1, -1):
            if gates is None:
                steps[t].add_(steps[t + 1], alpha=ctx.decay)
            else:
                steps[t].addcmul_(gates[t], steps[t + 1], value=ctx.decay)
        dx = (dh.transpose(0, 1) * (alpha / neuron.tau if neuron.decay_input else alpha)).to(ctx.dtype)
        first = dh[0] if keep is None else dh[0] * keep[0]
        return dx, first * (alpha * ctx.decay), None, None, None, *(None for _ in sources)
