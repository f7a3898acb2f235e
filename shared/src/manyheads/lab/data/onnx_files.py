"""Networks as ONNX files: written by torch, run by ONNX Runtime. Torch is only imported to write."""

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
DIGEST = b"manyheads.sha256"  # key of the metadata entry


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
    """A module as the content of an ONNX file; it is left in evaluation mode, in which it is written.

    ``batch``: the inputs and outputs whose first axis is of any length. ``place`` begins the messages. Raises
    :class:`ArgumentError` for an opset below 17 and for operations that ONNX does not have.
    """
    import torch

    if opset < OPSET:
        raise ArgumentError(f"{place}: opset: found {opset}, expected {OPSET} or more")
    module.eval()  # the exporter would put a wrapper's mode back, and with it that of the network inside
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), _quiet(), _transposes(opset):
        made = Path(folder) / "made.onnx"
        try:
            torch.onnx.export(
                module,
                example,
                str(made),
                opset_version=opset,
                dynamo=False,  # the graphs are as lean, and it takes a tenth of the time
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={name: {0: "batch"} for name in batch},
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise ArgumentError(
                f"{place}: an operation of this network has no form in ONNX {opset}: {str(error).splitlines()[0]}"
            ) from error
        return sealed(made.read_bytes())


def session(path: Path, threads: int, mend: str) -> onnxruntime.InferenceSession:
    """Opens a file. Raises :class:`DataError`, ending with ``mend``, for one that is absent or no ONNX file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not path.is_file():
        raise DataError(f"{path}: no such file: {mend}")
    content = path.read_bytes()
    if content != sealed(unsealed(content)):
        raise DataError(f"{path}: damaged, or not an ONNX file of this library (its digest is wrong): {mend}")
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no base
        raise DataError(f"{path}: not an ONNX file that can be run: {str(error).splitlines()[0]}") from error


def with_metadata(content: bytes, facts: Mapping[str, str]) -> bytes:
    """The same file with entries in its metadata."""
    import onnx

    model = onnx.load_from_string(unsealed(content))
    onnx.helper.set_model_props(model, dict(facts))
    return sealed(model.SerializeToString())


def sealed(content: bytes) -> bytes:
    """An ONNX file with its SHA-256 as the last entry of its metadata.

    An entry is a field of the file's protobuf message, and such a field may be appended. The digest is that of all
    bytes before it, so that it is checked without reading the message.
    """
    digest = hashlib.sha256(content).hexdigest().encode()
    entry = b"\x0a" + bytes([len(DIGEST)]) + DIGEST + b"\x12" + bytes([len(digest)]) + digest
    return content + b"\x72" + bytes([len(entry)]) + entry


def unsealed(content: bytes) -> bytes:
    """The file that :func:`sealed` was given; unchanged if it has no digest."""
    end = max(len(content) - len(sealed(b"")), 0)
    return content[:end] if DIGEST in content[end:] else content


def int8_products(content: bytes, *, leave: Callable[[tuple[int, ...]], bool] = lambda shape: False) -> bytes:
    """The same network with the weights of its products rounded once to 8 bits, activations as they come.

    A scale and a zero point a column; one of each for all of a stack of matrices, for which ONNX Runtime has no other.
    ``leave`` is given the shape of a weight and says whether it stays float32, as everything else does.

    The weights are unsigned. ONNX Runtime multiplies unsigned activations with signed weights by an instruction that
    adds two products in 16 bits where the processor has AVX2 but not VNNI: 2 * 255 * 127 does not fit, and the sum is
    cut. It widens unsigned weights before it multiplies, so that every sum is exact, on any processor
    (``benchmarks/int8.py`` has the other ways, their errors and times).
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = ONNXModel(onnx.load_from_string(unsealed(content)))
    model.replace_gemm_with_matmul()  # only products are quantised
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
    """The quantiser recommends a pass that makes no difference here, at each call and to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


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


@contextlib.contextmanager
def _transposes(opset: int) -> Generator[None]:
    """``Tensor.mT``, which the exporter does not know."""
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
