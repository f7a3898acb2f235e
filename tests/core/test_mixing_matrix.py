"""Which tokens an output is made of: the recovered matrix, and the influence where there is none."""

from __future__ import annotations

import pytest
import torch

from manyheads.core.backbones.stack import build_stack
from manyheads.core.errors import ArgumentError
from manyheads.core.mask import Mask
from manyheads.core.methods.mixing_matrix import influence, mixing_matrices, mixing_matrix
from manyheads.core.registry import create

from .toys import MovingAverage


def test_softmax_matrix_is_the_softmax_of_its_scores():
    torch.manual_seed(3)
    layer, x = create("softmax", dim=6, heads=2).double(), torch.randn(2, 7, 6, dtype=torch.float64)
    q, k = (p(x).unflatten(-1, (2, 3)).transpose(1, 2) for p in (layer.query, layer.key))
    expected = torch.softmax(q @ k.mT / 3**0.5, -1)
    torch.testing.assert_close(mixing_matrix(layer, x), expected, rtol=0, atol=1e-12)


def test_causal_matrix_is_lower_triangular_with_rows_of_one():
    layer, x = create("softmax", dim=6, heads=3, causal=True), torch.randn(1, 9, 6)
    matrix = mixing_matrix(layer, x)
    assert torch.equal(matrix, matrix.tril())
    torch.testing.assert_close(matrix.sum(-1), torch.ones(1, 3, 9))


def test_context_and_padding_give_their_columns():
    layer = create("softmax", dim=6, heads=2, context_dim=5)
    kept = torch.tensor([[True, False, True, True]])
    matrix = mixing_matrix(layer, torch.randn(1, 3, 6), context=torch.randn(1, 4, 5), mask=Mask(context_padding=kept))
    assert matrix.shape == (1, 2, 3, 4)
    assert (matrix[..., 1] == 0).all()


def test_layer_that_is_not_linear_in_its_values_is_refused():
    with pytest.raises(ArgumentError, match="toy-average: found a layer that is not linear"):
        mixing_matrix(MovingAverage(4), torch.randn(1, 3, 4))


def test_influence_of_a_moving_average_decays_by_its_factor():
    found = influence(MovingAverage(2).double(), torch.randn(1, 5, 2, dtype=torch.float64))[0]
    torch.testing.assert_close(found[4, :], 2 * 0.5 ** torch.arange(5, 0, -1, dtype=torch.float64))


def test_matrices_inside_a_network_are_those_of_its_layers_for_their_inputs():
    torch.manual_seed(0)
    stack, x = (
        build_stack("softmax", 8, depth=2, options={"causal": True, "window": 3}).double().eval(),
        torch.randn(2, 6, 8),
    )
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[1, 2] = True
    inputs = []
    hooks = [one.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for one in stack.layers]
    stack(x.double(), mask=Mask(reset=reset))
    for hook in hooks:
        hook.remove()
    found = mixing_matrices(stack, lambda: stack(x.double(), mask=Mask(reset=reset)))
    assert list(found) == ["blocks.0.layer", "blocks.1.layer"]
    for matrix, layer, given in zip(found.values(), stack.layers, inputs, strict=True):
        torch.testing.assert_close(matrix, mixing_matrix(layer, given, mask=Mask(reset=reset)), rtol=0, atol=0)
        assert (matrix[1, :, 2:, :2] == 0).all()


def test_a_network_without_such_layers_has_no_matrices():
    assert mixing_matrices(MovingAverage(4), lambda: None) == {}
