"""ReluDropout, the fused ReLU and dropout of a tower."""

import pytest
import torch

from manyheads.core.errors import ArgumentError
from manyheads.recsys.models.common import ReluDropout, Tower


def test_in_evaluation_it_is_relu():
    x = torch.randn(7, 5)
    torch.testing.assert_close(ReluDropout(0.3).eval()(x.clone()), x.relu(), rtol=0, atol=0)


def test_the_dropped_share_is_p():
    x = torch.ones(300, 303)
    for p in (0.1, 0.5, 0.9):
        dropped = float((ReluDropout(p)(x.clone()) == 0).double().mean())
        assert abs(dropped - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-16


def test_neighbours_and_rows_are_dropped_independently():
    kept = (ReluDropout(0.5)(torch.ones(200, 256)) > 0).double() - 0.5
    for shift in (1, 2, 3, 4):
        for axis in (0, 1):
            assert abs(float((kept * kept.roll(shift, axis)).mean())) < 5 * 0.25 / kept.numel() ** 0.5


def test_kept_elements_are_relu_divided_by_the_kept_share():
    x = torch.randn(64, 33)
    y = ReluDropout(0.25)(x.clone())
    torch.testing.assert_close(y, torch.where(y > 0, x / 0.75, 0.0))
    assert not (y[x <= 0]).any()


def test_the_gradient_follows_the_mask():
    x = torch.randn(64, 33, requires_grad=True)
    y = ReluDropout(0.25)(x * 1.0)
    weights = torch.randn(64, 33)
    (found,) = torch.autograd.grad((y * weights).sum(), x)
    torch.testing.assert_close(found, torch.where(y > 0, weights / 0.75, 0.0))


def test_the_seed_determines_the_mask():
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return ReluDropout(0.5)(torch.ones(8, 9))

    torch.testing.assert_close(drawn(1), drawn(1), rtol=0, atol=0)
    assert (drawn(1) != drawn(2)).any()


def test_a_tower_has_the_gradients_of_the_layers_of_torch():
    torch.manual_seed(0)
    tower = Tower(6, (8, 5), 1, dropout=0.0).double()
    x = torch.randn(16, 6, dtype=torch.float64, requires_grad=True)
    names = ("weight", "bias")
    linear, norm = tower[0], tower[1]
    hidden = torch.nn.functional.batch_norm(linear(x), None, None, norm.weight, norm.bias, training=True).relu()
    hidden = torch.nn.functional.batch_norm(tower[3](hidden), None, None, tower[4].weight, tower[4].bias, training=True)
    plain = tower[6](hidden.relu()).sum()
    wanted = [x, *(getattr(part, name) for part in (linear, norm) for name in names)]
    expected = torch.autograd.grad(plain, wanted)
    for a, b in zip(torch.autograd.grad(tower(x).sum(), wanted), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_a_dropout_out_of_range_is_refused(p):
    with pytest.raises(ArgumentError, match=r"dropout: found .*, expected 0 or more and less than 1"):
        ReluDropout(p)
