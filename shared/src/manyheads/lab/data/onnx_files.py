"""ONNX files: export with torch, run with ONNX Runtime, quantise to int8. Torch is imported for the export only."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyheads.core.errors import ArgumentError, DataError

if TYPE_CHECKING:
    import onnxruntime
    from torch import Tensor, nn

OPSET = 17
# Key of the metadata entry that holds the digest.
DIGEST = b"manyheads.sha256"


def exported(
    module: nn.Module,
    example: tuple[Tensor, ...],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    batch: Sequence[str],
    place: str,
    opset: int = OPSET,
) -> bytes:
    """Export a module and return the bytes of the ONNX file. The module is exported, and stays, in evaluation mode.

    Args:
        module: the network.
        example: inputs for tracing.
        inputs: names of the inputs.
        outputs: names of the outputs.
        batch: names of the inputs and outputs whose first axis may have any length.
        place: beginning of error messages.
        opset: ONNX operator set, 17 or more.

    Raises:
        ArgumentError: an opset below 17, or an operation that ONNX lacks.
    """
    import torch

    if opset < OPSET:
        raise ArgumentError(f"{place}: opset: found {opset}, expected {OPSET} or more")
    # the exporter restores the mode of a wrapper, and with it that of the network inside
    module.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), _quiet(), _transposes(opset):
        made = Path(folder) / "made.onnx"
        try:
            torch.onnx.export(
                module,
                example,
                str(made),
                opset_version=opset,
                # the older exporter gives graphs of the same size in a tenth of the time
                dynamo=False,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={name: {0: "batch"} for name in batch},
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise ArgumentError(
                f"{place}: an operation of this network has no form in ONNX {opset}: {str(error).splitlines()[0]}"
            ) from error
        return sealed(made.read_bytes())


def session(path: Path, threads: int, fix: str) -> onnxruntime.InferenceSession:
    """Open an ONNX file for inference.

    Raises :class:`DataError` if the file is absent, damaged (both end with ``fix``), or no ONNX file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not path.is_file():
        raise DataError(f"{path}: no such file: {fix}")
    content = path.read_bytes()
    if content != sealed(unsealed(content)):
        raise DataError(f"{path}: damaged, or not an ONNX file of this library (its digest is wrong): {fix}")
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    # the errors of onnxruntime share no base class
    except Exception as error:
        raise DataError(f"{path}: not an ONNX file that can be run: {str(error).splitlines()[0]}") from error


def with_metadata(content: bytes, facts: Mapping[str, str]) -> bytes:
    """Return an ONNX file with entries added to its metadata."""
    import onnx

    model = onnx.load_from_string(unsealed(content))
    onnx.helper.set_model_props(model, dict(facts))
    return sealed(model.SerializeToString())


def sealed(content: bytes) -> bytes:
    """Append the SHA-256 of an ONNX file as the last entry of its metadata.

    A metadata entry is a field of the file's protobuf message, and such a field may be appended. The digest covers all
    bytes before it, so that it can be checked without parsing the message.
    """
    digest = hashlib.sha256(content).hexdigest().encode()
    entry = b"\x0a" + bytes([len(DIGEST)]) + DIGEST + b"\x12" + bytes([len(digest)]) + digest
    return content + b"\x72" + bytes([len(entry)]) + entry


def unsealed(content: bytes) -> bytes:
    """Return the file without the digest of :func:`sealed`; unchanged if it has none."""
    end = max(len(content) - len(sealed(b"")), 0)
    return content[:end] if DIGEST in content[end:] else content


def int8_products(content: bytes, *, leave: Callable[[tuple[int, ...]], bool] = lambda shape: False) -> bytes:
    """Quantise the weights of matrix products to int8; activations are quantised at run time (dynamic quantisation).

    Each column has a scale and a zero point; a stack of matrices has one of each, as ONNX Runtime supports nothing
    finer. ``leave(shape)`` returns True for a weight that stays float32. Everything but matrix products stays float32.

    The weights are unsigned. On a processor with AVX2 but without VNNI, ONNX Runtime multiplies unsigned activations
    with signed weights by an instruction that adds two products in 16 bits: 2 * 255 * 127 does not fit, and the sum
    saturates. It widens unsigned weights before it multiplies, so that every sum is exact on any processor.
    ``benchmarks/int8.py`` compares the alternatives, their errors and times.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = ONNXModel(onnx.load_from_string(unsealed(content)))
    # only MatMul is quantised
    model.replace_gemm_with_matmul()
    shapes = {weight.name: tuple(weight.dims) for weight in model.model.graph.initializer}
    weights = {
        n.name: shapes[n.input[1]] for n in model.model.graph.node if n.op_type == "MatMul" and n.input[1] in shapes
    }
    left = [name for name, shape in weights.items() if leave(shape)]
    stacks = [name for name, shape in weights.items() if len(shape) == 3]
    with tempfile.TemporaryDirectory() as folder, _without_advice():
        source = Path(folder) / "plain.onnx"
        onnx.save(model.model, str(source))
        for columns, excluded in ((True, [*left, *stacks]), (False, left))[: 2 if stacks else 1]:
            target = Path(folder) / f"{columns}.onnx"
            quantize_dynamic(
                str(source),
                str(target),
                op_types_to_quantize=["MatMul"],
                per_channel=columns,
                weight_type=QuantType.QUInt8,
                nodes_to_exclude=excluded,
            )
            source = target
        return sealed(source.read_bytes())


@contextlib.contextmanager
def _without_advice() -> Generator[None]:
    """Silence the quantiser: at each call it logs, to the root logger, advice that makes no difference here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Silence the exporter's warnings about itself and about constant shapes.

    File descriptor 1 is redirected, as a failing exporter prints its whole graph from C++.
    """
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


@contextlib.contextmanager
def _transposes(opset: int) -> Generator[None]:
    """Register ``Tensor.mT`` with the exporter, which lacks it."""
    from torch.onnx import register_custom_op_symbolic, symbolic_helper, unregister_custom_op_symbolic

    def swapped(graph: Any, x: Any) -> Any:
        axes = list(range(symbolic_helper._get_tensor_rank(x) or 0))
        axes[-2:] = axes[:-3:-1]
        return graph.op("Transpose", x, perm_i=axes)

    register_custom_op_symbolic("aten::mT", swapped, opset)
    try:
        yield
    finally:
        unregister_custom_op_symbolic("aten::mT", opset)
