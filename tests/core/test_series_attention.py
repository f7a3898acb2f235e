"""What Informer's, Autoformer's and FEDformer's attentions promise beyond the battery."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from manyheads.core.errors import ArgumentError
from manyheads.core.functional import circular_correlation, fourier_basis, hashed_choice, hashed_integers, prefix_sum
from manyheads.core.layers.auto_correlation import AutoCorrelation
from manyheads.core.layers.fourier_block import FourierBlock
from manyheads.core.layers.prob_sparse import ProbSparse, sampled_products, sparsity
from manyheads.core.mask import Mask
from manyheads.core.methods.mixing_matrix import influence, mixing_matrix
from manyheads.core.registry import create
from manyheads.core.testing import POINTS, Case

from .layers import ORACLES


def made(layer, *shape, seed=0):
    """The layer in float64 and eval mode, and an input of that shape."""
    generator = torch.Generator().manual_seed(seed)
    layer = layer.double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1]))
    return layer, torch.randn(shape, generator=generator, dtype=torch.float64)


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.largest = self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else (out,):
            if isinstance(part, torch.Tensor):
                held = part.numel() if part.layout == torch.strided else part._nnz()
                self.largest = max(self.largest, held)
                self.total += held
        return out


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("prob-sparse", {"heads": 1}),
        ("prob-sparse", {"heads": 1, "causal": True}),
        ("auto-correlation", {"heads": 1}),
        ("fourier-block", {"heads": 1, "length": 4096, "modes": 8}),
    ],
)
def test_no_matrix_of_tokens_by_tokens_and_work_that_grows_as_n_log_n(name, config):
    layer, found = create(name, 8, **config), []
    for tokens in (1024, 4096):
        x = torch.randn(1, tokens, 8, requires_grad=True)
        with LargestTensor() as seen:
            layer(x).y.sum().backward()
        assert seen.largest < tokens * tokens / 3
        found.append(seen.total)
    assert math.log(found[1] / found[0], 4) < 1.3


@pytest.mark.parametrize("causal", [False, True])
def test_prob_sparse_with_room_for_every_query_is_softmax_attention(causal):
    sparse, x = made(ProbSparse(8, heads=2, factor=99, causal=causal), 2, 9, 8)
    plain = create("softmax", 8, heads=2, causal=causal, bias=True).double()
    plain.load_state_dict(sparse.state_dict())
    torch.testing.assert_close(sparse(x).y, plain(x).y, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("tokens", "factor"), [(50, 1), (50, 2.5), (3, 1)])
def test_prob_sparse_leaves_all_but_factor_ln_t_queries_with_the_mean(tokens, factor):
    layer, x = made(ProbSparse(8, heads=2, factor=factor), 3, tokens, 8)
    matrix = mixing_matrix(layer, x)
    lazy = ((matrix - 1 / tokens).abs() < 1e-12).all(-1)
    expected = tokens - min(tokens, int(factor * math.ceil(math.log(tokens))))
    assert (lazy.sum(-1) == expected).all()
    torch.testing.assert_close(matrix.sum(-1), torch.ones(3, 2, tokens, dtype=torch.float64))


def test_prob_sparse_causal_matrix_is_lower_triangular_with_running_means():
    layer, x = made(ProbSparse(8, heads=2, factor=1, causal=True), 1, 30, 8)
    matrix = mixing_matrix(layer, x)
    assert (matrix.triu(1) == 0).all()
    mean = torch.ones(30, 30, dtype=torch.float64).tril() / torch.arange(1, 31).unsqueeze(1)
    lazy = ((matrix - mean).abs() < 1e-12).all(-1).sum(-1)
    # the first row is the mean of one value whether it is lazy or not
    assert ((lazy == 26) | (lazy == 27)).all()


def test_prob_sparse_sums_are_the_running_means_times_their_count():
    mean, x = made(ProbSparse(8, heads=2, factor=1e-9, causal=True), 1, 12, 8)
    total = ProbSparse(8, heads=2, factor=1e-9, causal=True, running="sum").double()
    total.load_state_dict(mean.state_dict())
    means, sums = mixing_matrix(mean, x), mixing_matrix(total, x)
    ones = torch.ones(12, 12, dtype=torch.float64).tril()
    lazy = (sums == ones).all(-1)
    assert (lazy.sum(-1) >= 11).all(), "the smallest budget is one query a head"
    torch.testing.assert_close(means[lazy], (ones / ones.sum(-1, keepdim=True)).expand_as(means)[lazy])


def test_prob_sparse_finds_the_query_that_looks_at_one_key():
    q, k = torch.zeros(1, 20, 1, 4), torch.randn(1, 20, 1, 4, generator=torch.Generator().manual_seed(0))
    q[0, 7, 0] = 5.0
    sample = torch.arange(20).expand(1, 20, 20)
    measure = sparsity(q, k, sample)[0, 0]
    assert measure.argmax() == 7
    assert (measure[torch.arange(20) != 7] == 0).all()
    scores = (q[0, 7, 0] * k[0, :, 0]).sum(-1) / 2
    torch.testing.assert_close(measure[7], scores.max() - scores.mean())


@pytest.mark.parametrize("kernel", [True, False], ids=["sparse", "gathered"])
def test_sampled_products_are_those_of_the_sampled_keys(kernel, monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: kernel)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (11, 13))
    place = torch.randint(13, (11, 4), generator=generator)
    place[0] = 2
    expected = torch.stack([torch.stack([q[n] @ k[s] for s in place[n]]) for n in range(11)])
    torch.testing.assert_close(sampled_products(q, k, place), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 300])
def test_prefix_sums_and_their_gradients_are_those_of_a_running_sum(tokens):
    x = torch.randn(2, 3, tokens, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, tokens, 4, dtype=torch.float64)
    found, expected = prefix_sum(x), x.cumsum(-2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)
    assert prefix_sum(x.bfloat16()).dtype == torch.bfloat16


def test_prob_sparse_is_causal_for_a_given_selection_and_weakly_so_altogether():
    layer, x = made(ProbSparse(4, heads=1, factor=1, causal=True), 1, 10, 4)
    assert (influence(layer, x)[0].triu(1) == 0).all()
    changed = 0
    for seed in range(20):
        other = x.clone()
        other[:, -1] = torch.randn(4, generator=torch.Generator().manual_seed(seed)) * 5
        changed += int((layer(other).y[:, :-1] - layer(x).y[:, :-1]).abs().max() > 1e-6)
    assert changed > 0, "declared weak, but no last token changed what is selected"


def test_prob_sparse_draws_afresh_in_training_with_resample_only():
    layer, x = made(ProbSparse(8, heads=2, factor=1), 1, 60, 8)
    fixed = layer(x).y
    layer.train()
    assert torch.equal(layer(x).y, fixed)
    other = ProbSparse(8, heads=2, factor=1, resample=True).double()
    other.load_state_dict(layer.state_dict())
    torch.manual_seed(3)
    first, second = other(x).y, other(x).y
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(other(x).y, first)
    assert torch.equal(other.eval()(x).y, fixed)


def test_hashed_integers_depend_on_their_place_only():
    small, large = hashed_integers(4, 5, 3), hashed_integers(4, 50, 70)
    assert torch.equal(large[:5, :3], small)
    assert not torch.equal(hashed_integers(5, 5, 3), small)


def test_hashed_choices_are_uniform_and_independent():
    """Chi-squared over 16 bins has mean 15 and deviation 5.5."""
    drawn = hashed_choice(hashed_integers(0, 400, 100), 16)
    assert drawn.min() == 0
    assert drawn.max() == 15
    counts = torch.bincount(drawn.flatten(), minlength=16).double()
    assert ((counts - 2500).square() / 2500).sum() < 40
    pairs = torch.bincount((drawn[:, 1:] * 16 + drawn[:, :-1]).flatten(), minlength=256).double()
    expected = 400 * 99 / 256
    assert ((pairs - expected).square() / expected).sum() < 255 + 5 * math.sqrt(2 * 255)
    below = torch.bincount((drawn[1:] * 16 + drawn[:-1]).flatten(), minlength=256).double()
    expected = 399 * 100 / 256
    assert ((below - expected).square() / expected).sum() < 255 + 5 * math.sqrt(2 * 255)


@pytest.mark.parametrize("tokens", [1, 2, 7, 12])
def test_circular_correlation_is_its_sum(tokens):
    generator = torch.Generator().manual_seed(tokens)
    a, b = (torch.randn(2, 3, tokens, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = torch.stack([(a.roll(-s, -1) * b).sum(-1) for s in range(tokens)], -1)
    torch.testing.assert_close(circular_correlation(a, b), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(circular_correlation(a, b, mean=-2), expected.mean(1), rtol=0, atol=1e-12)


def test_circular_correlation_gives_each_row_its_own_circle():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = torch.tensor([9, 5, 1, 0])
    inside = torch.arange(9) < lengths.unsqueeze(1)
    found = circular_correlation(a * inside, b * inside, lengths=lengths)
    for row, n in enumerate(lengths.tolist()):
        if n:
            torch.testing.assert_close(found[row, :n], circular_correlation(a[row, :n], b[row, :n]), rtol=0, atol=1e-12)
        assert (found[row, n:] == 0).all()


def test_auto_correlation_leaves_a_periodic_series_as_it_is():
    """Rolled by its period, a series is itself: with Q = K the periods are the delays of largest correlation."""
    layer, x = made(AutoCorrelation(8, heads=2, factor=1.3), 2, 5, 8)
    layer.key.load_state_dict(layer.query.state_dict())
    series = x.repeat(1, 8, 1)
    torch.testing.assert_close(layer(series).y, layer.output(layer.value(series)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("per_head", [False, True])
def test_auto_correlation_mixes_by_delays(per_head):
    layer, x = made(AutoCorrelation(8, heads=2, factor=1.5, per_head=per_head), 2, 20, 8)
    matrix = mixing_matrix(layer, x)
    by_delay = torch.stack([matrix[:, :, t].roll(-t, -1) for t in range(20)], 2)
    torch.testing.assert_close(by_delay, by_delay[:, :, :1].expand_as(by_delay), rtol=0, atol=1e-12)
    chosen = by_delay[:, :, 0] > 1e-12
    assert (chosen.sum(-1) == int(1.5 * math.log(20))).all()
    assert (chosen[:, 0] == chosen[:, 1]).all().item() is not per_head


def test_auto_correlation_shares_delays_within_a_training_batch():
    layer, x = made(AutoCorrelation(8, heads=2, factor=1), 4, 20, 8)
    own = mixing_matrix(layer, x)[:, 0, 0] > 1e-12
    assert (own != own[0]).any()
    layer.train()
    weights = mixing_matrix(layer, x)[:, 0, 0]
    q, k = layer.query(x), layer.key(x)
    r = torch.stack([(q.roll(-tau, 1) * k).sum(1).mean(-1) for tau in range(20)], 1)
    delays = r.mean(0).topk(2).indices
    expected = torch.zeros_like(r).scatter(1, delays.expand(4, -1), r[:, delays].softmax(-1))
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-10)


def test_auto_correlation_with_padding_selects_for_each_sample_in_training_too():
    layer, x = made(AutoCorrelation(8, heads=2, factor=1), 4, 20, 8)
    mask = Mask(padding=torch.arange(20) < torch.tensor([[20], [17], [9], [4]]))
    expected = layer(x, mask=mask).y
    torch.testing.assert_close(layer.train()(x, mask=mask).y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["prob-sparse", "auto-correlation", "fourier-block"])
@pytest.mark.parametrize("padded", [False, True])
def test_nothing_is_made_on_another_device_than_the_input(name, padded):
    """A tensor of the CPU among those of the meta device is an error, as it is on a GPU."""
    layer = create(name, 8, heads=2, **({"length": 9, "modes": 3} if name == "fourier-block" else {})).to("meta")
    x = torch.empty(2, 9, 8, device="meta", requires_grad=True)
    mask = Mask(padding=torch.empty(2, 9, dtype=torch.bool, device="meta")) if padded else None
    y = layer(x, mask=mask).y
    assert y.device.type == "meta"
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("tokens", [1, 2, 9, 12])
def test_fourier_basis_is_the_transform_and_back(tokens):
    x = torch.randn(tokens, 3, dtype=torch.float64)
    basis, scale = fourier_basis(tokens, torch.arange(tokens // 2 + 1), dtype=torch.float64)
    expected = torch.fft.rfft(x, dim=0)
    torch.testing.assert_close(basis.mT @ x, torch.cat([expected.real, expected.imag]), rtol=0, atol=1e-12)
    torch.testing.assert_close((basis * scale) @ (basis.mT @ x), x, rtol=0, atol=1e-12)


def test_fourier_basis_keeps_its_digits_over_a_million_turns():
    frequencies = torch.tensor([3, 60, 30_001])
    narrow, wide = (fourier_basis(65_521, frequencies, dtype=d)[0] for d in (torch.float32, torch.float64))
    assert (narrow - wide).abs().max() < 1e-6


@pytest.mark.parametrize("tokens", [9, 12])
def test_fourier_block_with_every_mode_and_identity_weights_is_its_projections(tokens):
    layer, x = made(FourierBlock(6, length=tokens, modes=tokens // 2 + 1, heads=2), 2, tokens, 6)
    with torch.no_grad():
        layer.real.copy_(torch.eye(3).expand_as(layer.real))
        layer.imaginary.zero_()
    torch.testing.assert_close(layer(x).y, layer.output(layer.query(x)), rtol=0, atol=1e-12)


def test_fourier_block_with_turning_weights_shifts_the_series():
    layer, x = made(FourierBlock(4, length=9, modes=5, heads=1), 1, 9, 4)
    angle = 2 * math.pi * 2 * layer.frequencies.double() / 9
    with torch.no_grad():
        layer.real.copy_(torch.eye(4) * angle.cos().view(-1, 1, 1, 1))
        layer.imaginary.copy_(torch.eye(4) * angle.sin().view(-1, 1, 1, 1))
    torch.testing.assert_close(layer(x).y, layer.output(layer.query(x).roll(-2, 1)), rtol=0, atol=1e-12)


def test_fourier_block_with_the_lowest_mode_gives_a_constant():
    layer, x = made(FourierBlock(4, length=9, modes=1, select="lowest", heads=1), 1, 9, 4)
    constant = layer.output(layer.real[0, 0] @ layer.query(x)[0].mean(0))
    torch.testing.assert_close(layer(x).y[0], constant.expand(9, -1), rtol=0, atol=1e-12)


def test_fourier_block_skips_modes_that_a_shorter_input_does_not_have():
    layer, x = made(FourierBlock(4, length=16, modes=9, heads=2), 2, 5, 4)
    expected = layer(x).y
    assert layer.frequencies.tolist() == list(range(9))
    with torch.no_grad():
        layer.real[layer.frequencies > 2] = 1e3
    torch.testing.assert_close(layer(x).y, expected, rtol=0, atol=1e-12)


def test_fourier_block_chooses_by_its_seed_and_keeps_the_choice():
    first, again, other = (FourierBlock(4, length=200, modes=20, heads=1, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.frequencies, again.frequencies)
    assert not torch.equal(first.frequencies, other.frequencies)
    assert len(set(first.frequencies.tolist())) == 20
    assert first.frequencies.max() <= 100
    other.load_state_dict(first.state_dict())
    assert torch.equal(first.frequencies, other.frequencies)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (ProbSparse(512), 4 * (512 * 512 + 512)),
        (AutoCorrelation(512), 4 * (512 * 512 + 512)),
        # W_q and W_o, and 8 heads of 64 x 64 complex numbers for each of 64 modes
        (FourierBlock(512, length=720), 2 * (512 * 512 + 512) + 2 * 64 * 8 * 64 * 64),
    ],
)
def test_parameters_are_those_of_the_papers(layer, expected):
    assert sum(p.numel() for p in layer.parameters()) == expected


@pytest.mark.parametrize(
    ("name", "config", "part"),
    [
        ("prob-sparse", {"heads": 4}, "heads: found 4, expected a divisor of dim = 6"),
        ("prob-sparse", {"heads": 2, "factor": 0}, "factor: found 0, expected a number above 0"),
        ("prob-sparse", {"heads": 2, "factor": float("nan")}, "factor: found nan"),
        ("prob-sparse", {"heads": 2, "running": "max"}, "running: found 'max', expected 'mean' or 'sum'"),
        ("auto-correlation", {"heads": 0}, "heads: found 0"),
        ("auto-correlation", {"heads": 2, "factor": -1.0}, "factor: found -1.0, expected a number above 0"),
        ("fourier-block", {"heads": 4, "length": 9, "modes": 2}, "heads: found 4"),
        ("fourier-block", {"heads": 2, "length": 0, "modes": 1}, "length: found 0, expected 1 or more"),
        ("fourier-block", {"heads": 2, "length": 9, "modes": 6}, "modes: found 6, expected 1 to length // 2 + 1 = 5"),
        ("fourier-block", {"heads": 2, "length": 9, "modes": 0}, "modes: found 0"),
        ("fourier-block", {"heads": 2, "length": 9, "modes": 2, "select": "high"}, "select: found 'high'"),
    ],
)
def test_impossible_configurations_are_refused_by_argument(name, config, part):
    with pytest.raises(ArgumentError) as caught:
        create(name, 6, **config)
    assert str(caught.value).startswith(f"{name}: {part}")


class MeanThatLooksAhead(ProbSparse):
    def _lazy(self, v, lengths, *, ragged):
        return v.mean(2, keepdim=True).expand_as(v)


class RolledTheOtherWay(AutoCorrelation):
    def _weights(self, correlation, circle):
        return super()._weights(correlation, circle).flip(-1)


class MovedToTheLowestModes(FourierBlock):
    def _filtered(self, q, lengths):
        kept, self.frequencies = self.frequencies, torch.arange(len(self.frequencies))
        try:
            return super()._filtered(q, lengths)
        finally:
            self.frequencies = kept


@pytest.mark.parametrize(
    ("broken", "config"),
    [
        (MeanThatLooksAhead, {"heads": 2, "factor": 1, "causal": True}),
        (RolledTheOtherWay, {"heads": 2, "factor": 1.6}),
        (MovedToTheLowestModes, {"heads": 2, "length": 12, "modes": 4}),
    ],
)
def test_battery_fails_on(broken, config):
    case = Case(broken, config, oracle=ORACLES[broken.info.name])
    with pytest.raises(AssertionError, match="output"):
        POINTS["oracle_and_layer_agree"].check(case)


def test_a_mean_that_looks_ahead_is_seen_in_the_derivatives():
    layer, x = made(MeanThatLooksAhead(4, heads=1, factor=1, causal=True), 1, 10, 4)
    assert (influence(layer, x)[0].triu(1) > 0).any()
