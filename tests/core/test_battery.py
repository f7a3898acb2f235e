"""The battery fits other kinds of layers, and it fails on broken ones: each control breaks one promise."""

from __future__ import annotations

import pytest
import torch

from manyheads.core.errors import UnknownNameError
from manyheads.core.layer import LayerOutput
from manyheads.core.layers.softmax import KeyValueState, SoftmaxAttention
from manyheads.core.mask import Mask
from manyheads.core.registry import create, list_layers
from manyheads.core.testing import POINTS, Case, check_layer, points_of

from .oracles import softmax_oracle
from .toys import AverageState, AxisMean, Convolution, MovingAverage

CAUSAL = {"heads": 2, "causal": True}
WINDOW = {"heads": 2, "causal": True, "window": 4}


@pytest.mark.parametrize(("layer", "grid"), [(MovingAverage, (7,)), (AxisMean, (3, 4)), (Convolution, (7,))])
def test_toy_layers_pass(layer, grid):
    assert "shape_and_dtype_are_kept" in check_layer(layer, grid=grid)


def test_recurrent_layers_owe_the_stream_points():
    assert {"chunks_give_the_whole", "reset_is_as_if_run_apart"} <= set(points_of(Case(MovingAverage)))


class ShiftDropped(SoftmaxAttention):
    def _whole(self, q, k, v, mask):
        self.is_causal = False
        return super()._whole(q, k, v, mask)


class MaskInverted(SoftmaxAttention):
    def mix(self, x, state, context, mask):
        if mask.padding is not None:
            flipped = super().mix(x, state, context, Mask(padding=~mask.padding, reset=mask.reset))
            return LayerOutput(flipped.y + 0.0, flipped.state)
        return super().mix(x, state, context, mask)


class PaddingIgnored(SoftmaxAttention):
    def mix(self, x, state, context, mask):
        out = super().mix(x, state, context, Mask(reset=mask.reset))
        return LayerOutput(out.y if mask.padding is None else out.y * mask.padding.unsqueeze(-1), out.state)


class ResetIgnored(SoftmaxAttention):
    def mix(self, x, state, context, mask):
        return super().mix(x, state, context, Mask(padding=mask.padding))


class StateWrittenInPlace(SoftmaxAttention):
    def mix(self, x, state, context, mask):
        out = super().mix(x, state, context, mask)
        if isinstance(state, KeyValueState):
            state.keys.copy_(out.state.keys)
        return out


class BatchLeak(SoftmaxAttention):
    def mix(self, x, state, context, mask):
        return super().mix(x + 0.01 * x.mean(0, keepdim=True), state, context, mask)


class WindowOneTooShort(SoftmaxAttention):
    def _keep(self, keys, values, kept):
        state = super()._keep(keys, values, kept)
        return state._replace(used=(state.used - 1).clamp(min=0))


class WrongScale(SoftmaxAttention):
    def _split(self, x):
        return super()._split(x) * 1.001


class DetachedState(SoftmaxAttention):
    def mix(self, x, state, context, mask):
        out = super().mix(x, state, context, mask)
        return LayerOutput(out.y, KeyValueState(*(leaf.detach() for leaf in out.state)))


class HiddenMemory(MovingAverage):
    def __init__(self, dim):
        super().__init__(dim)
        self.calls = 0

    def mix(self, x, state, context, mask):
        self.calls += 1
        return super().mix(x + 0.1 * self.calls, state, context, mask)


class GrowingForEver(MovingAverage):
    def mix(self, x, state, context, mask):
        out = super().mix(x, AverageState(state.mean[:, -self.dim :]), context, mask)
        return LayerOutput(out.y, AverageState(torch.cat([state.mean, out.state.mean], 1)))

    def _checked_state(self, x, state):
        return self.init_state(x.shape[0], device=x.device, dtype=x.dtype) if state is None else state


class ValuesSquared(SoftmaxAttention):
    def _split(self, x):
        return super()._split(x).square()


CONTROLS = [
    (ShiftDropped, CAUSAL, "future_does_not_change_the_past"),
    (MaskInverted, CAUSAL, "padding_is_as_if_absent"),
    (PaddingIgnored, CAUSAL, "padding_is_as_if_absent"),
    (PaddingIgnored, WINDOW, "right_padding_leaves_the_state"),
    (ResetIgnored, CAUSAL, "reset_is_as_if_run_apart"),
    (StateWrittenInPlace, WINDOW, "nothing_is_changed_in_place"),
    (BatchLeak, CAUSAL, "batch_rows_are_independent"),
    (WindowOneTooShort, WINDOW, "chunks_give_the_whole"),
    (ValuesSquared, CAUSAL, "mixing_matrix_gives_the_output"),
    (WrongScale, CAUSAL, "oracle_and_layer_agree"),
    (DetachedState, WINDOW, "gradient_flows_through_the_state"),
    (HiddenMemory, {}, "evaluation_is_deterministic"),
    (GrowingForEver, {}, "state_does_not_grow"),
]


@pytest.mark.parametrize(("broken", "config", "point"), CONTROLS, ids=[f"{c[0].__name__}-{c[2]}" for c in CONTROLS])
def test_battery_fails_on(broken, config, point):
    case = Case(broken, config, oracle=softmax_oracle if issubclass(broken, SoftmaxAttention) else None)
    assert point in points_of(case)
    with pytest.raises(AssertionError):
        POINTS[point].check(case)


def test_check_layer_runs_all_examples_of_a_registered_layer():
    assert check_layer("softmax", oracle=softmax_oracle).count("shape_and_dtype_are_kept") == 5


def test_unknown_layer_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'softmax'"):
        create("sofmax", dim=8)


def test_layers_are_listed_by_what_they_can():
    def names(**what):
        return [info.name for info in list_layers(**what)]

    assert "softmax" in names(causal="strict", streaming=True, grid_rank=1)
    assert "softmax" not in names(causal="weak") + names(grid_rank=2) + names(streaming=False)
    assert "combiner-axial" in names(causal="strict", grid_rank=2, streaming=False)
