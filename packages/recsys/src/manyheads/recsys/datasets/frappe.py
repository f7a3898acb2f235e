"""``frappe-x1r``: the split of Frappe that BARS publishes figures on, reconstructed from the files that still exist.

The published validation and test parts exist; the training part does not. Its positives are all logs that are in
neither of the two. The users and contexts of its negatives follow too: each log has two negatives with its user and
context, and those of validation and test are known. Only the *items* of the training negatives had to be sampled again,
by the negative sampling of the published parts: uniform over the apps that the user never used. Figures on it are
figures on frappe-x1r, never on Frappe_x1.

Codes are those of the published files: the order of first appearance in the raw log, without the offset of the column.
"""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pandas as pd

from manyheads.core.errors import DataError
from manyheads.lab.data.registry import read
from manyheads.recsys.datasets.catalogue import FRAPPE, FRAPPE_TEST, FRAPPE_VALIDATION

COLUMNS = ("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")
_CONTEXT = [name for name in COLUMNS if name != "item"]
# negatives per log
_NEGATIVES = 2


def raw_logs() -> pd.DataFrame:
    """Return the 96,203 logs as codes."""
    with zipfile.ZipFile(io.BytesIO(read(FRAPPE))) as archive, archive.open("Mobile_Frappe/frappe/frappe.csv") as csv:
        table = pd.read_csv(csv, sep="\t", keep_default_na=False)
    return pd.DataFrame({name: pd.factorize(table[name])[0] for name in COLUMNS})


def published(part: str, sizes: list[int]) -> pd.DataFrame:
    """Return the published ``validation`` or ``test`` part: ``label`` and codes.

    ``sizes``: number of distinct values per column. Raises :class:`DataError` for a file that does not fit them.
    """
    content = read(FRAPPE_VALIDATION if part == "validation" else FRAPPE_TEST).decode()
    numbers = np.array(content.replace(":1", "").split(), np.int64).reshape(-1, 1 + len(COLUMNS))
    offsets = np.cumsum([0, *sizes[:-1]])
    codes = numbers[:, 1:] - offsets
    if (codes < 0).any() or (codes >= sizes).any():
        raise DataError(f"frappe-{part}: found codes outside the columns of the raw log: fetch both files again")
    return pd.DataFrame({"label": (numbers[:, 0] > 0).astype(np.int64), **dict(zip(COLUMNS, codes.T, strict=True))})


def rebuild(seed: int = 2021) -> dict[str, pd.DataFrame]:
    """Return ``train``, ``validation`` and ``test`` with 202,027, 57,722 and 28,860 rows.

    ``seed`` samples the items of the training negatives and shuffles the training part.
    """
    logs = raw_logs()
    sizes = [int(logs[name].max()) + 1 for name in COLUMNS]
    parts = {part: published(part, sizes) for part in ("validation", "test")}
    held = pd.concat(parts.values())
    positives = multiset_difference(logs, held.loc[held["label"] == 1, list(COLUMNS)])
    twice = pd.concat([logs[_CONTEXT]] * _NEGATIVES)
    contexts = multiset_difference(twice, held.loc[held["label"] == 0, _CONTEXT])
    rng = np.random.default_rng(seed)
    negatives = contexts.assign(item=_draw_items(contexts["user"].to_numpy(), logs, sizes[1], rng))
    train = pd.concat([positives.assign(label=1), negatives.assign(label=0)])[["label", *COLUMNS]]
    return {"train": train.iloc[rng.permutation(len(train))].reset_index(drop=True), **parts}


def multiset_difference(rows: pd.DataFrame, taken: pd.DataFrame) -> pd.DataFrame:
    """Return ``rows`` without the rows of ``taken``, counting copies.

    Raises :class:`DataError` if a row of ``taken`` is not in ``rows``.
    """
    columns = list(rows.columns)
    left = rows.value_counts().sub(taken[columns].value_counts(), fill_value=0).astype(np.int64)
    if (left < 0).any():
        raise DataError(
            f"frappe: {int((left < 0).sum())} published rows are not in the raw log: fetch both files again"
        )
    left = left[left > 0].sort_index()
    return left.index.repeat(left.to_numpy()).to_frame(index=False)


def _draw_items(users: np.ndarray, logs: pd.DataFrame, items: int, rng: np.random.Generator) -> np.ndarray:
    """Negative sampling: an app per row, uniform over the apps that its user never used (rejection sampling)."""
    used = np.zeros((int(logs["user"].max()) + 1, items), bool)
    used[logs["user"], logs["item"]] = True
    drawn = rng.integers(0, items, len(users))
    while (again := used[users, drawn]).any():
        drawn[again] = rng.integers(0, items, int(again.sum()))
    return drawn
