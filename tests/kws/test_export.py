"""Export: ONNX step against the network, int8 quantisation, step runner, NIR."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from manyheads.core.errors import ArgumentError, DataError, MissingPackageError
from manyheads.kws.export import formats as export
from manyheads.kws.models import LMUFormerConfig
from manyheads.lab.data import onnx_files
from tests.integers import integer_products
from tests.kws.networks import BINS, LABELS, awake, frames

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
EXPORTED = ["2d", "2d-spiking", "2d-ahead", "1d", "1d-spiking", "1d-deep", "1d-ahead-spiking", "published"]
EXPORTED += ["published-spiking", "residual-cnn"]


def run(runner: export.StepRunner, x: torch.Tensor) -> torch.Tensor:
    steps = x.unflatten(1, (-1, runner.stride)).transpose(0, 1)
    return torch.from_numpy(np.stack([runner(step.numpy()).copy() for step in steps], 1))


@pytest.mark.parametrize("name", EXPORTED)
@torch.no_grad()
def test_onnx_equals_the_network_over_100_steps(name: str, tmp_path: Path) -> None:
    network, rates = awake(name, torch.float32)
    path = export.export_step(network, tmp_path / "step.onnx")
    for streams in (1, 3):
        runner = export.StepRunner(path, streams=streams)
        assert (runner.labels, runner.bins, runner.stride) == (LABELS, BINS, network.stride)
        x = frames(streams, 100 * network.stride, torch.float32)
        expected = network(x).logits
        assert expected.std() > 0.1
        scale = expected.abs().max().clamp_min(1.0)
        assert (run(runner, x) - expected).abs().max() / scale < 1e-5
    assert all(rate > 0.01 for rate in rates.values())


@torch.no_grad()
def test_streams_are_reset_one_by_one(tmp_path: Path) -> None:
    network, _ = awake("1d", torch.float32)
    runner = export.StepRunner(export.export_step(network, tmp_path / "step.onnx"), streams=2)
    x = frames(2, 40, torch.float32)
    whole = run(runner, x)
    runner.reset([1])
    again = run(runner, x)
    torch.testing.assert_close(again[1], whole[1])
    assert (again[0] - whole[0]).abs().max() > 1e-3, "the other stream has gone on"
    runner.reset()
    torch.testing.assert_close(run(runner, x), whole)


@torch.no_grad()
def test_step_takes_any_number_of_streams_with_constant_memory(tmp_path: Path) -> None:
    network, _ = awake("published", torch.float32)
    path = export.export_step(network, tmp_path / "step.onnx")
    one, many = (export.StepRunner(path, streams=n) for n in (1, 64))
    assert many.state_bytes == 64 * one.state_bytes
    x = frames(64, 30, torch.float32)
    alone = run(one, x[5:6])
    torch.testing.assert_close(run(many, x)[5:6], alone, atol=1e-5, rtol=0)


def quantised(config, tmp_path: Path) -> tuple[Path, Path]:
    """Return an exported step in float32 and in int8."""
    torch.manual_seed(0)
    network = config.make(BINS, LABELS)
    network.calibrate(frames(8, 60, torch.float32))
    path = export.export_step(network.eval(), tmp_path / "step.onnx")
    return path, export.quantise(path, tmp_path / "int8.onnx")


WIDE = LMUFormerConfig(stem="1d", channels=64, stride=1)


@torch.no_grad()
def test_int8_step_is_close_and_smaller(tmp_path: Path) -> None:
    path, small = quantised(WIDE, tmp_path)
    assert small.stat().st_size < 0.45 * path.stat().st_size
    x = frames(4, 100, torch.float32)
    a, b = (run(export.StepRunner(p, streams=4), x).mean(1) for p in (path, small))
    assert 0 < (a - b).norm() / a.norm() < 0.03


@pytest.mark.parametrize("spiking", [False, True])
def test_int8_is_exact_integer_arithmetic(spiking: bool, tmp_path: Path) -> None:
    """Each product equals the integer product of the int8 weights and the rounded activations, bit by bit. A processor
    that adds pairs of products in 16 bits fails this."""
    _, small = quantised(replace(WIDE, spiking=spiking), tmp_path)
    runner, draw = export.StepRunner(small, streams=5), np.random.default_rng(0)
    inputs = runner.session.get_inputs()
    feeds = {put.name: draw.standard_normal((5, *put.shape[1:])).astype(np.float32) for put in inputs}
    products = list(integer_products(small.read_bytes(), feeds))
    assert len(products) > 5
    for one in products:
        assert one.weights.dtype == np.uint8, "which ONNX Runtime widens before it multiplies"
        assert one.weights.shape[-2] * 255 * 255 < 2**31, "what an accumulator holds"
        np.testing.assert_array_equal(one.found, one.exact)
    assert max(one.activations.max() for one in products) == 255


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("inputs", [2, 64, 511])
def test_largest_int8_sums_do_not_saturate(inputs: int, sign: float) -> None:
    """Ones times equal weights c give K c. All integers are at their limits, and 2 * 255 * 127 exceeds 16 bits."""
    import onnxruntime

    layer = torch.nn.Linear(inputs, 24, bias=False)
    torch.nn.init.constant_(layer.weight, sign * 0.7)
    ones = torch.ones(3, inputs)
    content = onnx_files.exported(layer, (ones,), inputs=["x"], outputs=["y"], batch=["x", "y"], place="test")
    session = onnxruntime.InferenceSession(onnx_files.int8_products(content))
    [y] = session.run(None, {"x": ones.numpy()})
    np.testing.assert_allclose(y, sign * 0.7 * inputs, rtol=1e-6)


def test_all_weights_of_the_published_step_are_quantised_and_nothing_else(tmp_path: Path) -> None:
    """Each trained product becomes int8, except the input of the memory. The transition of the memory, a constant,
    stays float32 too."""
    import onnx

    from tests.kws.networks import PUBLISHED

    network = LMUFormerConfig(**{**PUBLISHED, "channels": 24}).make(BINS, tuple(f"word{n}" for n in range(20)))
    path = export.export_step(network, tmp_path / "step.onnx")
    model = onnx.load(export.quantise(path, tmp_path / "int8.onnx"))
    kinds = [node.op_type for node in model.graph.node]
    trained = sum(p.dim() > 1 for p in network.parameters())
    assert kinds.count("MatMulInteger") == trained - 1
    assert kinds.count("MatMul") == 2


@pytest.mark.parametrize("name", ["softmax", "gtrxl"])
def test_networks_that_onnx_cannot_express_are_refused(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network, _ = awake(name, torch.float32)
    with pytest.raises(ArgumentError, match="has no form in ONNX"):
        export.export_step(network, tmp_path / "step.onnx")
    assert not capfd.readouterr().out
    assert not (tmp_path / "step.onnx").exists()


def test_bad_files_and_shapes_are_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    with pytest.raises(DataError, match="no such file"):
        export.StepRunner(tmp_path / "none.onnx")
    with pytest.raises(DataError, match="no such file"):
        export.quantise(tmp_path / "none.onnx", tmp_path / "out.onnx")
    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(DataError, match="not an ONNX file"):
        export.StepRunner(tmp_path / "text.onnx")
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["b", 2])
    other = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["b", 2])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [other])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, str(tmp_path / "relu.onnx"))
    with pytest.raises(DataError, match="not an ONNX file of this library"):
        export.StepRunner(tmp_path / "relu.onnx")
    network, _ = awake("1d", torch.float32)
    path = export.export_step(network, tmp_path / "step.onnx")
    with pytest.raises(ArgumentError, match=r"frames: found shape \(2, 2, 20\), expected \(1, 2, 20\)"):
        export.StepRunner(path)(np.zeros((2, 2, BINS), np.float32))
    with pytest.raises(ArgumentError, match="opset"):
        export.export_step(network, path, opset=11)


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    hidden = {"nir", "onnxruntime", "onnx"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in hidden else found(name, *a))
    network, _ = awake("1d-spiking", torch.float32)
    with pytest.raises(MissingPackageError, match=r"nir is not installed: pip install .*kws\[nir\]"):
        export.export_nir(network, tmp_path / "neurons.nir")
    with pytest.raises(MissingPackageError, match=r"pip install .*kws\[onnx\]"):
        export.export_step(network, tmp_path / "step.onnx")
    with pytest.raises(MissingPackageError, match=r"pip install .*kws\[onnx\]"):
        export.StepRunner(tmp_path / "step.onnx")


def test_nir_file_contains_the_neurons(tmp_path: Path) -> None:
    """Affine and LIF nodes read from the file, in Euler steps as NIR defines them, give the same spikes as the site."""
    nir = pytest.importorskip("nir")
    network, _ = awake("1d-spiking")
    graph = nir.read(str(export.export_nir(network, tmp_path / "neurons.nir")))
    site = network.stem.sites[1]
    affine, neurons = graph.nodes["stem2_affine"], graph.nodes["stem2_neurons"]
    x = frames(1, 50)[..., : site.neurons] * 2
    v, spikes = np.zeros(site.neurons), []
    for x_t in x[0].numpy():
        drive = affine.weight @ x_t + affine.bias
        v = v + (neurons.v_leak - v + neurons.r * drive) / neurons.tau
        fired = v >= neurons.v_threshold
        v = np.where(fired, neurons.v_reset, v)
        spikes.append(fired)
    from manyheads.kws.models.network import Passage

    state = site.init_state(1, device=None, dtype=torch.float64)
    expected, _ = site(x, state, Passage(), 0, 1)
    assert 0.01 < expected.mean() < 0.99
    np.testing.assert_array_equal(np.stack(spikes), expected[0].detach().numpy() > 0)
    assert len([n for n in graph.nodes if n.endswith("_neurons")]) == len(
        {p.source for p in network.products()} - {None}
    )


def test_nir_of_a_network_without_spikes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no spiking neurons"):
        export.export_nir(awake("1d")[0], tmp_path / "neurons.nir")


@pytest.mark.parametrize("name", ["2d", "1d", "1d-ahead", "published", "residual-cnn"])
@torch.no_grad()
def test_exported_clip_model_equals_the_network(name: str, tmp_path: Path) -> None:
    import onnxruntime

    network, _ = awake(name, torch.float32)
    path = export.export_clip(network, tmp_path / "clip.onnx", frames=61)
    x = frames(3, 61, torch.float32)
    found = onnxruntime.InferenceSession(str(path)).run(None, {"frames": x.numpy()})[0]
    expected = network.whole(x)
    assert (torch.from_numpy(found) - expected).abs().max() / expected.abs().max() < 1e-5


@pytest.mark.parametrize("name", ["2d", "1d-ahead", "published"])
@torch.no_grad()
def test_fusing_memory_and_readout_for_clips_changes_nothing(name: str) -> None:
    network, _ = awake(name)
    x = frames(3, 60)
    folded = network.fold()
    folded.freeze_clips(60)
    assert folded.blocks[0].mixer.clip_response is not None
    for count in (60, 41):  # the length that it is prepared for, and another
        torch.testing.assert_close(folded.whole(x[:, :count]), network.whole(x[:, :count]), atol=1e-10, rtol=0)


def test_impossible_clip_exports_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="found spikes"):
        export.export_clip(awake("1d-spiking")[0], tmp_path / "clip.onnx", frames=60)
    with pytest.raises(ArgumentError, match="frames: found 0"):
        export.export_clip(awake("1d")[0], tmp_path / "clip.onnx", frames=0)
