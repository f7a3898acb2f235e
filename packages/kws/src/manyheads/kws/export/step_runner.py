"""Run an exported step with ONNX Runtime, for many streams at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manyheads.core.errors import ArgumentError, DataError
from manyheads.lab.data import onnx_files
from manyheads.lab.install import need_package

if TYPE_CHECKING:
    import onnxruntime


class StepRunner:
    """Run an exported step for B streams at once, and keep their states.

    The buffers are bound once. Two state buffers alternate as input and output, so that no state is copied between
    steps.

    Args:
        path: file written by ``export_step`` or ``quantise``.
        streams: number of streams B.
        threads: number of threads of ONNX Runtime.

    Raises:
        MissingPackageError: without onnxruntime.
        ArgumentError: fewer than one stream.
        DataError: a file that does not exist or was not written by these functions.
    """

    def __init__(self, path: str | Path, *, streams: int = 1, threads: int = 1) -> None:
        need_package("onnxruntime", "manyheads-kws", "onnx")
        if streams < 1:
            raise ArgumentError(f"runner: streams: found {streams}, expected 1 or more")
        self.session = onnx_files.session(Path(path), threads, "export_step writes one")
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
        """Return logits ``(B, C)`` of frames ``(B, stride, M)``. The next call overwrites the returned array."""
        if frames.shape != self._frames.shape:
            raise ArgumentError(f"runner: frames: found shape {frames.shape}, expected {self._frames.shape}")
        np.copyto(self._frames, frames)
        self.session.run_with_iobinding(self._bindings[self._turn])
        self._turn = 1 - self._turn
        return self._logits

    def reset(self, rows: Sequence[int] | np.ndarray | None = None) -> None:
        """Reset the streams ``rows``, or all."""
        for state in self._states[self._turn]:
            state[slice(None) if rows is None else np.asarray(rows)] = 0

    @property
    def state_bytes(self) -> int:
        """Size of the states of all streams in bytes."""
        return sum(state.nbytes for state in self._states[0])
