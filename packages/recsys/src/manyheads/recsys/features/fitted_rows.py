"""The rows that a model was fitted on, by a hash of each encoded row, so that later tables can be parted from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from pandas.util import hash_pandas_object

from manyheads.lab.data.storage import load_arrays, packed

KIND = "recommender's fitted rows"
FILE = "fitted.safetensors"
MOST = 2_000_000  # of more rows nothing is kept: 8 bytes each


def row_hashes(ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """One int64 a row, the same on every machine; labels do not count."""
    columns = [*np.asarray(ids, np.int64).T, *np.asarray(numbers, np.float64).T]
    found = hash_pandas_object(pd.DataFrame(dict(enumerate(columns))), index=False)  # ty: ignore[not-callable]
    return found.to_numpy().view(np.int64)


def fitted_among(rows: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Which of ``rows`` were fitted, both as hashes: of equal rows as many as were, the first ones."""
    values, counts = np.unique(fitted, return_counts=True)
    copy = pd.Series(rows).groupby(rows).cumcount().to_numpy()
    place = np.minimum(np.searchsorted(values, rows), len(values) - 1)
    return (values[place] == rows) & (copy < counts[place])


def files(fitted: np.ndarray | None) -> dict[str, bytes]:
    """What lies beside a model: name -> content; nothing where the rows are not known."""
    return {} if fitted is None else {FILE: packed({"rows": fitted}, {}, kind=KIND)}


def load(folder: Path) -> np.ndarray | None:
    """None for a model that keeps none. Raises :class:`CheckpointError` for a damaged file."""
    path = folder / FILE
    return load_arrays(path, kind=KIND, fix="fit again")[0]["rows"] if path.is_file() else None
