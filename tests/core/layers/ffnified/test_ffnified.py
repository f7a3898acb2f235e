"""FFNified attention: what an output sees, folding, the causal form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from manyheads.core import state as trees
from manyheads.core.errors import ArgumentError
from manyheads.core.layers.ffnified import FFNified, FFNifiedSequence
from manyheads.core.mask import Mask
from manyheads.core.methods.mixing_matrix import influence
from manyheads.core.registry import create
from manyheads.core.testing import POINTS, Case
from tests.core.layers import ORACLES


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(name, **config):
    """In evaluation, with random weights and statistics."""
    layer = create(name, dim=6, **config).double().eval()
    with torch.no_grad():
        for key, value in layer.state_dict().items():
            if value.is_floating_point():
                value.copy_(normal(*value.shape, seed=len(key)).abs() + 0.1 if "var" in key else normal(*value.shape))
    return layer


@pytest.mark.parametrize(("kernel", "value_kernel"), [(3, 3), (7, 3), (1, 5)])
def test_an_output_sees_the_sum_of_both_kernels_less_one_along_each_axis(kernel, value_kernel):
    layer = trained("ffnified", kernel=kernel, value_kernel=value_kernel)
    seen = influence(layer, normal(1, 11, 13, 6))[0].view(11, 13, 11, 13)[5, 6] > 0
    reach = (kernel + value_kernel - 2) // 2
    down, right = (torch.arange(size) - size // 2 for size in (11, 13))
    assert torch.equal(seen, (down.abs() <= reach)[:, None] & (right.abs() <= reach))
    assert seen.any(0).sum() == kernel + value_kernel - 1


def test_a_causal_output_sees_the_latest_tokens():
    layer = trained("ffnified-sequence", kernel=3, value_kernel=5, causal=True)
    seen = influence(layer, normal(1, 12, 6))[0, 10] > 0
    assert seen.nonzero().flatten().tolist() == list(range(4, 11))


def test_keys_and_values_leave_the_channels_apart():
    layer = trained("ffnified", kernel=3)
    layer.query.weight.data.copy_(torch.eye(6))
    x = normal(1, 5, 5, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).y[..., 2].sum(), x)
    assert (gradient[..., 2] != 0).all()
    assert gradient[..., [0, 1, 3, 4, 5]].abs().max() == 0


def test_it_moves_with_the_image():
    layer = trained("ffnified", kernel=3)
    x = normal(1, 9, 10, 6)
    moved = layer(x.roll((1, 2), (1, 2))).y[:, 3:-2, 4:-2]
    torch.testing.assert_close(moved, layer(x).y[:, 2:-3, 2:-4], rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize(
    ("name", "grid", "more"),
    [("ffnified", (6, 5), {}), ("ffnified-sequence", (9,), {}), ("ffnified-sequence", (9,), {"causal": True})],
)
def test_fused_computes_the_same_with_one_convolution_for_each_pair(name, grid, more, norm):
    layer = trained(name, kernel=7, value_kernel=5, norm=norm, **more)
    fused, x = layer.fused(), normal(2, *grid, 6)
    torch.testing.assert_close(fused(x).y, layer(x).y, rtol=1e-10, atol=1e-10)
    assert sum(isinstance(part, nn.Conv2d) for part in fused.modules()) == 2
    assert sum(isinstance(part, nn.Conv2d) for part in layer.modules()) == 4
    again = type(fused)(**fused.config).double()
    again.load_state_dict(fused.state_dict())
    assert torch.equal(again.eval()(x).y, fused(x).y)


def test_fused_has_the_same_stream():
    layer = trained("ffnified-sequence", kernel=7, causal=True, norm="batch")
    fused, x = layer.fused(), normal(2, 9, 6)
    first, expected = fused(x[:, :4]), layer(x[:, :4])
    for found, wanted in zip(trees.leaves(first.state), trees.leaves(expected.state), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fused(x[:, 4:], first.state).y, layer(x).y[:, 4:], rtol=1e-10, atol=1e-10)


def test_away_from_the_start_the_causal_form_is_the_centred_one_some_tokens_later():
    causal, centred = (trained("ffnified-sequence", kernel=7, value_kernel=3, causal=one) for one in (True, False))
    centred.load_state_dict(causal.state_dict())
    x = normal(2, 20, 6)
    torch.testing.assert_close(causal(x).y[:, 8:], centred(x).y[:, 4:-4], rtol=0, atol=1e-11)


def test_the_state_holds_the_last_frames_of_both_convolutions():
    layer = trained("ffnified-sequence", kernel=7, value_kernel=3, causal=True)
    state = layer(normal(2, 30, 6)).state
    assert state.queries.shape == (2, 6, 6)
    assert state.activations.shape == (2, 2, 6)


def test_a_row_of_an_image_is_a_sequence():
    image, sequence = trained("ffnified", kernel=5, norm="layer"), trained("ffnified-sequence", kernel=5)
    weights = image.state_dict()
    sequence.load_state_dict(
        {key: w[:, :, w.shape[2] // 2 : w.shape[2] // 2 + 1] if w.dim() == 4 else w for key, w in weights.items()}
    )
    x = normal(2, 1, 8, 6)
    torch.testing.assert_close(image(x).y[:, 0], sequence(x[:, 0]).y, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("norm", "apart"), [("layer", True), ("none", True), ("batch", False)])
def test_only_batch_norm_couples_the_rows_of_a_batch_and_only_in_training(norm, apart):
    layer, x = trained("ffnified", kernel=5, norm=norm), normal(3, 4, 4, 6)
    for training in (False, True):
        layer.train(training)
        error = (layer(x).y[:1] - layer(x[:1]).y).abs().max().item()
        assert (error < 1e-10) is (apart or not training)


def test_batch_norm_leaves_padding_out_of_its_statistics():
    layer, x = create("ffnified", dim=6, kernel=5).double().train(), normal(2, 4, 5, 6)
    padding = torch.ones(2, 4, 5, dtype=torch.bool)
    padding[:, :, -1] = False
    padded = layer(x, mask=Mask(padding=padding.flatten(1))).y[:, :, :-1]
    torch.testing.assert_close(padded, layer(x[:, :, :-1]).y, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["ffnified", "ffnified-sequence"])
@pytest.mark.parametrize("argument", ["kernel", "value_kernel", "small_kernel"])
def test_even_kernels_are_refused(name, argument):
    with pytest.raises(ArgumentError, match=f"{name}: {argument}: found 4, expected an odd number"):
        create(name, dim=6, **{argument: 4})


class OneBranch(FFNified):
    """Broken on purpose: leaves out the small branch of the keys."""

    def setup(self):
        super().setup()
        self.keys.forward = lambda x, real=None, pad=True: self.keys._branch(
            self.keys.large, self.keys.large_norm, x.permute(0, 3, 1, 2), real, pad
        )


class PaddedActivations(FFNifiedSequence):
    """Broken on purpose: the activations before the stream are those of a stream of zeros."""

    def init_state(self, batch, *, device=None, dtype=None):
        state = super().init_state(batch, device=device, dtype=dtype)
        return state._replace(activations=state.activations + 0.1)


@pytest.mark.parametrize(
    ("broken", "config", "grid"),
    [(OneBranch, {"kernel": 5}, (3, 4)), (PaddedActivations, {"kernel": 3, "causal": True}, (7,))],
)
def test_battery_fails_on_broken_layers(broken, config, grid):
    case = Case(broken, config, grid=grid, oracle=ORACLES[broken.info.name])
    with pytest.raises(AssertionError):
        POINTS["oracle_and_layer_agree"].check(case)
