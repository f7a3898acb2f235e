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

NARROW = 16  # outputs

__all__ = ["StepRunner", "export_clip", "export_nir", "export_step", "quantise"]


def export_step(network: Network, path: str | Path, *, opset: int = OPSET) -> Path:
    """Writes the network's step as ONNX and gives its path.

    Raises :class:`MissingPackageError` without onnx, :class:`ArgumentError` for an opset below 17, and for a network
    with operations that ONNX does not have (those round attention layers) or a state that does not begin with zeros.
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
    """Writes the network for whole clips of one length as ONNX: ``(B, frames, M)`` -> logits ``(B, frames // stride,
    C)``, as :meth:`Network.whole` gives them. For scoring many clips; its memory is one product for all steps.

    Raises what :func:`export_step` raises, and :class:`ArgumentError` for spikes, whose loop over the steps would have
    to be written out.
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
    """Writes the step with the weights of its products in int8, a scale a column, the activations quantised as they
    come. Float32 stay: what drives the memory, a product of a few columns; the memory's transition, no weight but a
    constant of the graph, which rounded would be another system; the states; convolutions that are none of these: over
    bins ("2d"), or with several outputs a step. Gives the path of the file."""
    need_package("onnxruntime", "manyheads-kws", "onnx")
    source, target = Path(source), Path(target)
    if not source.is_file():
        raise DataError(f"{source}: no such file: export_step writes one")
    write_atomically(target, int8_products(source.read_bytes(), leave=narrow))
    return target


def narrow(shape: tuple[int, ...]) -> bool:
    """Whether a product has so few outputs that to quantise its input costs more than it does."""
    return len(shape) == 2 and shape[1] < NARROW


class _Clip(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        return self.network.whole(frames)


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


def _export(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    opset: int,
    network: Network,
) -> None:
    """Writes a module as ONNX whose first axes are the batch."""
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
