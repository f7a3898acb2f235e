"""Tables of the methods: Mesa and IA-RED2."""

from __future__ import annotations

from statistics import mean, stdev

from rows import Row, markdown, not_measured, read_if_measured

KINDS = {"full": "float32", "exact": "8 bits, exact ranges", "running": "8 bits, running ranges"}


def mesa() -> str:
    """Training of the forecasting Transformer with and without Mesa, mean and standard deviation over the seeds."""
    rows = read_if_measured("mesa")
    if not rows:
        return not_measured("mesa")
    of = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    ratios = {kind: [_ratio(row, rows) for row in of[kind]] for kind in KINDS}
    header = ("activations", "saved, MB", "peak growth, MB", "train MSE", "validation MSE", "CPU time")
    table = [
        (
            name,
            of[kind][0]["saved_mb"],
            of[kind][0]["peak_growth_mmap_mb"],
            _spread(of[kind], "train_mse"),
            _spread(of[kind], "validation_mse"),
            f"{mean(ratios[kind]):.2f}",
        )
        for kind, name in KINDS.items()
    ]
    return markdown(header, table)


def mesa_published() -> str:
    """Memory and CPU time at the published size."""
    rows = read_if_measured("mesa_published")
    if not rows:
        return not_measured("mesa_published")
    header = ("activations", "saved, MB", "CPU time")
    return markdown(header, [(KINDS[row["kind"]], row["saved_mb"], f"{_ratio(row, rows):.2f}") for row in rows])


def iared2() -> str:
    """Dropping on the synthetic images, a row for each seed."""
    rows = read_if_measured("iared2")
    if not rows:
        return not_measured("iared2")
    header = ("seed", "accuracy before", "after", "kept by block 1, 2, 3", "informative", "overlap", "work", "CPU time")
    return markdown(
        header,
        [
            (
                row["seed"],
                row["accuracy_before"],
                row["accuracy"],
                ", ".join(row[f"kept_{g}"] for g in (1, 2, 3)),
                row["informative"],
                row["overlap"],
                row["work"],
                row["relative_time"],
            )
            for row in rows
        ],
    )


def _ratio(row: Row, rows: list[Row]) -> float:
    """CPU time over that of full training with the same seed."""
    full = next(other for other in rows if other["kind"] == "full" and other["seed"] == row["seed"])
    return float(row["cpu_s"]) / float(full["cpu_s"])


def _spread(rows: list[Row], name: str) -> str:
    values = [float(row[name]) for row in rows]
    return f"{mean(values):.4f} ± {stdev(values):.4f}"


TABLES = (mesa, mesa_published, iared2)
