"""The spectral gate: a circular convolution, its useless parts, other grids, precision."""

from __future__ import annotations

import pytest
import torch

from manyheads.core.errors import ArgumentError
from manyheads.core.layers.spectral_gate import SpectralGate
from manyheads.core.testing import POINTS, Case
from tests.core.layers import ORACLES

SIZES = [(3, 4), (4, 5), (6, 3), (1, 7), (5, 1), (2, 2)]


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gate(height, width, dim=2):
    layer = SpectralGate(dim, height=height, width=width).double()
    with torch.no_grad():
        layer.weight.copy_(normal(*layer.weight.shape))
    return layer


def with_kernel(kernel):
    """The gate with that circular kernel ``(n, m, D)``."""
    layer = SpectralGate(kernel.shape[-1], height=kernel.shape[0], width=kernel.shape[1]).double()
    with torch.no_grad():
        layer.weight.copy_(torch.view_as_real(torch.fft.rfft2(kernel, dim=(0, 1))))
    return layer


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_agrees_with_the_transform_of_numpy(height, width):
    numpy = pytest.importorskip("numpy")
    layer, x = gate(height, width), normal(2, height, width, 2)
    weight = layer.weight.detach().numpy()
    spectrum = numpy.fft.rfft2(x.numpy(), axes=(1, 2), norm="ortho") * (weight[..., 0] + 1j * weight[..., 1])
    expected = numpy.fft.irfft2(spectrum, s=(height, width), axes=(1, 2), norm="ortho")
    torch.testing.assert_close(layer(x).y, torch.from_numpy(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_gate_of_ones_is_the_identity(height, width):
    layer, x = SpectralGate(2, height=height, width=width).double(), normal(2, height, width, 2)
    with torch.no_grad():
        layer.weight.zero_()[..., 0] = 1
    torch.testing.assert_close(layer(x).y, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.resized(7, 6)(normal(1, 7, 6, 2)).y, normal(1, 7, 6, 2), rtol=0, atol=1e-12)


def test_commutes_with_circular_shifts_and_keeps_channels_apart():
    layer, x = gate(4, 5), normal(2, 4, 5, 2).requires_grad_()
    shifted = layer(torch.roll(x, (1, 3), (1, 2))).y
    torch.testing.assert_close(shifted, torch.roll(layer(x).y, (1, 3), (1, 2)), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(layer(x).y[..., 0].sum(), x)
    assert (gradient[..., 1] == 0).all()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_only_the_part_of_the_gate_that_a_real_kernel_has_gets_a_gradient(height, width):
    """The first column, and the last one of an even width, is symmetric: K[n - a] = conj K[a]."""
    layer = gate(height, width)
    layer(normal(2, height, width, 2)).y.square().sum().backward()
    gradient = torch.view_as_complex(layer.weight.grad)
    symmetric = [0, width // 2] if width % 2 == 0 else [0]
    for column in symmetric:
        mirrored = gradient[:, column].flip(0).roll(1, 0).conj()
        torch.testing.assert_close(gradient[:, column], mirrored, rtol=0, atol=1e-10)
    for row in [0, height // 2] if height % 2 == 0 else [0]:
        assert gradient[row, symmetric].imag.abs().max() < 1e-10
    others = [column for column in range(width // 2 + 1) if column not in symmetric]
    assert not others or gradient[:, others].imag.abs().min() > 1e-6


@pytest.mark.parametrize(("size", "other"), [((3, 4), (7, 6)), ((5, 5), (6, 9)), ((9, 8), (3, 3)), ((4, 6), (4, 3))])
def test_a_resized_gate_keeps_a_kernel_that_fits_into_both_grids(size, other):
    """A kernel of 3 x 3 taps round the origin is the same convolution on any grid."""
    taps = normal(3, 3, 2)

    def on(height, width):
        kernel = torch.zeros(height, width, 2, dtype=torch.float64)
        for a in (-1, 0, 1):
            for b in (-1, 0, 1):
                kernel[a, b] = taps[a, b]
        return with_kernel(kernel)

    x = normal(1, *other, 2)
    torch.testing.assert_close(on(*size).resized(*other)(x).y, on(*other)(x).y, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_gate_on_twice_the_grid_interpolates_the_frequencies(height, width):
    layer = with_kernel(normal(height, width, 2))
    twice = layer.resized(2 * height, 2 * width)
    torch.testing.assert_close(twice.weight[::2, ::2], layer.weight, rtol=0, atol=1e-12)
    back = twice.resized(height, width)
    torch.testing.assert_close(back.weight, layer.weight, rtol=0, atol=1e-12)
    assert layer.resized(height, width) is not layer
    assert torch.equal(layer.resized(height, width).weight, layer.weight)


def test_another_grid_is_refused():
    with pytest.raises(ArgumentError, match=r"found shape \(1, 5, 4, 2\), expected \(B, 4, 5, 2\)"):
        gate(4, 5)(normal(1, 5, 4, 2))
    with pytest.raises(ArgumentError, match="spectral-gate: height: found 0, expected 1 or more"):
        gate(4, 5).resized(0, 5)


def test_half_precision_is_transformed_in_float32():
    layer, x = SpectralGate(2, height=16, width=16).bfloat16(), normal(1, 16, 16, 2).bfloat16()
    exact = SpectralGate(2, height=16, width=16).double()
    exact.load_state_dict(layer.state_dict())
    found, expected = layer(x).y, exact(x.double()).y
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.float().bfloat16())


class Unscaled(SpectralGate):
    """Broken on purpose: takes the width for even, as an inverse transform without sizes does."""

    def mix(self, x, state, context, mask):
        out = super().mix(x, state, context, mask)
        spectrum = torch.fft.rfft2(out.y, dim=(1, 2))
        even = torch.fft.irfft2(spectrum, dim=(1, 2))
        return out._replace(y=torch.nn.functional.pad(even, (0, 0, 0, self.width - even.shape[2])))


def test_battery_fails_on_a_width_taken_for_even():
    case = Case(Unscaled, {"height": 4, "width": 5}, oracle=ORACLES["spectral-gate"])
    with pytest.raises(AssertionError):
        POINTS["oracle_and_layer_agree"].check(case)
