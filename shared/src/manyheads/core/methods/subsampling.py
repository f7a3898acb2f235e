"""Source subsampling of a model with ``ssa`` layers (2306.01705): the schedule of the ratio, and ensembles.

    for step in range(steps):
        subsampling.set_ratio(model, ratio_at(step, steps, ratio=0.25, dense=0.1))     # the last tenth is dense
        …
    probabilities = subsampling.ensemble(model, lambda: model(x).softmax(-1), passes=16, seed=0)

An ensemble averages sub-models that see different sources; its cost is that of ``passes`` runs.

Differs from the paper: the share of dense steps and the number of passes are unknown; the defaults are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked
from manyheads.core.errors import ArgumentError
from manyheads.core.layers.ssa import SubsampledAttention

if TYPE_CHECKING:
    from jaxtyping import Float


@checked
def subsampled_layers(model: nn.Module) -> list[SubsampledAttention]:
    """The ssa layers of the model in module order. Raises :class:`ArgumentError` if there is none."""
    found = [module for module in model.modules() if isinstance(module, SubsampledAttention)]
    if not found:
        raise ArgumentError(f"subsampling: model: found {type(model).__name__} without an ssa layer, expected one")
    return found


@checked
def set_ratio(model: nn.Module, ratio: float) -> None:
    """Set the share of sources that all ssa layers keep in training; 1 is dense."""
    for layer in subsampled_layers(model):
        layer.set_ratio(ratio)


@checked
def ratio_at(step: int, steps: int, *, ratio: float, dense: float = 0.1) -> float:
    """The ratio of a training step: ``ratio``, then 1 in the last ``dense`` share of the steps (dense fine-tuning).

    Raises :class:`ArgumentError` for a ratio outside (0, 1], a share outside [0, 1], a step outside 0 … steps - 1.
    """
    if not 0 < ratio <= 1:
        raise ArgumentError(f"subsampling: ratio: found {ratio}, expected above 0 and at most 1")
    if not 0 <= dense <= 1:
        raise ArgumentError(f"subsampling: dense: found {dense}, expected 0 to 1")
    if not 0 <= step < steps:
        raise ArgumentError(f"subsampling: step: found {step}, expected 0 to {steps - 1}")
    return ratio if step < steps - round(dense * steps) else 1.0


@checked
def ensemble(model: nn.Module, run: Callable[[], Tensor], *, passes: int, seed: int = 0) -> Float[Tensor, "..."]:
    """The mean of ``run()`` over stochastic passes of the model; ``run`` should return probabilities, not logits.

    Only the ssa layers sample; other modules stay in their mode. Modes and torch's generators are restored afterwards.
    Raises :class:`ArgumentError` for less than one pass.
    """
    if passes < 1:
        raise ArgumentError(f"subsampling: passes: found {passes}, expected 1 or more")
    layers = subsampled_layers(model)
    before = [layer.training for layer in layers]
    devices = {weight.device for weight in model.parameters() if weight.device.type == "cuda"}
    try:
        for layer in layers:
            layer.train()
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(seed)
            total = run()
            for _ in range(passes - 1):
                total = total + run()
        return total / passes
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.train(training)
