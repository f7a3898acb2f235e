"""``manyheads <domain> list`` and ``manyheads <domain> train``, the same for every domain with experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from manyheads.core.errors import ArgumentError
from manyheads.lab.cli.command import Commands, Outcome, parse
from manyheads.lab.domain import Domain
from manyheads.lab.training.experiment import Experiment, find_experiment
from manyheads.lab.training.options import TrainOptions
from manyheads.lab.training.report import Report
from manyheads.lab.training.run import run

_PARTS = ("data", "model", "objective", "optimiser", "budget")


def experiment_commands(domain: Domain) -> Commands:
    """The two commands bound to a domain; its own options stand beside the common ones."""
    from rich.console import Group

    own_options = domain.load_train_options()

    def list_experiments() -> Outcome:
        """The experiments, each with its source and the published figures."""
        from manyheads.lab.reporting.tables import table

        document, rows = [], []
        for e in domain.load_experiments():
            source = None if e.source is None else asdict(e.source)
            document.append({"name": e.name, "hash": e.hash, "seeds": list(e.seeds), "source": source})
            reported = ", ".join(f"{k} {v:g}" for k, v in e.source.reported.items()) if e.source else ""
            rows.append((e.name, f"{e.source.paper}, {e.source.table}" if e.source else "", reported))
        return Outcome(document, table(("experiment", "source", "published"), rows))

    def train(
        experiment: str,
        /,
        overrides: Positional[tuple[str, ...]] = (),
        *,
        seeds: tuple[int, ...] = (),
        root: Path = Path("runs"),
        smoke: bool = False,
        fresh: bool = False,
        tensorboard: bool = False,
        own: TrainOptions = own_options(),  # noqa: B008 - frozen
    ) -> Outcome:
        """Trains an experiment and reports mean and sd over seeds; a broken run is resumed.

        Args:
            experiment: its name (see list).
            overrides: changes such as budget.epochs=3 or optimiser.learning_rate=0.01.
            seeds: seeds; the experiment's own by default.
            root: folder of the runs.
            smoke: a run of seconds.
            fresh: start again instead of resuming.
            tensorboard: write TensorBoard events.
            own: what this domain adds.
        """
        chosen = overridden(find_experiment(experiment, domain.load_experiments()), overrides)
        chosen = chosen.smoke() if smoke else chosen
        with own.trainer() as fit:
            report = run(chosen, root=root, seeds=seeds or None, resume=not fresh, tensorboard=tensorboard, fit=fit)
        folder = root / chosen.name / chosen.hash
        more, lines = own.finish(report, folder)
        return Outcome({**asdict(report), **more}, Group(report_text(report, folder), *lines))

    train.__annotations__["own"] = own_options
    list_experiments.__name__ = "list"
    return {"list": list_experiments, "train": train}


def overrides_first(arguments: Sequence[str]) -> list[str]:
    """``--model.kernel-size 25``, ``--model.kernel-size=25`` and ``model.kernel_size=25`` all as the last of these, set
    before the first option, so that no option with many values swallows them; ``--model.bias`` and ``--model.no-bias``
    as ``True`` and ``False``."""
    overrides, others = [], []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        part, dot, name = name.replace("-", "_").partition(".")
        if part not in _PARTS or not dot or not (equals or argument.startswith("--")):
            others.append(argument)
            continue
        if not equals and name.startswith("no_"):
            name, value = name.removeprefix("no_"), "False"
        elif not equals:
            value = "True" if not rest or rest[0].startswith("--") else rest.pop(0)
        overrides.append(f"{part}.{name}={value}")
    at = next((i for i, argument in enumerate(others) if argument.startswith("-")), len(others))
    return [*others[:at], *overrides, *others[at:]]


def overridden(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """``part.field=value`` applied; the value is parsed as the type of the field.

    The source is dropped, as its figures are of another model. Raises :class:`ArgumentError`.
    """
    for override in overrides:
        path, equals, value = override.removeprefix("--").partition("=")
        part, dot, name = path.partition(".")
        if not equals or not dot or part not in _PARTS:
            raise ArgumentError(
                f"override {override!r}: expected part.field=value with part one of {', '.join(_PARTS)}"
            )
        config: Any = getattr(experiment, part)
        dashed, words = name.replace("_", "-"), value.split(",") if value else []
        arguments = [f"--{dashed}", *words]
        if isinstance(getattr(config, name, None), bool):
            if value.lower() not in ("true", "false"):
                raise ArgumentError(f"override {override!r}: found {value!r}, expected True or False")
            arguments = [f"--{dashed}" if value.lower() == "true" else f"--no-{dashed}"]
        try:
            parsed = parse(type(config), arguments, prog="manyheads <domain> train", default=config)
        except ArgumentError as error:
            said = str(error).partition(": manyheads <domain>")[0]
            raise ArgumentError(f"override {override!r}: {type(config).__name__} does not take it: {said}") from error
        changes: dict[str, Any] = {part: parsed}
        experiment = replace(experiment, source=None, **changes)
    return experiment


def report_text(report: Report, folder: Path) -> Any:
    """Mean ± sd beside what was published."""
    from rich.console import Group

    from manyheads.lab.reporting.tables import table

    published = (report.source or {}).get("reported", {})
    rows = []
    for name, mean in report.mean.items():
        sd = report.sd[name]
        ours = f"{mean:.4f}" + ("" if sd is None else f" ± {sd:.4f}")
        rows.append((name, ours, len(report.seeds), f"{published[name]:g}" if name in published else ""))
    source = f"{report.source['paper']}, {report.source['table']}" if report.source else ""
    closing = f"{report.parameters:,} parameters, {report.cpu_seconds:.1f} CPU s; {folder}"
    return Group(
        table(("metric", "mean ± sd", "seeds", f"published ({source})" if source else "published"), rows), closing
    )
