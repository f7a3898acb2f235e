"""``torchrun … -m manyheads.recsys train-sharded``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tyro.conf import Positional

from manyheads.lab.command import Outcome


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
    from manyheads.lab.experiment import find_experiment, run
    from manyheads.lab.experiment_commands import overridden, report_text
    from manyheads.recsys.experiments import experiments
    from manyheads.recsys.sharded import process_group, torchrec
    from manyheads.recsys.sharded_train import fit_sharded

    torchrec()
    chosen = overridden(find_experiment(experiment, experiments()), overrides)
    chosen = chosen.smoke() if smoke else chosen
    with process_group():
        fit = partial(fit_sharded, row_wise_from=row_wise_from)
        report = run(chosen, root=root, seeds=seeds or None, resume=not fresh, fit=fit)
    return Outcome(asdict(report), report_text(report, root / chosen.name / chosen.hash))


commands: dict[str, Callable[..., Outcome]] = {"train-sharded": train_sharded}
