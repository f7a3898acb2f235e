"""Export one streaming step of a network: ONNX with the state as input and output, int8 quantisation, NIR for neurons.

    export_step(network, "step.onnx");   quantise("step.onnx", "step.int8.onnx")
    runner = StepRunner("step.int8.onnx", streams=64)
    logits = runner(frames)                     # (64, stride, M) float32 -> (64, C); the runner keeps the states

The step reads the frames of one step, ``(B, stride, M)``, and returns its logits ``(B, C)``. Batch norm is folded.
Output ``next_0`` is input ``state_0`` of the next step, and so on; all states are 0 before the first frame. The file
metadata contain labels, stride, look-ahead and number of mel bins.

The log-mel features and the running mean are not part of the step: they are a few percent of the work, and the sample
format of a microphone driver depends on the device.

Shapes: B streams, M mel bins, C labels.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError, DataError
from manyheads.core.state import State, leaves
from manyheads.kws.export.step_runner import StepRunner
from manyheads.kws.models.network import Network, Passage
from manyheads.kws.models.sites import SpikeSite
from manyheads.kws.models.staged import Staged
from manyheads.lab.data.files import write_atomically
from manyheads.lab.data.onnx_files import OPSET, exported, int8_products, with_metadata
from manyheads.lab.install import need_package

# A product with fewer outputs is not quantised.
NARROW = 16

__all__ = ["StepRunner", "export_clip", "export_nir", "export_step", "quantise"]


def export_step(network: Network, path: str | Path, *, opset: int = OPSET) -> Path:
    """Write one step of the network as ONNX and return the path.

    Raises :class:`MissingPackageError` without onnx. Raises :class:`ArgumentError` for an opset below 17, for a network
    with operations that ONNX does not have (those around attention layers), and for an initial state other than zero.
    """
    need_package("onnx", "manyheads-kws", "onnx")
    path = Path(path)
    step = _Step(network if network.folded else network.fold())
    flat = step.initial(2)
    if any(bool(leaf.any()) for leaf in flat):
        raise ArgumentError("export: this network's state does not begin with zeros, which the exported step relies on")
    inputs = ["frames", *(f"state_{n}" for n in range(len(flat)))]
    outputs = ["logits", *(f"next_{n}" for n in range(len(flat)))]
    frames = torch.zeros(2, network.stride, network.bins)
    _export(step, (frames, *flat), path, inputs, outputs, opset, network)
    return path


def export_clip(network: Staged, path: str | Path, *, frames: int, opset: int = OPSET) -> Path:
    """Write the network for whole clips of one length as ONNX and return the path; use it to score many clips.

    The model maps ``(B, frames, M)`` to logits ``(B, frames // stride, C)``, like :meth:`Network.whole`. Its linear
    memory is one matrix product for all steps.

    Raises like :func:`export_step`. Also raises :class:`ArgumentError` for fewer frames than one step, and for a
    spiking network, whose loop over the steps would have to be unrolled.
    """
    need_package("onnx", "manyheads-kws", "onnx")
    if any(isinstance(module, SpikeSite) for module in network.modules()):
        raise ArgumentError(f"export: {network.config.kind}: found spikes, expected none: export_step takes them")
    if frames < network.stride:
        raise ArgumentError(f"export: frames: found {frames}, expected {network.stride} or more")
    folded = network if network.folded else network.fold()
    folded.freeze_clips(frames)
    example = torch.zeros(2, frames, network.bins)
    _export(_Clip(folded), (example,), Path(path), ["frames"], ["logits"], opset, folded)
    return Path(path)


def quantise(source: str | Path, target: str | Path) -> Path:
    """Quantise an exported step (dynamic int8 quantisation) and return the path of the new file.

    The weights of the matrix products become int8 with one scale per column; activations are quantised at run time.
    These parts stay float32:

    - the input of the linear memory: a product with few columns,
    - the transition matrix of the linear memory: a constant, no weight; rounding would change the system,
    - the states,
    - convolutions that are not exported as a matrix product: over mel bins (stem "2d"), or with several outputs a step.

    Raises :class:`MissingPackageError` without onnxruntime, :class:`DataError` if ``source`` does not exist.
    """
    need_package("onnxruntime", "manyheads-kws", "onnx")
    source, target = Path(source), Path(target)
    if not source.is_file():
        raise DataError(f"{source}: no such file: export_step writes one")
    write_atomically(target, int8_products(source.read_bytes(), leave=narrow))
    return target


def narrow(shape: tuple[int, ...]) -> bool:
    """Return whether a product has so few outputs that quantising its input costs more than the product itself."""
    return len(shape) == 2 and shape[1] < NARROW


class _Clip(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        return self.network.whole(frames)


class _Step(nn.Module):
    """One step of the network as a function of flat tensors. Empty state tensors are left out."""

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
    """Rebuild the state structure of ``template`` from the tensors of ``flat``, in order; create empty tensors."""
    if isinstance(template, Tensor):
        return flat.pop(0) if template.numel() else frames.new_zeros(frames.shape[0], *template.shape[1:])
    children = [_filled(child, flat, frames) for child in template]
    return type(template)(*children) if hasattr(template, "_fields") else tuple(children)


def _export(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    opset: int,
    network: Network,
) -> None:
    """Write a module as ONNX with metadata; the first axis of each input and output is the batch."""
    facts = {"bins": network.bins, "stride": network.stride, "lookahead": network.lookahead}
    made = exported(
        module,
        example,
        inputs=inputs,
        outputs=outputs,
        batch=(*inputs, *outputs),
        place=f"export: {network.config.kind}",
        opset=opset,
    )
    about = json.dumps({**facts, "labels": list(network.labels)})
    write_atomically(path, with_metadata(made, {"manyheads.step": about}))


def export_nir(network: Network, path: str | Path) -> Path:
    """Write the spiking neurons as a NIR file and return the path: one ``Affine`` and one ``LIF`` node per site.

    The ``Affine`` node is the batch norm in evaluation mode. The ``LIF`` node of NIR is continuous in time:
    ``tau dv/dt = v_leak - v + r I``. An Euler step of 1 with ``r = 1``, ``v_leak = 0`` and a hard reset to 0 gives the
    neuron used here.

    The file contains the neurons for a chip, not the whole network. It leaves out the products and convolutions between
    the sites, their connections, the Legendre memory (NIR has no node for it) and the residual paths.

    Raises :class:`MissingPackageError` without nir, :class:`ArgumentError` for a network without spikes.
    """
    sites = [module for module in network.modules() if isinstance(module, SpikeSite)]
    if not sites:
        raise ArgumentError(f"export: {network.config.kind}: found no spiking neurons, expected spiking=True")
    need_package("nir", "manyheads-kws", "nir")
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
