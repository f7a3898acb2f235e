"""``torchrun … -m manyheads.recsys train-sharded``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tyro.conf import Positional

from manyheads.lab.cli.command import Outcome


def train_sharded(
    experiment: str,
    /,
    overrides: Positional[tuple[str, ...]] = (),
    *,
    seeds: tuple[int, ...] = (),
    root: Path = Path("runs"),
    smoke: bool = False,
    fresh: bool = False,
    row_wise_from: int = 100_000,
) -> Outcome:
    """As train, under torchrun with TorchRec: the embedding tables are cut over the processes.

    Args:
        experiment: its name (see list).
        overrides: changes such as objective.l2=0.1 or budget.epochs=3.
        seeds: seeds; the experiment's own by default.
        root: folder of the runs.
        smoke: a run of seconds.
        fresh: start again what was finished.
        row_wise_from: tables with so many rows or more are cut by rows, smaller ones lie on one process each.
    """
    from manyheads.lab.cli.experiments import overridden, report_text
    from manyheads.lab.training.experiment import find_experiment
    from manyheads.lab.training.run import run
    from manyheads.recsys.distributed.sharded_tables import process_group, torchrec
    from manyheads.recsys.distributed.training import fit_sharded
    from manyheads.recsys.training.experiments import experiments

    torchrec()
    chosen = overridden(find_experiment(experiment, experiments()), overrides)
    chosen = chosen.smoke() if smoke else chosen
    with process_group():
        fit = partial(fit_sharded, row_wise_from=row_wise_from)
        report = run(chosen, root=root, seeds=seeds or None, resume=not fresh, fit=fit)
    return Outcome(asdict(report), report_text(report, root / chosen.name / chosen.hash))


commands: dict[str, Callable[..., Outcome]] = {"train-sharded": train_sharded}
