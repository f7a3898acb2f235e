"""The integer products of a quantised ONNX file, as ONNX Runtime computes them and as numpy does, exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np


class IntegerProduct(NamedTuple):
    """``found`` by ONNX Runtime and ``exact`` of the same activations and weights, in 64 bits."""

    activations: np.ndarray  # (…, K) uint8
    weights: np.ndarray  # (…, K, N), as the file holds them
    found: np.ndarray  # (…, N) int32
    exact: np.ndarray  # (…, N) int64


def integer_products(content: bytes, feeds: Mapping[str, np.ndarray]) -> Iterator[IntegerProduct]:
    """Every product of integers in a file, on these inputs."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(content)
    graph = model.graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "MatMulInteger"]
    kinds = (TensorProto.UINT8, None, TensorProto.UINT8)
    wanted = {node.output[0]: TensorProto.INT32 for node in nodes}
    for node in nodes:
        wanted |= {name: kinds[n] for n, name in enumerate(node.input[:3]) if n != 1 and name not in constants}
    known = {one.name for one in graph.output}
    graph.output.extend(helper.make_tensor_value_info(n, kind, None) for n, kind in wanted.items() if n not in known)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = {**constants, **dict(zip(wanted, session.run(list(wanted), dict(feeds)), strict=True))}
    for node in nodes:
        a, w, a_zero, w_zero = (values[name] for name in node.input)
        exact = (a.astype(np.int64) - a_zero) @ (w.astype(np.int64) - w_zero.astype(np.int64))
        yield IntegerProduct(a, w, values[node.output[0]], exact)
