"""Combiner: what makes it full attention, its special cases, and the leaks that the battery must find."""

from __future__ import annotations

import pytest
import torch

from manyheads.core.errors import ArgumentError, MaskError, StateError
from manyheads.core.functional import spans
from manyheads.core.layers import combiner_logsparse
from manyheads.core.layers.combiner import CombinerFixed
from manyheads.core.layers.combiner_axial import CombinerAxial
from manyheads.core.layers.combiner_logsparse import CombinerLogsparse
from manyheads.core.layers.softmax import SoftmaxAttention
from manyheads.core.mask import Mask
from manyheads.core.methods.mixing_matrix import mixing_matrix
from manyheads.core.registry import LAYERS
from manyheads.core.testing import POINTS, Case
from tests.core.largest import largest_tensor

from .oracle import combiner_axial_oracle, combiner_fixed_oracle, combiner_logsparse_oracle

LINEAR = [
    pytest.param(CombinerFixed, {"segment": 5, "causal": True}, (23,), id="fixed-causal"),
    pytest.param(CombinerFixed, {"segment": 5}, (23,), id="fixed"),
    pytest.param(CombinerFixed, {}, (23,), id="fixed-by-length"),
    pytest.param(CombinerLogsparse, {}, (70,), id="logsparse"),
    pytest.param(CombinerAxial, {"plan": "vertical"}, (4, 5), id="vertical"),
    pytest.param(CombinerAxial, {"plan": "horizontal"}, (4, 5), id="horizontal"),
]


def built(layer_class, config, grid, *, batch=2, dim=4, heads=2):
    case = Case(layer_class, {"heads": heads, **config}, dim=dim, batch=batch, grid=grid)
    return case.layer(), case.x()


@pytest.mark.parametrize(("layer_class", "config", "grid"), LINEAR)
def test_rows_are_distributions_over_all_that_causality_allows(layer_class, config, grid):
    layer, x = built(layer_class, config, grid)
    matrix = mixing_matrix(layer, x)
    seen = torch.ones_like(matrix, dtype=torch.bool)
    seen = seen.tril() if layer.is_causal else seen
    assert (matrix[seen] > 0).all()
    assert (matrix[~seen] == 0).all()
    torch.testing.assert_close(matrix.sum(-1), torch.ones(matrix.shape[:-1], dtype=x.dtype), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("layer_class", "config", "grid"),
    [*LINEAR, pytest.param(CombinerAxial, {"plan": "rowmajor"}, (4, 5), id="rowmajor")],
)
def test_constant_values_give_a_constant_output(layer_class, config, grid):
    layer, x = built(layer_class, {**config, "bias": True}, grid)
    torch.nn.init.zeros_(layer.value.weight)
    expected = layer.output(layer.value.bias).expand_as(x)
    torch.testing.assert_close(layer(x).y, expected, rtol=0, atol=1e-12)


def as_full(layer, x):
    """Softmax attention with the same weights, on the tokens in raster order."""
    full = SoftmaxAttention(layer.dim, heads=layer.heads, causal=layer.is_causal).double()
    full.load_state_dict(layer.state_dict())
    return full(x.flatten(1, -2)).y.view_as(x)


@pytest.mark.parametrize(
    ("layer_class", "config", "grid"),
    [
        pytest.param(CombinerFixed, {"segment": 1}, (9,), id="segments of one token"),
        pytest.param(CombinerFixed, {"segment": 9}, (9,), id="one segment"),
        pytest.param(CombinerFixed, {"segment": 40}, (9,), id="a segment longer than the input"),
        pytest.param(CombinerFixed, {"segment": 1, "causal": True}, (9,), id="causal segments of one token"),
        pytest.param(CombinerFixed, {"segment": 9, "causal": True}, (9,), id="one causal segment"),
        pytest.param(CombinerLogsparse, {}, (3,), id="spans of one token and one of two"),
        pytest.param(CombinerAxial, {"plan": "vertical"}, (1, 6), id="one row"),
        pytest.param(CombinerAxial, {"plan": "horizontal"}, (6, 1), id="one column"),
        pytest.param(CombinerAxial, {"plan": "vertical"}, (2, 5), id="columns above of one token"),
        pytest.param(CombinerAxial, {"plan": "horizontal"}, (5, 2), id="rows beside of one token"),
    ],
)
def test_without_spans_of_several_tokens_it_is_full_attention(layer_class, config, grid):
    layer, x = built(layer_class, config, grid)
    y, full = layer(x).y, as_full(layer, x)
    if layer_class is CombinerLogsparse:  # token 2 sees tokens 0 and 1 as one
        y, full = y[:, :2], full[:, :2]
    torch.testing.assert_close(y, full, rtol=0, atol=1e-12)


def test_spans_of_several_tokens_are_not_full_attention():
    layer, x = built(CombinerFixed, {"segment": 3}, (9,))
    assert (layer(x).y - as_full(layer, x)).abs().max() > 1e-3


def second_singular_value(block):
    return torch.linalg.svdvals(block)[..., 1].max()


@pytest.mark.parametrize("causal", [True, False])
def test_blocks_beside_the_diagonal_have_rank_one(causal):
    layer, x = built(CombinerFixed, {"segment": 4, "causal": causal}, (12,))
    blocks = mixing_matrix(layer, x).unflatten(-1, (3, 4)).unflatten(-3, (3, 4))
    for row in range(3):
        for column in range(row if causal else 3):
            if row != column:
                assert second_singular_value(blocks[:, :, row, :, column]) < 1e-14
    assert second_singular_value(blocks[:, :, 1, :, 1]) > 1e-3


def test_dyadic_blocks_of_logsparse_have_rank_one():
    layer, x = built(CombinerLogsparse, {}, (16,))
    matrix = mixing_matrix(layer, x)
    for width in (2, 4, 8):
        assert second_singular_value(matrix[..., width : 2 * width, :width]) < 1e-14


@pytest.mark.parametrize(
    ("layer_class", "oracle", "config", "grid"),
    [
        pytest.param(CombinerFixed, combiner_fixed_oracle, {"segment": 4}, (22,), id="fixed-short-last-segment"),
        pytest.param(CombinerLogsparse, combiner_logsparse_oracle, {}, (33,), id="logsparse-one-past-a-block"),
        pytest.param(CombinerLogsparse, combiner_logsparse_oracle, {}, (70,), id="logsparse-several-blocks"),
        pytest.param(CombinerAxial, combiner_axial_oracle, {"plan": "vertical"}, (5, 2), id="vertical-tall"),
        pytest.param(CombinerAxial, combiner_axial_oracle, {"plan": "horizontal"}, (2, 5), id="horizontal-wide"),
        pytest.param(CombinerAxial, combiner_axial_oracle, {"plan": "rowmajor"}, (4, 1), id="rowmajor-one-column"),
    ],
)
def test_other_sizes_agree_with_the_oracle(layer_class, oracle, config, grid):
    case = Case(layer_class, {"heads": 1, **config}, dim=2, batch=2, grid=grid, oracle=oracle)
    POINTS["oracle_and_layer_agree"].check(case)


@pytest.mark.parametrize(
    ("layer_class", "config"), [(CombinerFixed, {"segment": 6, "causal": True}), (CombinerLogsparse, {})]
)
def test_long_streams_in_chunks_give_the_whole(layer_class, config):
    layer, x = built(layer_class, {**config, "max_len": 90}, (83,))
    stateless = layer_class(4, heads=2, **config).double()
    stateless.load_state_dict(layer.state_dict())
    outputs, state = [], None
    for part in x.split([1, 40, 1, 7, 32, 2], 1):
        y, state, _ = layer(part, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), stateless(x).y, rtol=0, atol=1e-12)


def test_segment_by_length_is_the_root_rounded_up():
    layer, x = built(CombinerFixed, {}, (17,))
    fixed = CombinerFixed(4, heads=2, segment=5).double()
    fixed.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x).y, fixed(x).y)


def test_parameters_are_four_projections_and_six_with_a_norm_for_rowmajor():
    def count(layer):
        return sum(parameter.numel() for parameter in layer.parameters())

    assert count(CombinerFixed(16)) == count(CombinerLogsparse(16)) == count(CombinerAxial(16)) == 4 * 16 * 16
    assert count(CombinerAxial(16, plan="rowmajor")) == 6 * 16 * 16 + 2 * 16


@pytest.mark.parametrize("name", ["combiner-fixed", "combiner-logsparse"])
def test_no_tensor_is_as_large_as_the_attention_matrix(name):
    tokens = 2048
    config = {"segment": 64} if name == "combiner-fixed" else {}
    layer = LAYERS[name](8, heads=1, **config)
    x = torch.randn(1, tokens, 8, requires_grad=True)
    assert largest_tensor(lambda: layer(x).y.sum().backward()) < tokens**2 / 8


class OwnSegmentAsSpan(CombinerFixed):
    """The shift of the spans dropped: the whole own segment is among them."""

    def _others(self, block):
        return block.unsqueeze(1) >= block


def test_battery_finds_own_segment_among_the_spans():
    case = Case(OwnSegmentAsSpan, {"heads": 2, "segment": 3, "causal": True})
    with pytest.raises(AssertionError, match="token 1 changes output 0"):
        POINTS["future_does_not_change_the_past"].check(case)


def test_battery_finds_running_maxima_that_are_not_shifted(monkeypatch):
    monkeypatch.setattr(spans, "shift", lambda x: x)
    case = Case(CombinerAxial, {"heads": 2}, dim=4, grid=(3, 4))
    with pytest.raises(AssertionError, match="changes output"):
        POINTS["future_does_not_change_the_past"].check(case)


def test_battery_finds_dyadic_blocks_that_are_not_shifted(monkeypatch):
    right = combiner_logsparse._dyadic_spans

    def two_tokens_early(q, k, v, levels):
        return right(*(part.roll(-2, 2) for part in (q, k, v)), levels)

    monkeypatch.setattr(combiner_logsparse, "_dyadic_spans", two_tokens_early)
    with pytest.raises(AssertionError, match="changes output"):
        POINTS["future_does_not_change_the_past"].check(Case(CombinerLogsparse, {"heads": 2}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CombinerFixed(6, heads=4), r"combiner-fixed: heads: found 4, expected a divisor of dim = 6"),
        (lambda: CombinerFixed(6, heads=0), r"heads: found 0, expected a divisor"),
        (lambda: CombinerFixed(6, heads=2, segment=0), r"combiner-fixed: segment: found 0, expected 1 or more"),
        (lambda: CombinerFixed(6, heads=2, segment=2, causal=True, max_len=0), r"max_len: found 0, expected 1 or more"),
        (lambda: CombinerFixed(6, heads=2, segment=2, max_len=9), r"max_len: found 9 with causal=False"),
        (lambda: CombinerFixed(6, heads=2, causal=True, max_len=9), r"max_len: found 9 .* segment=None"),
        (lambda: CombinerLogsparse(6, heads=4), r"combiner-logsparse: heads: found 4"),
        (lambda: CombinerLogsparse(6, heads=2, max_len=0), r"combiner-logsparse: max_len: found 0, expected 1 or more"),
        (lambda: CombinerAxial(6, heads=5), r"combiner-axial: heads: found 5"),
        (lambda: CombinerAxial(6, heads=2, plan="diagonal"), r"plan: found 'diagonal', expected 'vertical', 'hor"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_a_sequence_is_no_grid_and_a_grid_no_sequence():
    with pytest.raises(ArgumentError, match=r"combiner-axial: x: found shape \(2, 9, 6\).* 2 grid axes"):
        CombinerAxial(6, heads=2)(torch.zeros(2, 9, 6))
    with pytest.raises(ArgumentError, match=r"combiner-fixed: x: found shape \(2, 3, 3, 6\).* 1 grid axes"):
        CombinerFixed(6, heads=2)(torch.zeros(2, 3, 3, 6))


def test_a_segment_that_follows_the_length_takes_no_padding():
    with pytest.raises(MaskError, match=r"mask.padding is not honoured"):
        CombinerFixed(6, heads=2)(torch.zeros(2, 5, 6), mask=Mask(padding=torch.ones(2, 5, dtype=torch.bool)))


@pytest.mark.parametrize(
    "layer",
    [CombinerFixed(4, heads=2, segment=3, causal=True, max_len=10), CombinerLogsparse(4, heads=2, max_len=10)],
    ids=["fixed", "logsparse"],
)
def test_room_counts_from_the_last_reset(layer):
    x = torch.randn(1, 16, 4)
    with pytest.raises(StateError, match="16 tokens do not fit into max_len = 10"):
        layer(x)
    reset = torch.zeros(1, 16, dtype=torch.bool)
    reset[0, 6] = True
    assert layer(x, mask=Mask(reset=reset)).state.position.tolist() == [10]
