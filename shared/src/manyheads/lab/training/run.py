"""Run every seed of an experiment and write the report.

A run writes ``runs/<name>/<hash>/``: ``experiment.json``, ``report.json`` and, for each seed, a folder ``seed-<n>``
with ``metrics.jsonl``, ``model.safetensors``, ``result.json`` and ``checkpoints/``. The hash is that of the
description, so that a changed experiment never resumes an old run. A finished seed is read from disk.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from manyheads.core.errors import ArgumentError, CheckpointError, DataError, ManyheadsWarning
from manyheads.lab.data.fields import plain
from manyheads.lab.data.files import remove_parts, write_atomically
from manyheads.lab.data.storage import load_document, save_document
from manyheads.lab.training.environment import command_line, environment, first_process
from manyheads.lab.training.experiment import Experiment
from manyheads.lab.training.report import REPORT, RESULT, Report, SeedResult

Fit = Callable[..., SeedResult]


def run(
    experiment: Experiment,
    *,
    root: str | Path = "runs",
    seeds: Sequence[int] | None = None,
    resume: bool = True,
    progress: bool = True,
    tensorboard: bool = False,
    fit: Fit | None = None,
) -> Report:
    """Train every seed and write the report; interrupted seeds are resumed.

    Args:
        experiment: the description.
        root: folder of all runs.
        seeds: random seeds; those of the experiment by default.
        resume: False starts again in the same folder.
        progress: show progress on standard error.
        tensorboard: write TensorBoard events.
        fit: trainer of one seed, ``fit(experiment, seed, folder, *, resume, progress, tensorboard) -> SeedResult``; the
            supervised loop by default. Reinforcement learning and other engines pass their own.

    Raises:
        ArgumentError: no seed, or a seed twice.
        DataError: files of the data changed between two seeds.
    """
    if fit is None:
        from manyheads.lab.training.loop import fit_supervised as fit
    chosen = tuple(experiment.seeds if seeds is None else seeds)
    if not chosen or len(set(chosen)) != len(chosen):
        raise ArgumentError(f"seeds: found {list(chosen)}, expected at least one, each once")
    digest = experiment.hash
    folder = Path(root) / experiment.name / digest
    if first_process():
        write_json(folder / "experiment.json", experiment.description())
    results = {}
    for seed in chosen:
        if experiment.hash != digest:
            raise DataError(f"{experiment.name}: the files of the data changed before seed {seed}: run it again")
        results[seed] = _run_seed(experiment, seed, folder / f"seed-{seed}", resume, progress, tensorboard, fit)
    names = list(next(iter(results.values())).metrics)
    columns = {name: [result.metrics[name] for result in results.values()] for name in names}
    report = Report(
        experiment.name,
        digest,
        command_line(),
        chosen,
        {str(seed): dict(result.metrics) for seed, result in results.items()},
        {name: statistics.fmean(column) for name, column in columns.items()},
        {name: statistics.stdev(column) if len(column) > 1 else None for name, column in columns.items()},
        next(iter(results.values())).parameters,
        sum(result.cpu_seconds for result in results.values()),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        environment(),
        None if experiment.source is None else asdict(experiment.source),
    )
    if first_process():
        save_document(folder / "report.json", plain(asdict(report)), kind=REPORT)
    return report


def _run_seed(
    experiment: Experiment, seed: int, folder: Path, resume: bool, progress: bool, tensorboard: bool, fit: Fit
) -> SeedResult:
    done = folder / "result.json"
    if resume and done.exists():
        try:
            finished = SeedResult(**load_document(done, kind=RESULT, fix="computed again from what is whole"))
            if progress and first_process():
                print(f"{experiment.name}, seed {folder.name[5:]}: finished before, read from {done}", file=sys.stderr)
            return finished
        except (CheckpointError, TypeError) as error:
            warnings.warn(str(error), ManyheadsWarning, stacklevel=2)
    if first_process():
        done.unlink(missing_ok=True)
        remove_parts(folder)
    result = fit(experiment, seed, folder, resume=resume, progress=progress, tensorboard=tensorboard)
    if first_process():
        save_document(done, plain(asdict(result)), kind=RESULT)
    return result


def newest(root: Path, name: str) -> Path | None:
    """Return the newest file of that name in the seeds below ``root``; one of a smoke test if there is no other."""
    found = root.glob(f"*/*/seed-*/{name}")
    return max(found, key=lambda path: (not path.parts[-4].endswith("-smoke"), path.stat().st_mtime), default=None)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomically(path, json.dumps(plain(value), indent=2, allow_nan=False).encode() + b"\n")
