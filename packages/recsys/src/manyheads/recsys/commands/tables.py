"""The commands of ``manyheads recsys`` besides ``list`` and ``train``: for the user's own table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from manyheads.core.errors import ArgumentError
from manyheads.lab.cli.command import Outcome


def models() -> Outcome:
    """The models by name."""
    from manyheads.lab.reporting.tables import table
    from manyheads.recsys.models import MODELS

    document = [{"name": m.name, "title": m.title, "paper": m.paper} for m in MODELS.values()]
    return Outcome(document, table(("model", "what", "paper"), [tuple(row.values()) for row in document]))


def spec(
    file: Path,
    /,
    *,
    label: tuple[str, ...] = (),
    ignore: tuple[str, ...] = (),
    min_count: int = 1,
    hash_above: int | None = None,
    buckets: int = 100_000,
    out: Path = Path("spec.json"),
) -> Outcome:
    """Says what each column of a table would be taken as, and writes it as a file to edit.

    Args:
        file: the table; .csv, .csv.gz, .csv.xz, .tsv or .parquet.
        label: the label's column or columns.
        ignore: columns that are no features.
        min_count: rarer values share the row of the unseen ones.
        hash_above: hash columns with more distinct values than this.
        buckets: into so many rows.
        out: where the spec goes.
    """
    from manyheads.lab.data.files import check_suffix
    from manyheads.lab.reporting.tables import table
    from manyheads.recsys.features.spec import infer_spec
    from manyheads.recsys.features.tables import read_table

    check_suffix("out", out, (".json",))
    if out.exists():
        raise ArgumentError(f"out: {out} is there already, and may have been edited: delete it, or name another --out")
    frame = read_table(file)
    found = infer_spec(frame, label=label, ignore=ignore, min_count=min_count, hash_above=hash_above, buckets=buckets)
    found.save(out)
    from rich.console import Group

    rows = [(f.name, f.kind, f.why) for f in found.fields]
    named = " ".join(label) or "…"
    closing = f"saved: {out}; edit it, then: manyheads recsys fit {file} --label {named} --spec {out}"
    return Outcome({"spec": str(out), **found.to_dict()}, Group(table(("column", "kind", "why"), rows), closing))


def fit(
    file: Path,
    /,
    *,
    label: tuple[str, ...],
    out: Path = Path("recommender"),
    model: str = "hiformer+",
    spec: Path | None = None,
    ignore: tuple[str, ...] = (),
    split: Literal["random", "time"] = "random",
    time: str | None = None,
    group: str | None = None,
    epochs: int | None = None,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
    l2: float = 1e-4,
    choose_by: Literal["log_loss", "auc"] = "log_loss",
    calibration: Literal["none", "platt", "temperature", "isotonic"] = "platt",
    patience: int = 300,
    baselines: bool = True,
    seed: int = 0,
) -> Outcome:
    """Fits a model on nine tenths of a table, measures it on the rest, and saves it.

    Args:
        file: the table; .csv, .csv.gz, .csv.xz, .tsv or .parquet.
        label: the label's column; several are tasks learned together.
        out: the folder that the fitted model goes to.
        model: see 'manyheads recsys models'.
        spec: what the columns are (see 'manyheads recsys spec'); inferred without it.
        ignore: columns that are no features, where there is no spec.
        split: how the tenth to measure on is chosen: drawn, or the newest rows.
        time: the column of the times for 'split time'.
        group: the column of the metrics by group, such as the user.
        epochs: at most so many passes over the rows; without, 30, or as many as give 3,000 steps.
        batch_size: rows a step.
        learning_rate: of Adam.
        l2: weight of the L2 on the embeddings.
        choose_by: what the validation rows judge by, to choose the weights that are kept.
        calibration: how probabilities are calibrated.
        patience: steps without a better validation measure before stopping.
        baselines: measure base rate, popularity, logistic regression and gradient boosting on the same rows.
        seed: decides everything that is drawn.
    """
    from manyheads.lab.reporting.tables import table
    from manyheads.recsys.features.frames import check_frame
    from manyheads.recsys.features.spec import infer_spec
    from manyheads.recsys.features.tables import read_table, split_rows
    from manyheads.recsys.training.baselines import verdict
    from manyheads.recsys.training.recommender import Recommender

    if spec is not None and ignore:
        raise ArgumentError(f"ignore: found {', '.join(ignore)} beside a spec, expected one of them: edit the spec")
    frame = read_table(file)
    check_frame(frame, [*label, *ignore, *([group] if group else [])], str(file))
    train, _, test = split_rows(frame, split=split, time=time, shares=(9, 0, 1), seed=seed)
    chosen: Any = spec if spec is not None else infer_spec(train, label=label, ignore=ignore)
    recommender = Recommender(
        model,
        label=label[0] if len(label) == 1 else label,
        spec=chosen,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        l2=l2,
        choose_by=choose_by,
        calibration=calibration,
        patience=patience,
        baselines=baselines,
        seed=seed,
        verbose=True,
    ).fit(train)
    recommender.save(out)
    from rich.console import Group

    metrics, compared = measured(recommender, test, group), recommender.compare(test)
    document = {
        "model": str(out),
        "rows": {"train": len(train), "test": len(test)},
        "metrics": metrics,
        "compared": compared.astype(object).where(compared.notna(), None).to_dict("records"),
        "calibration": [asdict(c) for c in recommender.calibration_],
        "features": recommender.encoder_.report(),
    }
    rows = [(task, name, f"{value:.4f}") for task, values in metrics.items() for name, value in values.items()]
    closing = f"{len(train):,} rows to fit, {len(test):,} to measure; saved: {out}"
    lines = [
        f"{task}: no AUC, as the measured rows hold one class only" for task in metrics if "auc" not in metrics[task]
    ]
    lines += [line for _, found in compared.groupby("task", sort=False) if (line := verdict(found))]
    lines += [closing, f"next: manyheads recsys predict {out} --data {file}"]
    shown = [table(("label", "metric", "on rows not fitted"), rows)]
    if baselines:
        beside = [(*row[:3], f"{row[4]:.4f}", f"{row[5]:.4f}") for row in compared.itertuples(index=False)]
        shown.append(table(("label", "on the same rows", "chosen", "log-loss", "AUC"), beside))
    return Outcome(document, Group(*shown, *lines))


def predict(
    model: Path,
    /,
    *,
    data: Path,
    out: Path | None = None,
) -> Outcome:
    """Scores the rows of a table by a fitted model, or by one of a run; values never seen are scored and counted.

    Args:
        model: the folder that 'fit' saved, or runs/NAME/HASH/seed-N of 'train'.
        data: the table; it may hold more columns than the model knows.
        out: write the table with a column for each label's probability there; .csv or .parquet.
    """
    from rich.console import Group

    from manyheads.lab.data.files import check_suffix
    from manyheads.lab.reporting.tables import table
    from manyheads.recsys.features.tables import read_table, write_table
    from manyheads.recsys.training.recommender import Recommender

    check_suffix("out", out, (".csv", ".parquet"))
    if out is not None and out.exists() and out.samefile(data):
        raise ArgumentError(f"out: found the data itself ({out}), expected another file")
    recommender = Recommender.load(model)
    frame = read_table(data)
    found = recommender.predict_proba(frame)
    columns = {
        f"p({task}={classes[1]})": proba[:, 1]
        for task, classes, proba in zip(
            recommender.labels_.tasks,
            recommender.labels_.classes,
            found if isinstance(found, list) else [found],
            strict=True,
        )
    }
    clash = sorted(columns.keys() & set(frame.columns))
    if clash:
        raise ArgumentError(f"data: column {clash[0]!r} is there already, expected rows without it: drop it")
    scored = frame.assign(**columns)
    counts = recommender.unseen(frame)
    odd = counts[(counts["unseen"] > 0) | (counts["missing"] > 0)].to_dict("records")
    closing = [f"{r['field']}: {r['unseen']} values never seen, {r['missing']} missing" for r in odd]
    if out is not None:
        write_table(scored, out)
        closing.append(f"written: {out}")
    shown = scored[list(columns)].head(20)
    rows = [(index, *(f"{v:.4f}" for v in row)) for index, row in zip(shown.index, shown.to_numpy(), strict=True)]
    if out is None and len(scored) > len(rows):
        closing.append(f"{len(scored) - len(rows)} more rows: --out scored.csv writes all")
    document = {"rows": len(scored), "counts": odd, "probabilities": {k: v.tolist() for k, v in columns.items()}}
    return Outcome(document, Group(table(("row", *columns), rows), *closing))


def measured(recommender: Any, frame: Any, group: str | None) -> dict[str, dict[str, float]]:
    """The metrics of each label on some rows."""
    import numpy as np

    from manyheads.recsys.training.metrics import all_metrics

    labels = recommender.labels_.encode(frame)
    found = recommender.predict_proba(frame)
    groups = None if group is None else frame[group].array
    metrics = {}
    for index, (task, proba) in enumerate(
        zip(recommender.labels_.tasks, found if isinstance(found, list) else [found], strict=True)
    ):
        known = ~np.isnan(labels[:, index])
        own = None if groups is None else groups[known]
        metrics[task] = all_metrics(labels[known, index], proba[known, 1], own)
    return metrics


commands: dict[str, Callable[..., Outcome]] = {"models": models, "spec": spec, "fit": fit, "predict": predict}
