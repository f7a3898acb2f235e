"""Compare three forms of 8-bit weights by accuracy and time: ``python benchmarks/int8.py SPOTTER …``.

- signed: -128 to 127; on AVX2 without VNNI, ONNX Runtime adds two products in 16 bits, and the sum saturates;
- 7 bits: signed, -64 to 64, so that the sum of two products always fits;
- unsigned: 0 to 255, which the kernels of ONNX Runtime widen before they add.

On a processor with VNNI the first form does not saturate.

Keyword spotters are evaluated on the validation and test clips of their set; the error is that of the mean logits,
relative to float32. Recommenders are trained here on four fifths of Adult; error and AUC are those of the other rows.
The published LMUFormer, with random weights, is measured for time only. One thread, CPU time; all networks take turns
and the shortest time counts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from onnxruntime import quantization
from run import machine

from manyheads.kws import KeywordSpotter
from manyheads.kws.audio.clips import clips_of
from manyheads.kws.evaluation.clip_accuracy import ClipResults
from manyheads.kws.export.comparison import evaluate_step
from manyheads.kws.export.formats import StepRunner, export_step, narrow
from manyheads.kws.models import published
from manyheads.lab.data.files import write_csv
from manyheads.lab.data.onnx_files import int8_products
from manyheads.recsys.datasets.splits import adult_table
from manyheads.recsys.serving.export import export
from manyheads.recsys.serving.ranker import NETWORK, Ranker, small_name
from manyheads.recsys.serving.timing import take_turns
from manyheads.recsys.training.metrics import auc
from manyheads.recsys.training.recommender import Recommender

RESULT = Path(__file__).parent / "results" / "int8.csv"
FORMS: dict[str, dict[str, Any]] = {
    "signed": {"weight_type": quantization.QuantType.QInt8},
    "7 bits": {"weight_type": quantization.QuantType.QInt8, "reduce_range": True},
    "unsigned": {"weight_type": quantization.QuantType.QUInt8},
}
COLUMNS = ("model", "form", "largest_pair", "error", "accuracy", "clips", "other_words", "auc", "rows")
MODELS = ("dnn", "dcnv2", "hiformer+")
Timed = dict[tuple[str, str, int], Callable[[], Any]]


def written(content: bytes, form: str, **options: Any) -> bytes:
    """Quantise as the package does, but with another form of weights."""
    plain = quantization.quantize_dynamic

    def changed(*paths: str, **settings: Any) -> None:
        plain(*paths, **{**settings, **FORMS[form]})

    with mock.patch.object(quantization, "quantize_dynamic", changed):
        return int8_products(content, **options)


def largest_pair(content: bytes) -> int | str:
    """Return the largest absolute sum of two products with signed weights and inputs of 255; 16 bits hold 32,767.

    Unsigned weights are widened before they are added: ``"widened"``.
    """
    graph = onnx.load_from_string(content).graph
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    used = [weights[n.input[1]] for n in graph.node if n.op_type == "MatMulInteger" and n.input[1] in weights]
    if any(one.dtype == np.uint8 for one in used):
        return "widened"
    return max(int(np.sort(255 * np.abs(w.astype(np.int64)), axis=-2)[..., -2:, :].sum(-2).max()) for w in used)


def mean_logits(found: ClipResults) -> np.ndarray:
    """Return the mean logits of each clip."""
    return np.stack([logits.mean(0) for logits in found.logits])


def relative(plain: np.ndarray, other: np.ndarray) -> float:
    """Return the norm of the difference relative to the norm of ``plain``."""
    return float(np.linalg.norm(plain - other) / np.linalg.norm(plain))


def spotter_rows(path: Path, folder: Path, timed: Timed) -> list[dict[str, Any]]:
    """Return the accuracy of each form on clips outside the train part; add its steps to ``timed``."""
    spotter = KeywordSpotter.load(path)
    name = str(spotter.trained["experiment"])
    clips = [clip for clip in clips_of(str(spotter.trained["set"])) if clip.split != "train"]
    step = export_step(spotter.network, folder / f"{name}.onnx")
    plain = evaluate_step(spotter, step, clips)
    rows: list[dict[str, Any]] = [{"form": "float32", "accuracy": f"{plain.accuracy:.4f}", "clips": len(clips)}]
    paths = {"float32": step}
    for form in FORMS:
        paths[form] = folder / f"{name}.{form}.onnx"
        paths[form].write_bytes(written(step.read_bytes(), form, leave=narrow))
        found = evaluate_step(spotter, paths[form], clips)
        rows.append(
            {
                "form": form,
                "largest_pair": largest_pair(paths[form].read_bytes()),
                "error": f"{relative(mean_logits(plain), mean_logits(found)):.5f}",
                "accuracy": f"{found.accuracy:.4f}",
                "clips": len(clips),
                "other_words": int((found.predicted != plain.predicted).sum()),
            }
        )
    time_steps(name, paths, timed)
    return [{"model": name, **row} for row in rows]


def time_steps(name: str, paths: Mapping[str, Path], timed: Timed) -> None:
    """Add steps of one stream and of 64 streams to ``timed``, ten at a time, as the clock is coarse."""
    for form, path in paths.items():
        for count in (1, 64):
            runner = StepRunner(path, streams=count)
            frames = np.random.default_rng(0).standard_normal((count, runner.stride, runner.bins)).astype(np.float32)

            def steps(runner: StepRunner = runner, frames: np.ndarray = frames) -> None:
                for _ in range(10):
                    runner(frames)

            timed[name, form, count] = steps


def published_rows(folder: Path, timed: Timed) -> list[dict[str, Any]]:
    """Return the rows of the published size, which is measured for its time."""
    torch.manual_seed(0)
    network = published(spiking=False, lookahead=0).make(128, tuple(f"word{n}" for n in range(35)))
    network.calibrate(torch.randn(4, 128, 128))
    name, paths = "published lmuformer", {"float32": export_step(network.eval(), folder / "published.onnx")}
    for form in FORMS:
        paths[form] = folder / f"published.{form}.onnx"
        paths[form].write_bytes(written(paths["float32"].read_bytes(), form, leave=narrow))
    time_steps(name, paths, timed)
    pairs = {form: largest_pair(path.read_bytes()) for form, path in paths.items() if form != "float32"}
    return [{"model": name, "form": form, "largest_pair": pairs.get(form, "")} for form in paths]


def recommender_rows(kind: str, folder: Path, timed: Timed) -> list[dict[str, Any]]:
    """Return the AUC of each form on rows outside the train part; add its products to ``timed``."""
    people = adult_table()
    held = np.random.default_rng(0).random(len(people)) < 0.2
    model = Recommender(kind, label="income", ignore=("fnlwgt",), epochs=3, seed=1).fit(people[~held])
    test = people[held].reset_index(drop=True)
    export(model, folder)
    content, rows = (folder / NETWORK).read_bytes(), []
    truth = model.labels_.encode(test)[:, 0]
    plain: np.ndarray | None = None
    for form in ("float32", *FORMS):
        row: dict[str, Any] = {"model": f"adult {kind}", "form": form}
        if form != "float32":
            made = written(content, form)
            (folder / small_name(NETWORK)).write_bytes(made)
            row["largest_pair"] = largest_pair(made)
        ranker = Ranker(folder, int8=form != "float32")
        encoded = ranker.encoder.arrays(test)
        logits = ranker.logits(encoded.ids.astype(np.int64), encoded.numbers)[:, 0]
        plain = logits if plain is None else plain
        row |= {"auc": f"{auc(truth, logits):.5f}", "rows": len(test)}
        if form != "float32":
            row["error"] = f"{relative(plain, logits):.5f}"
        for count in (1, 100):
            ids, numbers = encoded.ids[:count].astype(np.int64), encoded.numbers[:count]
            timed[f"adult {kind}", form, count] = partial(ranker.logits, ids, numbers)
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("spotters", type=Path, nargs="+", help="files of trained keyword spotters")
    parser.add_argument("--turns", type=int, default=100, help="repetitions")
    parser.add_argument("--csv", type=Path, default=RESULT, help="file for the rows")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    timed: Timed = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in chosen.spotters:
            rows += spotter_rows(path, Path(folder), timed)
        rows += published_rows(Path(folder), timed)
        for kind in MODELS:
            place = Path(folder) / kind
            place.mkdir()
            rows += recommender_rows(kind, place, timed)
        times = take_turns(timed, chosen.turns)
    least = {key: 1e6 * float(cpu.min()) / (1 if key[0].startswith("adult") else 10) for key, (_, cpu) in times.items()}
    spotters = " ".join(map(str, chosen.spotters))
    command = f"python benchmarks/int8.py {spotters} --csv benchmarks/results/{chosen.csv.name}"
    empty = dict.fromkeys(COLUMNS, "")
    rows = [{**empty, **row} for row in rows]
    for row in rows:
        mine = {
            count: time for (model, form, count), time in least.items() if (model, form) == (row["model"], row["form"])
        }
        one, many = sorted(mine)
        row |= {"at_once": many, "us_1": f"{mine[one]:.1f}", "us_many": f"{mine[many]:.1f}"}
        row |= {"machine": machine(), "command": command}
        row["versions"] = " ".join(f"{name}={version(name)}" for name in ("torch", "onnxruntime", "numpy"))
    write_csv(chosen.csv, rows)


if __name__ == "__main__":
    main()
