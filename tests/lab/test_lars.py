"""LARS against steps by hand, and in the training loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from manyheads.core.errors import ArgumentError
from manyheads.lab.training.experiment import Budget
from manyheads.lab.training.lars import Lars
from manyheads.lab.training.loop import fit_supervised
from manyheads.lab.training.optimisers import Optimiser

from .toy import toy


def by_hand(weight, gradients, *, rate, decay, momentum, trust):
    """Steps of one tensor, in numpy."""
    weight, moving = weight.copy(), np.zeros_like(weight)
    for gradient in gradients:
        change = gradient.copy()
        if weight.ndim > 1:
            change += decay * weight
            change *= trust * np.sqrt((weight**2).sum()) / np.sqrt((change**2).sum())
        moving = momentum * moving + change
        weight -= rate * moving
    return weight


@pytest.mark.parametrize("shape", [(3, 4), (5,), (2, 3, 4)])
def test_three_steps_are_those_by_hand(shape):
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=shape), random.normal(size=(3, *shape))
    weight = nn.Parameter(torch.tensor(start))
    optimiser = Lars([weight], lr=0.7, weight_decay=0.1, momentum=0.9, trust=0.02)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        optimiser.step()
    expected = by_hand(start, gradients, rate=0.7, decay=0.1, momentum=0.9, trust=0.02)
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-12)


def test_weights_of_zero_move_by_the_plain_gradient():
    weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    weight.grad = torch.ones_like(weight)
    Lars([weight], lr=0.5).step()
    assert (weight == -0.5).all()


def test_the_optimiser_lars_has_the_first_beta_as_its_momentum():
    made = Optimiser("lars", 0.3, weight_decay=1e-6, betas=(0.8, 0.5)).make(nn.Linear(2, 2))
    assert isinstance(made, Lars)
    (group,) = made.param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"], group["trust"]) == (0.3, 1e-6, 0.8, 1e-3)


def test_a_killed_run_with_lars_continues_bit_for_bit(tmp_path):
    experiment = toy(optimiser=Optimiser("lars", 0.5), budget=Budget(epochs=4, batch_size=8))
    whole = fit_supervised(experiment, 1, tmp_path / "whole", progress=False)
    fit_supervised(experiment, 1, tmp_path / "cut", progress=False)
    newest = max((tmp_path / "cut" / "checkpoints").glob("step-*.safetensors"))
    newest.unlink()
    again = fit_supervised(experiment, 1, tmp_path / "cut", progress=False)
    assert again.metrics == whole.metrics


@pytest.mark.parametrize("wrong", [{"lr": -1}, {"lr": 1, "momentum": 1}, {"lr": 1, "trust": -1}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ArgumentError, match="lars"):
        Lars([nn.Parameter(torch.ones(1))], **wrong)
