"""Score raw rows with an exported folder: ONNX Runtime, numpy and pandas; torch is not imported.

ranker = Ranker.load("served")
ranker.score_rows([{"user": 3, "item": 17, ...}]).probabilities        # (n, K)
ranker.score({"user": 3, ...}, [{"item": 17}, {"item": 4}])            # the shared fields are computed once
ranker.predict_proba(frame)                                            # as Recommender's
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manyheads.core.errors import ArgumentError, CheckpointError, DataError
from manyheads.lab.data.fields import from_json
from manyheads.lab.data.onnx_files import session
from manyheads.lab.data.storage import check_beside, load_document, save_document, sha256
from manyheads.lab.install import need_package
from manyheads.recsys.features.encoder import FILES as encoder_files
from manyheads.recsys.features.encoder import Arrays, Encoder
from manyheads.recsys.features.frames import as_frame, check_frame, check_scores
from manyheads.recsys.features.labels import FILE as labels_file
from manyheads.recsys.features.labels import Labels
from manyheads.recsys.features.layout import Layout
from manyheads.recsys.serving.rows import Row, encode_rows
from manyheads.recsys.training.calibration import Calibration

KIND = "recommender's export"
FORMAT = 1
FILE, NETWORK, REQUEST, CANDIDATES = "serving.json", "network.onnx", "request.onnx", "candidates.onnx"
# rows of a chunk: the intermediate results of so many stay in the cache
PIECE = 128
# candidates; with fewer, the request and candidate graphs take longer than the graph of whole rows
SHARE_FROM = 64
Rows = pd.DataFrame | Sequence[Row]


def small_name(name: str) -> str:
    """Return the name of the int8 file beside a float32 one."""
    return name.replace(".onnx", ".int8.onnx")


@dataclass(frozen=True)
class Scored:
    """Scores of n rows for K tasks, and the counts of unseen and missing values."""

    logits: np.ndarray  # (n, K), before calibration
    probabilities: np.ndarray  # (n, K), of the second value of each label
    unseen: dict[str, int]  # out-of-vocabulary values by field
    missing: dict[str, int]  # missing values by field


class Ranker:
    """An exported recommender.

    Args:
        folder: the folder that :func:`manyheads.recsys.serving.export` wrote.
        threads: threads of ONNX Runtime.
        int8: use the int8 files; by default if ``quantise`` has accepted them.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        CheckpointError: any other folder.
    """

    def __init__(self, folder: str | Path, *, threads: int = 1, int8: bool | None = None) -> None:
        need_package("onnxruntime", "manyheads-recsys", "onnx")
        folder = Path(folder)
        self.about = read_about(folder)
        self.encoder, self.labels = Encoder.load(folder), Labels.load(folder)
        try:
            self.layout = from_json(Layout, self.about["layout"])
            self.calibration = [Calibration.from_dict(values) for values in self.about["calibration"]]
            self.request: dict[str, Any] | None = self.about["request"]
            admitted = bool(dict(self.about.get("int8") or {}).get("admitted"))
            self._check()
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            said = " ".join(str(error).split())[:160] or type(error).__name__
            raise CheckpointError(f"{folder / FILE}: damaged ({said}): export the model again") from error
        self.int8 = admitted if int8 is None else int8

        def opened(name: str) -> Any:
            chosen = small_name(name) if self.int8 and name != REQUEST else name
            return session(folder / chosen, threads, "export the model again")

        self.network = opened(NETWORK)
        self.sessions = {} if self.request is None else {name: opened(name) for name in (REQUEST, CANDIDATES)}
        self._encoders: dict[frozenset[str], tuple[Encoder, list[int], list[int]]] = {}

    def _check(self) -> None:
        """Raise :class:`ValueError` if the files of the folder do not belong together."""
        if self.layout != self.encoder.layout(self.labels.tasks) or len(self.calibration) != len(self.labels.tasks):
            raise ValueError("the layout, the calibration and the encoder do not belong together")
        if not {str(name) for name in self.about["shared"]} <= set(self.columns) or not isinstance(
            self.about["model"], str
        ):
            raise ValueError("the shared columns are none of the model")
        if self.request is not None:
            for name, most in (("names", len(self.layout.names)), ("numeric", len(self.layout.numeric))):
                if not all(type(at) is int and 0 <= at < most for at in self.request[name]):
                    raise ValueError(f"request: {name}: a place that the layout lacks")

    @classmethod
    def load(cls, folder: str | Path, *, threads: int = 1, int8: bool | None = None) -> Ranker:
        """The same as the constructor."""
        return cls(folder, threads=threads, int8=int8)

    @property
    def columns(self) -> list[str]:
        """The columns that a row needs."""
        return self.encoder.spec.columns

    @property
    def shared(self) -> list[str]:
        """The shared columns of a request, as named at export."""
        return list(self.about["shared"])

    def score_rows(self, rows: Rows) -> Scored:
        """Score whole rows: a DataFrame, or mappings with the columns of the model."""
        found = self._encode(frozenset(self.columns), rows, "row")
        return self._scored(self.logits(found.ids, found.numbers), found.unseen, found.missing)

    def score(self, request: Row, candidates: Rows) -> Scored:
        """Score the candidates of one request; ``request`` holds the columns that they share.

        If these are the shared columns of the export and there are at least ``SHARE_FROM`` candidates, their part of
        the network is computed once. Otherwise they are repeated for each candidate. Keys that are no columns of the
        model are ignored.

        Raises :class:`DataError` for a column in both or in neither.
        """
        request_names = frozenset(name for name in self.columns if name in request)
        candidate_names = frozenset(self.columns) - request_names
        if not candidate_names:
            raise DataError("request: found every column, expected at least one that differs by candidate")
        both = request_names & _column_names(candidates)
        if both:
            raise DataError(f"column {min(both)!r}: found in the request and in the candidates, expected in one")
        rows = self._encode(candidate_names, candidates, "candidate")
        count = len(rows.ids)
        ids = np.zeros((count, sum(self.layout.widths)), np.int64)
        numbers = np.zeros((count, len(self.layout.numeric)), np.float32)
        unseen, missing = dict(rows.unseen), dict(rows.missing)
        parts = [(rows, candidate_names)]
        if request_names:
            given = self._encode(request_names, [request], "request")
            parts.append((given, request_names))
            unseen, missing = {**given.unseen, **unseen}, {**given.missing, **missing}
        for part, names in parts:
            _, places, numeric = self._encoder(names)
            ids[:, places], numbers[:, numeric] = part.ids, part.numbers
        shared = self.request is not None and request_names == frozenset(self.shared) and count >= SHARE_FROM
        logits = self.shared_logits(ids, numbers) if shared else self.logits(ids, numbers)
        return self._scored(logits, unseen, missing)

    def predict_proba(self, rows: Rows) -> Any:
        """Return ``(n, 2)``, or a list of these, one per task, as ``Recommender.predict_proba``."""
        positive = self.score_rows(rows).probabilities
        found = [np.stack([1.0 - p, p], 1) for p in positive.T]
        return found[0] if len(found) == 1 else found

    def logits(self, ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Run the network on encoded rows: ids ``(n, C)`` and numbers ``(n, F)`` -> logits ``(n, K)``."""
        return in_pieces(self.network, {"ids": ids, "numbers": numbers}, {})

    def shared_logits(self, ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """The same as :meth:`logits`, for rows with equal shared columns; those of the first row are used."""
        return self.candidate_logits(self.request_state(ids[:1], numbers[:1]), ids, numbers)

    def request_state(self, ids: np.ndarray, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Run the request graph on the shared columns of a whole row, ``(1, C)`` and ``(1, F)``; return its state."""
        if self.request is None:
            raise ArgumentError("this folder was exported without shared columns: export it again with some")
        graph = self.sessions[REQUEST]
        wanted = [out.name for out in graph.get_outputs()]
        shared_ids, numeric = self._places
        return dict(
            zip(wanted, graph.run(wanted, _inputs(graph, ids[:, shared_ids], numbers[:, numeric])), strict=True)
        )

    def candidate_logits(self, state: Mapping[str, np.ndarray], ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Run the candidate graph on the state of a request and the other columns of whole rows; logits ``(n, K)``."""
        shared_ids, numeric = self._places
        own, own_numeric = (
            np.setdiff1d(np.arange(width), part)
            for width, part in ((ids.shape[1], shared_ids), (numbers.shape[1], numeric))
        )
        return in_pieces(
            self.sessions[CANDIDATES], {"ids": ids[:, own], "numbers": numbers[:, own_numeric]}, dict(state)
        )

    @property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        assert self.request is not None
        spans = [self.layout.columns_of(self.layout.names[n]) for n in self.request["names"]]
        shared_ids = [c for span in spans for c in range(span.start, span.stop)]
        return np.array(shared_ids, np.int64), np.array(self.request["numeric"], np.int64)

    def _scored(self, logits: np.ndarray, unseen: dict[str, int], missing: dict[str, int]) -> Scored:
        check_scores(logits, lambda row: f"row {row}")
        columns = zip(self.calibration, logits.T, strict=True)
        probabilities = np.stack([calibration(column) for calibration, column in columns], 1)
        return Scored(logits, probabilities, unseen, missing)

    def _encode(self, names: frozenset[str], rows: Rows, place: str) -> Arrays:
        encoder, _, _ = self._encoder(names)
        return encode_rows(encoder, rows, place) if isinstance(rows, Sequence) else encoder.arrays(rows)

    def _encoder(self, names: frozenset[str]) -> tuple[Encoder, list[int], list[int]]:
        found = self._encoders.get(names)
        if found is None:
            encoder = self.encoder.part(names)
            part = encoder.layout(self.labels.tasks)
            spans = [self.layout.columns_of(name) for name in part.names]
            places = [c for span in spans for c in range(span.start, span.stop)]
            numeric = [self.layout.numeric.index(name) for name in part.numeric]
            found = (encoder, places, numeric)
            # a client that names other columns each time must not fill the memory
            if len(self._encoders) < 32:
                self._encoders[names] = found
        return found


def read_about(folder: Path) -> dict[str, Any]:
    """Read ``serving.json`` and check the digests of the files beside it.

    Raises :class:`CheckpointError` for a file that is absent, damaged or of another version.
    """
    fix = "export the model again"
    about = load_document(folder / FILE, kind=KIND, fix=fix)
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{folder}: found format {about.get('format')}, this version reads {FORMAT}: {fix}")
    check_beside(folder, about.pop("beside", {}), fix=fix)
    return about


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Write ``serving.json`` with the digests of the other files of the export."""
    graphs = (NETWORK, REQUEST, CANDIDATES)
    names = (*encoder_files, labels_file, *graphs, *map(small_name, graphs))
    beside = {name: sha256((folder / name).read_bytes()) for name in names if (folder / name).is_file()}
    save_document(folder / FILE, {**about, "beside": beside}, kind=KIND)


def _column_names(rows: Rows) -> frozenset[str]:
    """Return every column name that any candidate has."""
    if isinstance(rows, Sequence):
        return frozenset().union(*(row.keys() for row in rows if isinstance(row, Mapping)))
    frame = as_frame(rows, "candidates")
    check_frame(frame, [], "candidates")
    return frozenset(map(str, frame.columns))


def _inputs(graph: Any, ids: np.ndarray, numbers: np.ndarray) -> dict[str, np.ndarray]:
    taken = {put.name for put in graph.get_inputs()}
    given = {"ids": ids.astype(np.int64, copy=False), "numbers": numbers.astype(np.float32, copy=False)}
    return {name: np.ascontiguousarray(value) for name, value in given.items() if name in taken}


def in_pieces(graph: Any, rows: dict[str, np.ndarray], state: dict[str, np.ndarray]) -> np.ndarray:
    """Return the logits of a graph, computed in chunks of ``PIECE`` rows."""
    run: Callable[..., list[np.ndarray]] = graph.run
    inputs = _inputs(graph, **rows)
    count = len(rows["ids"])
    parts = [
        run(["logits"], {**{name: value[start : start + PIECE] for name, value in inputs.items()}, **state})[0]
        for start in range(0, count, PIECE)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
