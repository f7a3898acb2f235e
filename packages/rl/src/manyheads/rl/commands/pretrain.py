"""``manyheads rl pretrain``."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from manyheads.core.errors import UnknownNameError
from manyheads.lab.cli.command import Outcome


def pretrain(
    experiment: str,
    /,
    overrides: Positional[tuple[str, ...]] = (),
    *,
    recording: Path | None = None,
    seeds: tuple[int, ...] = (),
    root: Path = Path("runs"),
    smoke: bool = False,
    fresh: bool = False,
) -> Outcome:
    """Pretrain an encoder on recorded play; the same as train, for the experiments of pretraining.

    Args:
        experiment: name of the experiment, such as tov-vicreg-small.
        overrides: changed settings, such as budget.epochs=3 or data.game=breakout.
        recording: file of manyheads rl collect; by default random play is collected once.
        seeds: random seeds, one training each; those of the experiment by default.
        root: folder for the runs.
        smoke: train for twenty steps with one seed, to test the setup in seconds.
        fresh: start again instead of resuming.
    """
    from dataclasses import asdict

    from rich.console import Group

    from manyheads.lab.cli.experiments import overridden, report_text
    from manyheads.lab.training.experiment import find_experiment
    from manyheads.lab.training.run import run
    from manyheads.rl.encoders.frames import FILE
    from manyheads.rl.pretraining.experiments import experiments
    from manyheads.rl.pretraining.recording import Recording

    known = experiments()
    if experiment not in {one.name for one in known}:
        raise UnknownNameError("experiment of pretraining", experiment, [one.name for one in known])
    changes = list(overrides)
    if recording is not None:
        facts = Recording.load(recording).facts
        changes += [f"data.path={recording}", f"data.game={facts['game']}", f"data.size={facts['size']}"]
    chosen = overridden(find_experiment(experiment, known), changes)
    chosen = chosen.smoke() if smoke else chosen
    report = run(chosen, root=root, seeds=seeds or None, resume=not fresh)
    folder = root / chosen.name / chosen.hash
    files = [str(folder / f"seed-{seed}" / FILE) for seed in report.seeds]
    return Outcome({**asdict(report), "encoders": files}, Group(report_text(report, folder), *files))
