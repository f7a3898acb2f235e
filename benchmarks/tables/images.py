"""Table of the image backbones on digits, beside classifiers of scikit-learn on the same parts."""

from __future__ import annotations

from rows import markdown, not_measured, read_if_measured


def digits() -> str:
    """List accuracy, parameters and CPU time of each nano preset and of the baselines."""
    ours = [row for row in read_if_measured("images_digits") if row["metric"] == "accuracy"]
    if not ours:
        return not_measured("images_digits images_baselines")
    rows = []
    for row in sorted(ours, key=lambda row: -float(row["mean"])):
        seeds = len(row["seeds"].split())
        name = row["experiment"].removeprefix("digits-")
        cells = (f"{float(row['mean']):.2f} ± {float(row['sd']):.2f}", f"{int(row['parameters']):,}")
        rows.append((f"`{name}`", *cells, f"{float(row['cpu_s']) / seeds:.0f}"))
    rows += [
        (f"{row['model']} ({row['setting']})", f"{float(row['accuracy']):.2f}", "", f"{float(row['cpu_s']):.1f}")
        for row in read_if_measured("images_baselines")
    ]
    header = ("digits", "test accuracy, %", "parameters", "CPU s a seed")
    return markdown(header, rows)


TABLES = (digits,)
