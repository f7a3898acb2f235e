"""Toy layers pass the test battery; each point fails on a layer that violates it, with one and two grid axes."""

from __future__ import annotations

import pytest
import torch

from manyheads.core.errors import ArgumentError, MaskError, UnknownNameError
from manyheads.core.layer import LayerOutput
from manyheads.core.layers.softmax import KeyValueState, SoftmaxAttention
from manyheads.core.mask import Mask
from manyheads.core.registry import create, find_layer, list_layers
from manyheads.core.testing import POINTS, Case, check_layer, points_of

from .layers.softmax.oracle import softmax_oracle
from .toys import AverageState, AxisMean, Convolution, LineMixer, MovingAverage, RowMixer, raster, raster_oracle

PLAIN = {"heads": 2}
CAUSAL = {"heads": 2, "causal": True}
WINDOW = {"heads": 2, "causal": True, "window": 4}
CROSS = {"heads": 2, "context_dim": 5}
GROWING = {"heads": 2, "causal": True, "max_len": 32}


@pytest.mark.parametrize("layer", [MovingAverage, AxisMean, Convolution, RowMixer, LineMixer])
def test_toy_layers_pass(layer):
    assert "shape_and_dtype_are_kept" in check_layer(layer)


@pytest.mark.parametrize("config", [PLAIN, CAUSAL, WINDOW, GROWING])
def test_attention_over_an_image_in_raster_order_passes(config):
    passed = check_layer(raster(SoftmaxAttention), config, oracle=raster_oracle(softmax_oracle))
    assert {"oracle_and_layer_agree", "mixing_matrix_gives_the_output"} <= set(passed)


def test_streaming_points_apply_to_recurrent_layers():
    for layer in (MovingAverage, raster(MovingAverage)):
        assert {"chunks_equal_the_whole", "reset_equals_separate_sequences"} <= set(points_of(Case(layer)))


def test_a_layer_of_fixed_height_and_width_is_checked_at_its_own_size():
    case = Case(RowMixer, {"height": 2, "width": 5})
    assert case.x().shape == (3, 2, 5, 6)
    check_layer(RowMixer, {"height": 2, "width": 5})


def test_a_grid_may_be_fixed_along_one_axis_only():
    free, fixed = Case(LineMixer, {"width": 5}), Case(LineMixer, {"height": 2, "width": 5})
    assert (free.layer().grid, free.grid, free.free) == ((None, 5), (3, 5), (True, False))
    assert (fixed.layer().grid, fixed.grid, fixed.free) == ((2, 5), (2, 5), (False, False))
    check_layer(LineMixer, {"width": 5})
    check_layer(LineMixer, {"height": 2, "width": 5})
    with pytest.raises(ArgumentError, match=r"found shape \(1, 3, 4, 6\), expected \(B, any, 5, 6\)"):
        free.layer(torch.float32)(torch.zeros(1, 3, 4, 6))


def test_a_submodule_may_have_the_name_of_an_argument():
    class Normed(LineMixer):
        norm: bool = False

        def setup(self):
            super().setup()
            self.norm = torch.nn.LayerNorm(self.dim) if self.norm else torch.nn.Identity()

    layer = Normed(6, norm=True)
    assert isinstance(layer.norm, torch.nn.LayerNorm)
    assert layer.config["norm"] is True
    assert Normed(6).config["norm"] is False


def test_a_window_is_accepted_on_sequences_only():
    layer = raster(SoftmaxAttention)(6, heads=2)
    with pytest.raises(MaskError, match=r"mask.window: found a grid of 2 axes, expected 1"):
        layer(torch.zeros(1, 2, 3, 6), mask=Mask(window=2))


def test_an_exception_in_a_layer_names_the_point():
    class Crashes(MovingAverage):
        def mix(self, x, state, context, mask):
            raise RuntimeError("shapes do not match")

    with pytest.raises(AssertionError, match="shape_and_dtype_are_kept: shapes do not match"):
        check_layer(Crashes)


# Each of the following breaks one promise.


class RoundsToFloat32(MovingAverage):
    def mix(self, x, state, context, mask):
        out = super().mix(x, state, context, mask)
        return LayerOutput(out.y.float(), out.state)


class ReadsStorage(SoftmaxAttention):
    """Assumes contiguous memory, as some kernels do."""

    def mix(self, x, state, context, mask):
        return super().mix(x.as_strided(x.shape, torch.empty(x.shape).stride()), state, context, mask)


class WrongScale(SoftmaxAttention):
    def _split(self, x):
        return super()._split(x) * 1.001


class RoundsInHalf(MovingAverage):
    """Adds and subtracts 300, which loses digits in bfloat16."""

    def mix(self, x, state, context, mask):
        return super().mix((x + 300) - 300, state, context, mask)


class CutGradient(MovingAverage):
    def mix(self, x, state, context, mask):
        out = super().mix(x, state, context, mask)
        return LayerOutput(out.y + 0.1 * (x * x).detach(), out.state)


class BatchLeak(SoftmaxAttention):
    def mix(self, x, state, context, mask):
        return super().mix(x + 0.01 * x.mean(0, keepdim=True), state, context, mask)


class HiddenPosition(SoftmaxAttention):
    def mix(self, x, state, context, mask):
        place = torch.arange(x.shape[1], dtype=x.dtype).unsqueeze(-1)
        return super().mix(x + 0.01 * place, state, context, mask)


class HiddenMemory(MovingAverage):
    def __init__(self, dim):
        super().__init__(dim)
        self.calls = 0

    def mix(self, x, state, context, mask):
        self.calls += 1
        return super().mix(x + 0.1 * self.calls, state, context, mask)


class ForgetsAnArgument(MovingAverage):
    def __init__(self, dim, *, factor=1.0):
        super().__init__(dim)
        self.factor = factor

    def mix(self, x, state, context, mask):
        return super().mix(self.factor * x, state, context, mask)


class TakesAnyMask(SoftmaxAttention):
    def _check_mask(self, x, context, mask):
        pass


class TakesAnyState(MovingAverage):
    def _checked_state(self, x, state):
        if isinstance(state, AverageState) and state.mean.shape[0] == x.shape[0]:
            return state
        return self.init_state(x.shape[0], dtype=x.dtype)


class TakesAnyGrid(RowMixer):
    def forward(self, x, state=None, *, context=None, mask=None):
        if x.dim() == 4 and x.shape[-1] == self.dim:
            x = x[:, : self.height]
        return super().forward(x[:, :, : self.width], state, context=context, mask=mask)


class ValuesSquared(SoftmaxAttention):
    def _split(self, x):
        return super()._split(x).square()


class ShiftDropped(SoftmaxAttention):
    def _whole(self, q, k, v, mask):
        self.causal = False
        return super()._whole(q, k, v, mask)


class ChoosesByTheFuture(MovingAverage):
    """A later token selects the form of a token; the derivative is 0."""

    def mix(self, x, state, context, mask):
        later = torch.cat([x[:, 1:], x[:, -1:]], 1)[..., :1]
        return super().mix(torch.where(later > 0, x, 2 * x), state, context, mask)


class LeaksInsideARow(raster(MovingAverage)):
    """Reads later columns of its own row only; causal between rows."""

    def mix(self, x, state, context, mask):
        return super().mix(x + 0.1 * x.mean(2, keepdim=True), state, context, mask)


class ChoosesByItsRow(raster(MovingAverage)):
    """Reads later columns of its own row through a selection, with derivative 0."""

    def mix(self, x, state, context, mask):
        return super().mix(torch.where(x[:, :, -1:, :1] > 0, x, 2 * x), state, context, mask)


class SeesTooLittle(SoftmaxAttention):
    """Declares full context but never reads the first token."""

    def _whole(self, q, k, v, mask):
        v = torch.cat([torch.zeros_like(v[:, :, :1]), v[:, :, 1:]], 2)
        k = torch.cat([torch.zeros_like(k[:, :, :1]), k[:, :, 1:]], 2)
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


class RootOfTheCount(MovingAverage):
    """Divides by the number of valid tokens, 0 in a padded row: the output is set to 0 but the gradient is NaN."""

    def mix(self, x, state, context, mask):
        out = super().mix(x, state, context, mask)
        if mask.padding is None:
            return out
        share = (x * self.decay).sum(1, keepdim=True) / mask.padding.sum(1).view(-1, 1, 1)
        y = torch.where(mask.padding.unsqueeze(-1), out.y + 0 * share, 0.0)
        return LayerOutput(y, out.state)


class ResetIgnored(SoftmaxAttention):
    def mix(self, x, state, context, mask):
        return super().mix(x, state, context, Mask(padding=mask.padding))


class WindowOneTooShort(SoftmaxAttention):
    def _keep(self, keys, values, kept):
        state = super()._keep(keys, values, kept)
        return state._replace(used=(state.used - 1).clamp(min=0))


class StepOnItsOwn(MovingAverage):
    """Has its own step without the decay; chunks run through ``forward`` and are correct."""

    def step(self, x_t, state):
        mean = state.mean
        for token in x_t.view(len(mean), -1, self.dim).unbind(1):
            mean = mean + (1 - torch.sigmoid(self.decay)) * token
        return mean if x_t.dim() == 2 else mean.unsqueeze(1).expand_as(x_t), AverageState(mean)


class StateWrittenInPlace(SoftmaxAttention):
    def mix(self, x, state, context, mask):
        out = super().mix(x, state, context, mask)
        if isinstance(state, KeyValueState):
            state.keys.copy_(out.state.keys)
        return out


class SharedClock(MovingAverage):
    """Uses the state of the first row for all rows."""

    def mix(self, x, state, context, mask):
        return super().mix(x, AverageState(state.mean + 0.1 * state.mean[:1]), context, mask)


class DetachedState(SoftmaxAttention):
    def mix(self, x, state, context, mask):
        out = super().mix(x, state, context, mask)
        return LayerOutput(out.y, KeyValueState(*(leaf.detach() for leaf in out.state)))


class GrowingForEver(MovingAverage):
    def mix(self, x, state, context, mask):
        out = super().mix(x, AverageState(state.mean[:, -self.dim :]), context, mask)
        return LayerOutput(out.y, AverageState(torch.cat([state.mean, out.state.mean], 1)))

    def _checked_state(self, x, state):
        return self.init_state(x.shape[0], device=x.device, dtype=x.dtype) if state is None else state


class DropsWhatDoesNotFit(SoftmaxAttention):
    def _keep(self, keys, values, kept):
        return super()._keep(keys, values, kept & (kept.cumsum(1) <= self.slots))


class PaddingRead(SoftmaxAttention):
    def forward(self, x, state=None, *, context=None, mask=None):
        out = super().forward(x, state, context=context, mask=mask)
        return out._replace(y=out.y + 0 * x.sum())


class PaddingReadByGradient(SoftmaxAttention):
    def forward(self, x, state=None, *, context=None, mask=None):
        out = super().forward(x, state, context=context, mask=mask)
        return out._replace(y=out.y + (x - x.detach()).nan_to_num())


class ContextPaddingRead(SoftmaxAttention):
    def forward(self, x, state=None, *, context=None, mask=None):
        out = super().forward(x, state, context=context, mask=mask)
        return out if context is None else out._replace(y=out.y + 0 * context.sum())


class PaddedOutputHasAGradient(SoftmaxAttention):
    def forward(self, x, state=None, *, context=None, mask=None):
        out = super().forward(x, state, context=context, mask=mask)
        return out._replace(y=out.y + 0 * self.output.weight.sum())


class DetachedWhenEmpty(SoftmaxAttention):
    def forward(self, x, state=None, *, context=None, mask=None):
        out = super().forward(x, state, context=context, mask=mask)
        return out if x.numel() else out._replace(y=out.y.detach())


class EmptyContextIsNaN(SoftmaxAttention):
    def forward(self, x, state=None, *, context=None, mask=None):
        out = super().forward(x, state, context=context, mask=mask)
        return out if context is None or context.shape[1] else out._replace(y=out.y * float("nan"))


class StepsAlone(SoftmaxAttention):
    def step(self, x_t, state):
        return self(x_t.unsqueeze(1)).y.squeeze(1), ()


class ChunksAlone(SoftmaxAttention):
    def _checked_state(self, x, state):
        return ()


CONTROLS = [
    (RoundsToFloat32, {}, "shape_and_dtype_are_kept"),
    (ReadsStorage, CAUSAL, "non_contiguous_input_gives_the_same_output"),
    (WrongScale, CAUSAL, "oracle_and_layer_agree"),
    (RoundsInHalf, {}, "bfloat16_is_close"),
    (CutGradient, {}, "gradcheck_passes"),
    (BatchLeak, CAUSAL, "batch_rows_are_independent"),
    (HiddenPosition, PLAIN, "permutation_equivariance_is_as_declared"),
    (HiddenMemory, {}, "evaluation_is_deterministic"),
    (ForgetsAnArgument, {"factor": 2.0}, "weights_and_configuration_round_trip"),
    (TakesAnyMask, WINDOW, "bad_input_is_refused"),
    (TakesAnyState, {}, "bad_input_is_refused"),
    (ValuesSquared, CAUSAL, "mixing_matrix_gives_the_output"),
    (ShiftDropped, CAUSAL, "future_does_not_change_the_past"),
    (ChoosesByTheFuture, {}, "future_does_not_change_the_past"),
    (SeesTooLittle, CAUSAL, "future_does_not_change_the_past"),
    (MaskInverted, CAUSAL, "padded_tokens_equal_absent_tokens"),
    (PaddingIgnored, CAUSAL, "padded_tokens_equal_absent_tokens"),
    (RootOfTheCount, {}, "fully_masked_rows_are_zero_with_finite_gradients"),
    (PaddingRead, CAUSAL, "padding_is_never_read"),
    (PaddingReadByGradient, CAUSAL, "padding_is_never_read"),
    (ContextPaddingRead, CROSS, "padding_is_never_read"),
    (PaddedOutputHasAGradient, CAUSAL, "padding_is_never_read"),
    (DetachedWhenEmpty, CAUSAL, "empty_input_gives_empty_output"),
    (EmptyContextIsNaN, CROSS, "empty_input_gives_empty_output"),
    (ResetIgnored, CAUSAL, "reset_equals_separate_sequences"),
    (StepsAlone, CAUSAL, "layer_without_state_refuses_streaming"),
    (ChunksAlone, CAUSAL, "layer_without_state_refuses_streaming"),
    (WindowOneTooShort, WINDOW, "chunks_equal_the_whole"),
    (StepOnItsOwn, {}, "steps_equal_the_whole"),
    (StateWrittenInPlace, WINDOW, "nothing_is_changed_in_place"),
    (SharedClock, {}, "rows_of_a_state_are_independent"),
    (PaddingIgnored, WINDOW, "right_padding_leaves_the_state"),
    (DetachedState, WINDOW, "gradient_flows_through_the_state"),
    (GrowingForEver, {}, "state_does_not_grow"),
    (DropsWhatDoesNotFit, GROWING, "full_growing_state_raises_an_error"),
]
ON_IMAGES = [
    (TakesAnyGrid, {}, "bad_input_is_refused"),
    (LeaksInsideARow, {}, "future_does_not_change_the_past"),
    (ChoosesByItsRow, {}, "future_does_not_change_the_past"),
]
EVERY = [*CONTROLS, *((raster(broken), *rest) for broken, *rest in CONTROLS), *ON_IMAGES]


@pytest.mark.parametrize(("broken", "config", "point"), EVERY, ids=[f"{c[0].__name__}-{c[2]}" for c in EVERY])
def test_battery_fails_on(broken, config, point):
    oracle = None
    if issubclass(broken, SoftmaxAttention):
        oracle = softmax_oracle if broken.info.grid_ranks == (1,) else raster_oracle(softmax_oracle)
    case = Case(broken, config, oracle=oracle)
    assert point in points_of(case)
    with pytest.raises(AssertionError):
        POINTS[point].check(case)


@pytest.mark.parametrize("rank", [1, 2])
def test_every_point_has_a_negative_control(rank):
    assert {point for broken, _, point in EVERY if broken.info.grid_ranks == (rank,)} == set(POINTS)


def test_check_layer_runs_every_example_configuration_of_a_registered_layer():
    usual = find_layer("softmax").info.at_length(7)
    assert check_layer("softmax", oracle=softmax_oracle).count("shape_and_dtype_are_kept") == len(usual)


def test_unknown_layer_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'softmax'"):
        create("sofmax", dim=8)


def test_layers_are_listed_by_capability():
    def names(**what):
        return [info.name for info in list_layers(**what)]

    assert "softmax" in names(causal="strict", streaming=True, grid_rank=1)
    assert "softmax" not in names(causal="weak") + names(grid_rank=2) + names(streaming=False)
    assert "combiner-axial" in names(causal="strict", grid_rank=2, streaming=False)


@pytest.mark.parametrize(
    ("config", "causality"),
    [({}, "no"), ({"causal": True}, "weak"), ({"causal": True, "shared_qk": True, "assignment": "latest-w"}, "strict")],
)
def test_causal_is_true_for_strict_causality_only(config, causality):
    layer = create("routing", dim=8, heads=2, local_heads=1, **config)
    assert layer.causality == causality
    assert layer.is_causal is (causality == "strict")
