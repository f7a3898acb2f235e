"""Self-excited subpixel attention: where it looks at first, its global token, and its form for detectors."""

from __future__ import annotations

import io
import warnings

import pytest
import torch

from manyheads.core.errors import ArgumentError
from manyheads.core.functional import pixel_centres
from manyheads.core.layers import subpixel
from manyheads.core.layers.subpixel import SubpixelAttention, initial_offsets
from manyheads.core.mask import Mask
from manyheads.core.methods.mixing_matrix import mixing_matrix
from manyheads.core.registry import create
from manyheads.core.testing import POINTS, Case
from tests.core.layers import ORACLES


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def shaken(layer):
    """The layer with random weights, so that its points lie between pixels."""
    generator = torch.Generator().manual_seed(2)
    for parameter in layer.double().parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return layer


def test_eight_heads_look_along_the_eight_neighbours_at_first():
    right, down = (1, 0), (0, 1)
    directions = [right, (1, 1), down, (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    expected = [[[k * x, k * y] for k in (1, 2, 3, 4)] for x, y in directions]
    torch.testing.assert_close(initial_offsets(8, 4), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 3, 12])
def test_any_number_of_heads_reaches_its_points_in_evenly_turned_directions(heads):
    offsets = initial_offsets(heads, 3)
    torch.testing.assert_close(offsets.abs().amax(-1), torch.tensor([1.0, 2.0, 3.0]).double().expand(heads, 3))
    angles = torch.atan2(offsets[..., 1], offsets[..., 0])[:, 0] % (2 * torch.pi)
    torch.testing.assert_close(angles, torch.arange(heads).double() * (2 * torch.pi / heads))


def test_a_new_layer_averages_its_points_whatever_the_tokens_are():
    layer = create("subpixel", dim=16, heads=8, points=2, global_token=False).double()
    matrix = mixing_matrix(layer, normal(1, 7, 7, 16))[0].view(8, 49, 7, 7)
    middle = matrix[:, 3 * 7 + 3]
    for head, (x, y) in enumerate(initial_offsets(8, 1).round().int()[:, 0].tolist()):
        expected = torch.zeros(7, 7, dtype=torch.float64)
        expected[3 + y, 3 + x] = expected[3 + 2 * y, 3 + 2 * x] = 0.5
        torch.testing.assert_close(middle[head], expected, rtol=0, atol=1e-12)


def test_the_global_token_brings_the_mean_of_the_image():
    layer = create("subpixel", dim=4, heads=1, points=1).double()
    with torch.no_grad():
        layer.offset.bias.zero_()
        # Only the second level has a weight.
        layer.score.bias.copy_(torch.tensor([-1e3, 1e3]))
    x = normal(1, 5, 5, 4)
    y = layer(x).y
    expected = layer.output(layer.value(x.mean((1, 2))))
    torch.testing.assert_close(y[:, 2, 2], expected, rtol=0, atol=1e-12)
    # The first column is 2/5 from the centre, the only pixel of the second level.
    torch.testing.assert_close(y[:, 2, 0], expected * 0.6, rtol=0, atol=1e-12)


def test_attend_with_the_mean_as_second_level_is_the_layer():
    layer, x = shaken(create("subpixel", dim=6, heads=3, points=2)), normal(2, 4, 5, 6)
    levels = [x, x.mean((1, 2), keepdim=True)]
    y = layer.attend(x.flatten(1, 2), pixel_centres(4, 5, dtype=x.dtype), levels)
    torch.testing.assert_close(y.view(x.shape), layer(x).y, rtol=0, atol=1e-12)


def test_attend_updates_a_global_token_from_pixels_around_the_centre():
    """The encoder of SpecDETR: queries are pixels and token, all of them in one call."""
    layer, x, token = shaken(create("subpixel", dim=6, heads=2)), normal(1, 9, 9, 6), normal(1, 1, 1, 6)
    layer.offset.weight.data.zero_()
    layer.offset.bias.data.clamp_(-0.4, 0.4)
    queries = torch.cat([x.flatten(1, 2), token.flatten(1, 2)], 1)
    references = torch.cat([pixel_centres(9, 9, dtype=x.dtype), torch.full((1, 1, 1, 2), 0.5).double()], 1)
    x.requires_grad_(), token.requires_grad_()
    y = layer.attend(queries.detach(), references, [x, token])
    assert y.shape == (1, 82, 6)
    by_pixel, by_token = torch.autograd.grad(y[0, -1].sum(), [x, token])
    seen = by_pixel[0].abs().sum(-1) > 0
    assert seen[3:6, 3:6].any()
    assert not seen[[0, 1, 2, 6, 7, 8]].any()
    assert not seen[:, [0, 1, 2, 6, 7, 8]].any()
    assert by_token.abs().sum() > 0


def test_attend_takes_boxes_and_ignores_padded_pixels():
    layer, x, token = shaken(create("subpixel", dim=6, heads=2)), normal(2, 4, 5, 6), normal(2, 1, 1, 6)
    boxes, queries = torch.rand(2, 3, 1, 4, dtype=torch.float64), normal(2, 3, 6)
    real = torch.ones(2, 4, 5, dtype=torch.bool)
    real[:, :, 3:] = False
    y = layer.attend(queries, boxes, [x, token], real=[real, None])
    noise = torch.where(real.unsqueeze(-1), x, 1e3)
    torch.testing.assert_close(layer.attend(queries, boxes, [noise, token], real=[real, None]), y, rtol=0, atol=1e-12)
    assert (layer.attend(queries, boxes, [noise, token]) - y).abs().max() > 1


def test_padding_on_two_sides_is_as_if_cut_off():
    layer, x = shaken(create("subpixel", dim=6, heads=3)), normal(1, 5, 6, 6)
    padding = torch.zeros(1, 5, 6, dtype=torch.bool)
    padding[:, :3, :4] = True
    y = layer(x, mask=Mask(padding=padding.flatten(1))).y
    torch.testing.assert_close(y[:, :3, :4], layer(x[:, :3, :4]).y, rtol=0, atol=1e-12)


def test_chunks_equal_the_whole():
    layer, x = shaken(create("subpixel", dim=6, heads=2)), normal(2, 4, 5, 6)
    expected = layer(x).y
    layer.chunk = 3
    torch.testing.assert_close(layer(x).y, expected, rtol=0, atol=1e-12)


def test_one_layer_of_the_published_detector_has_the_parameters_of_its_four_projections():
    with torch.device("meta"):
        layer = SubpixelAttention(256)
    assert (layer.heads, layer.points, layer.levels) == (8, 4, 2)
    # Value and output; 8 heads with 2 levels of 4 points, each with two coordinates and a weight.
    assert sum(p.numel() for p in layer.parameters()) == 2 * 257 * 256 + 257 * 8 * 2 * 4 * 3


@pytest.mark.slow
def test_exported_graph_gives_the_same_for_another_batch_in_onnx():
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")

    class OutputOnly(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x).y

    layer = shaken(create("subpixel", dim=8, heads=2)).float().eval()
    x = normal(3, 5, 6, 8).float()
    for dynamo in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = exported(OutputOnly(layer), x, dynamo)
        session = runtime.InferenceSession(program)
        given = session.get_inputs()[0].name
        found = session.run(None, {given: x[:2].numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), layer(x[:2]).y, rtol=0, atol=1e-5)


def exported(module, x, dynamo):
    if dynamo:
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
        return program.model_proto.SerializeToString()
    file = io.BytesIO()
    torch.onnx.export(
        module, (x,), file, dynamo=False, opset_version=18, dynamic_axes={"x": {0: "b"}}, input_names=["x"]
    )
    return file.getvalue()


def test_the_layer_compiles_whole():
    layer, x = shaken(create("subpixel", dim=6, heads=2)), normal(2, 4, 5, 6)
    torch._dynamo.reset()
    found = torch.compile(layer, fullgraph=True, backend="eager")(x).y
    torch.testing.assert_close(found, layer(x).y, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"heads": 4}, "heads: found 4, expected a divisor of dim = 6"),
        ({"points": 0}, "points: found 0, expected 1 or more"),
        ({"chunk": 0}, "chunk: found 0, expected 1 or more"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ArgumentError, match=message):
        create("subpixel", dim=6, **config)


def test_a_missing_level_is_refused():
    layer, x = create("subpixel", dim=6, heads=2).double(), normal(1, 4, 5, 6)
    with pytest.raises(ArgumentError, match="levels: found 1, expected 2 as in offsets"):
        layer.attend(x.flatten(1, 2), pixel_centres(4, 5, dtype=x.dtype), [x])


def test_battery_fails_on_references_off_the_pixel_centres(monkeypatch):
    """Broken on purpose: references a little off the centres of the pixels."""

    def shifted(*args, **kwargs):
        return pixel_centres(*args, **kwargs) + 0.05

    monkeypatch.setattr(subpixel, "pixel_centres", shifted)
    case = Case(SubpixelAttention, {"heads": 2, "points": 2}, grid=(3, 4), oracle=ORACLES["subpixel"])
    with pytest.raises(AssertionError):
        POINTS["oracle_and_layer_agree"].check(case)
