"""``manyheads recsys models``, ``spec``, ``fit`` and ``predict``: commands for a table of one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from manyheads.core.errors import ArgumentError
from manyheads.lab.cli.command import Outcome


def models() -> Outcome:
    """List the models with their papers."""
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
    """Infer the feature type of each column of a table; write the feature spec as a file to edit.

    Args:
        file: the table: .csv, .csv.gz, .csv.xz, .tsv or .parquet.
        label: one or more label columns; they are no features.
        ignore: columns that are not used as features.
        min_count: values that occur less often are out of vocabulary and share one embedding.
        hash_above: hash the values of columns with more distinct values than this, instead of a vocabulary.
        buckets: number of hash buckets of such a column.
        out: the file to write, .json.
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
    """Fit a model on 90% of a table, measure it on the other 10%, compare it with baselines and save it.

    Args:
        file: the table: .csv, .csv.gz, .csv.xz, .tsv or .parquet.
        label: the label column with two values; several columns are tasks of one model (multi-task learning).
        out: the folder to save the fitted model in.
        model: name of the model, see 'manyheads recsys models'.
        spec: the feature spec that 'manyheads recsys spec' wrote; inferred if not given.
        ignore: columns that are not used as features; only without --spec.
        split: the 10% to measure on: random rows, or the newest by --time.
        time: the time column for '--split time'.
        group: column for GAUC and NDCG, such as the user.
        epochs: maximum number of epochs; by default 30, or as many as give 3,000 steps.
        batch_size: rows per step.
        learning_rate: learning rate of Adam.
        l2: strength of the L2 regularisation of the embeddings.
        choose_by: validation metric for early stopping and for the weights that are kept.
        calibration: how scores become probabilities.
        patience: early stopping after this many steps without a better validation metric.
        baselines: also measure base rate, popularity, logistic regression and gradient boosting on the same rows.
        seed: seed of split, initial weights, row order and dropout.
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
    """Score the rows of a table; count out-of-vocabulary and missing values.

    Args:
        model: the folder that 'fit' saved, or runs/NAME/HASH/seed-N of 'train'.
        data: the table; columns that are no features are ignored.
        out: file for the table with one more column per label, its probability: .csv or .parquet.
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
    """Return the metrics of each label on the rows of ``frame``, GAUC and NDCG with the column ``group``."""
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
