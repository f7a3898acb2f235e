"""A network's step for other runtimes: ONNX with the state going in and out, int8, and NIR for the neurons.

    export_step(network, "step.onnx");   quantise("step.onnx", "step.int8.onnx")
    runner = StepRunner("step.int8.onnx", streams=64)
    logits = runner(frames)                     # (64, stride, M) float32 -> (64, C), the states kept inside

The step takes the frames of one step, ``(B, stride, M)``, and gives its logits ``(B, C)``; batch norm is folded. Inputs
``state_0`` … go with outputs ``next_0`` …, all 0 before the first frame. Labels, stride, look-ahead and the bins are in
the file's metadata. The front end (log-mel and running mean) stays outside: it is a few percent of the work, and what a
microphone driver gives differs from place to place.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Generator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError, DataError, MissingPackageError
from manyheads.core.state import State, leaves
from manyheads.kws.models.network import Network, Passage
from manyheads.kws.models.sites import SpikeSite
from manyheads.lab.files import write_atomically

if TYPE_CHECKING:
    import onnxruntime

OPSET = 17


def export_step(network: Network, path: str | Path, *, opset: int = OPSET) -> Path:
    """Writes the network's step as ONNX and gives its path.

    Raises :class:`MissingPackageError` without onnx, :class:`ArgumentError` for an opset below 17, and for a network
    with operations that ONNX does not have (those round attention layers) or a state that does not begin with zeros.
    """
    _need("onnx", "onnx")
    if opset < OPSET:
        raise ArgumentError(f"export: opset: found {opset}, expected {OPSET} or more")
    path = Path(path)
    step = _Step(network if network.folded else network.fold())
    flat = step.initial(2)
    if any(bool(leaf.any()) for leaf in flat):
        raise ArgumentError("export: this network's state does not begin with zeros, which the exported step relies on")
    inputs = ["frames", *(f"state_{n}" for n in range(len(flat)))]
    outputs = ["logits", *(f"next_{n}" for n in range(len(flat)))]
    frames = torch.zeros(2, network.stride, network.bins)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), _quiet():
        made = Path(folder) / "step.onnx"
        try:
            torch.onnx.export(
                step,
                (frames, *flat),
                str(made),
                opset_version=opset,
                dynamo=False,  # the graphs are as lean, and it takes a tenth of the time
                input_names=inputs,
                output_names=outputs,
                dynamic_axes={name: {0: "batch"} for name in (*inputs, *outputs)},
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise ArgumentError(
                f"export: {network.config.kind}: an operation of this network has no form in ONNX {opset}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        facts = {"bins": network.bins, "stride": network.stride, "lookahead": network.lookahead}
        write_atomically(path, _with_metadata(made, {**facts, "labels": list(network.labels)}))
    return path


def quantise(source: str | Path, target: str | Path) -> Path:
    """Writes the step with the weights of its products in int8, a scale a column, the activations quantised as they
    come. The states stay float32, and so does the transition of the memory: it is no weight but a constant of the
    graph, and rounded it would be another system. Convolutions over bins ("2d") stay float32 too. Gives the path."""
    _need("onnxruntime", "onnx")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.onnx_model import ONNXModel

    source, target = Path(source), Path(target)
    if not source.is_file():
        raise DataError(f"{source}: no such file: export_step writes one")
    model = ONNXModel(onnx.load(str(source)))
    model.replace_gemm_with_matmul()  # only products are quantised
    with tempfile.TemporaryDirectory() as folder:
        plain, made = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        onnx.save(model.model, str(plain))
        quantize_dynamic(str(plain), str(made), per_channel=True, weight_type=QuantType.QInt8)
        write_atomically(target, made.read_bytes())
    return target


class StepRunner:
    """Runs an exported step through ONNX Runtime for some streams at once; keeps their states.

    The buffers are bound once, and the states of two steps take turns, so that nothing is copied between steps.

    Args:
        path: what :func:`export_step` or :func:`quantise` wrote.
        streams: B.
        threads: of ONNX Runtime.

    Raises:
        MissingPackageError: without onnxruntime.
        DataError: a file that is not there or was not written by these functions.
    """

    def __init__(self, path: str | Path, *, streams: int = 1, threads: int = 1) -> None:
        _need("onnxruntime", "onnx")
        if streams < 1:
            raise ArgumentError(f"runner: streams: found {streams}, expected 1 or more")
        self.session = _session(Path(path), threads)
        found = self.session.get_modelmeta().custom_metadata_map.get("manyheads.step")
        if found is None:
            raise DataError(f"{path}: not a step that manyheads exported: it has no metadata 'manyheads.step'")
        facts = json.loads(found)
        self.streams, self.labels = streams, tuple(facts["labels"])
        self.bins, self.stride, self.lookahead = facts["bins"], facts["stride"], facts["lookahead"]
        frames, *states = self.session.get_inputs()
        self._frames = np.zeros((streams, *frames.shape[1:]), np.float32)
        self._logits = np.zeros((streams, len(self.labels)), np.float32)
        dtypes = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}
        self._states = tuple(
            [np.zeros((streams, *state.shape[1:]), dtypes[state.type]) for state in states] for _ in range(2)
        )
        self._bindings = [self._bind(turn) for turn in range(2)]
        self._turn = 0

    def _bind(self, turn: int) -> onnxruntime.IOBinding:
        from onnxruntime import OrtValue

        bound = self.session.io_binding()
        frames, *inputs = [put.name for put in self.session.get_inputs()]
        logits, *outputs = [put.name for put in self.session.get_outputs()]
        pairs = [(bound.bind_ortvalue_input, frames, self._frames), (bound.bind_ortvalue_output, logits, self._logits)]
        for name, value in zip(inputs, self._states[turn], strict=True):
            pairs.append((bound.bind_ortvalue_input, name, value))
        for name, value in zip(outputs, self._states[1 - turn], strict=True):
            pairs.append((bound.bind_ortvalue_output, name, value))
        for bind, name, value in pairs:
            bind(name, OrtValue.ortvalue_from_numpy(value))
        return bound

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """``(B, stride, M)`` -> logits ``(B, C)``; the array is written over by the next call."""
        if frames.shape != self._frames.shape:
            raise ArgumentError(f"runner: frames: found shape {frames.shape}, expected {self._frames.shape}")
        np.copyto(self._frames, frames)
        self.session.run_with_iobinding(self._bindings[self._turn])
        self._turn = 1 - self._turn
        return self._logits

    def reset(self, rows: Sequence[int] | np.ndarray | None = None) -> None:
        """The streams ``rows``, or all, begin anew."""
        for state in self._states[self._turn]:
            state[slice(None) if rows is None else np.asarray(rows)] = 0

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of all streams."""
        return sum(state.nbytes for state in self._states[0])


class _Step(nn.Module):
    """The network's step as a function of flat tensors; states without numbers are left out."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        parts = network.init_parts(1, device=torch.device("cpu"), dtype=torch.float32)
        self.template: State = (torch.zeros(1, dtype=torch.int64), parts) if network.lookahead else ((), parts)

    def initial(self, batch: int) -> list[Tensor]:
        return [leaf.expand(batch, *leaf.shape[1:]).clone() for leaf in leaves(self.template) if leaf.numel()]

    def forward(self, frames: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        seen, parts = _filled(self.template, list(flat), frames)
        logits, parts = self.network.run(frames, parts, Passage(seen if self.network.lookahead else None))
        after = [leaf for leaf, was in zip(leaves(parts), leaves(self.template[1]), strict=True) if was.numel()]
        if self.network.lookahead:
            after.insert(0, (seen + self.network.stride).clamp(max=self.network.lookahead))
        return logits.squeeze(1), *after


def _filled(template: State, flat: list[Tensor], frames: Tensor) -> Any:
    """The template's structure with the tensors of ``flat``, in order; what has no numbers is made."""
    if isinstance(template, Tensor):
        return flat.pop(0) if template.numel() else frames.new_zeros(frames.shape[0], *template.shape[1:])
    children = [_filled(child, flat, frames) for child in template]
    return type(template)(*children) if hasattr(template, "_fields") else tuple(children)


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not path.is_file():
        raise DataError(f"{path}: no such file: export_step writes one")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no base
        raise DataError(f"{path}: not an ONNX file that can be run: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """The exporter warns of itself and of shapes that do not change, and where it fails it prints its whole graph, past
    Python."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os.dup2(nowhere.fileno(), 1)
            yield
            sys.stdout.flush()
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _with_metadata(path: Path, facts: dict[str, Any]) -> bytes:
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {"manyheads.step": json.dumps(facts)})
    return model.SerializeToString()


def _need(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingPackageError(f"{package} is not installed: pip install 'manyheads-kws[{extra}]'")


def export_nir(network: Network, path: str | Path) -> Path:
    """Writes the spiking neurons as a NIR file, one ``Affine`` and ``LIF`` pair a site: what batch norm is in
    evaluation, then the neurons.

    NIR's neuron is continuous: ``tau dv/dt = v_leak - v + r I``; one step of 1 by Euler is ours with ``r = 1``,
    ``v_leak = 0``, a hard reset to 0. What NIR cannot say is left out: the products and convolutions between the sites
    and their joins, the Legendre memory (no node of NIR is one), the residual paths. The file is thus the neurons to be
    placed on a chip, not the network.

    Raises :class:`MissingPackageError` without nir, :class:`ArgumentError` for a network without spikes.
    """
    sites = [module for module in network.modules() if isinstance(module, SpikeSite)]
    if not sites:
        raise ArgumentError(f"export: {network.config.kind}: found no spiking neurons, expected spiking=True")
    _need("nir", "nir")
    nir: Any = importlib.import_module("nir")
    from manyheads.kws.models.sites import site_affine

    nodes: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    for site in sites:
        scale, shift = (part.detach().double().cpu().numpy() for part in site_affine(site))
        width = site.neurons
        name = site.name.replace(".", "_")
        neuron = {"tau": np.full(width, site.neuron.tau), "r": np.ones(width), "v_leak": np.zeros(width)}
        nodes[f"{name}_input"] = nir.Input(input_type={"input": np.array([width])})
        nodes[f"{name}_affine"] = nir.Affine(weight=np.diag(scale), bias=shift)
        nodes[f"{name}_neurons"] = nir.LIF(
            **neuron, v_threshold=np.full(width, site.neuron.threshold), v_reset=np.zeros(width)
        )
        nodes[f"{name}_output"] = nir.Output(output_type={"output": np.array([width])})
        chain = [f"{name}_{part}" for part in ("input", "affine", "neurons", "output")]
        edges += pairwise(chain)
    path = Path(path)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "neurons.nir"
        nir.write(str(made), nir.NIRGraph(nodes=nodes, edges=edges))
        write_atomically(path, made.read_bytes())
    return path
