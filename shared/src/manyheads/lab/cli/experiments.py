"""The commands ``list`` and ``train`` of every domain with experiments."""

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
    """Return the commands ``list`` and ``train`` of a domain; ``train`` has the domain's own options as well."""
    from rich.console import Group

    own_options = domain.load_train_options()

    def list_experiments() -> Outcome:
        """List the experiments, each with its source and the published figures."""
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
        """Train an experiment and report mean and standard deviation over seeds; resume an interrupted run.

        Args:
            experiment: name of the experiment (the command list shows all).
            overrides: changed settings, such as budget.epochs=3 or optimiser.learning_rate=0.01.
            seeds: random seeds, one training each; those of the experiment by default.
            root: folder for the runs.
            smoke: train for twenty steps with one seed, to test the setup in seconds.
            fresh: start again instead of resuming.
            tensorboard: write TensorBoard events to the run folder.
            own: options of this domain.
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
    """Rewrite every override as ``model.kernel_size=25`` and move it before the first option.

    Accepted forms: ``--model.kernel-size 25``, ``--model.kernel-size=25``, ``model.kernel_size=25``; ``--model.bias``
    for ``True`` and ``--model.no-bias`` for ``False``. In front, no option with many values can swallow them.
    """
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
    """Apply overrides ``part.field=value``; each value is parsed as the type of the field.

    The source is dropped, as its published figures belong to another model. Raises :class:`ArgumentError` for an
    unknown field and for a value of another type.
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
            reason = str(error).partition(": manyheads <domain>")[0]
            raise ArgumentError(f"override {override!r}: {type(config).__name__} does not take it: {reason}") from error
        changes: dict[str, Any] = {part: parsed}
        experiment = replace(experiment, source=None, **changes)
    return experiment


def report_text(report: Report, folder: Path) -> Any:
    """Return a table of mean ± sd beside the published figures, and a line with cost and folder."""
    from rich.console import Group

    from manyheads.lab.reporting.tables import table

    published = (report.source or {}).get("reported", {})
    rows = []
    for name, mean in report.mean.items():
        sd = report.sd[name]
        # counts have no decimals
        count = all(float(metrics[name]).is_integer() for metrics in report.metrics.values()) and not sd
        ours = f"{mean:,.0f}" if count else f"{mean:.4f}" + ("" if sd is None else f" ± {sd:.4f}")
        rows.append((name, ours, len(report.seeds), f"{published[name]:g}" if name in published else ""))
    source = f"{report.source['paper']}, {report.source['table']}" if report.source else ""
    closing = f"{report.parameters:,} parameters, {report.cpu_seconds:.1f} CPU s; {folder}"
    return Group(
        table(("metric", "mean ± sd", "seeds", f"published ({source})" if source else "published"), rows), closing
    )
