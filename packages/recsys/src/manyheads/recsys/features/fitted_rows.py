"""Hashes of the encoded rows that a model was fitted on, to leave these rows out of later tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from pandas.util import hash_pandas_object

from manyheads.lab.data.storage import load_arrays, packed

KIND = "recommender's fitted rows"
FILE = "fitted.safetensors"
# with more rows no hashes are kept; each takes 8 bytes
MOST = 2_000_000


def row_hashes(ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return one int64 per row, the same on every machine; labels are not hashed."""
    columns = [*np.asarray(ids, np.int64).T, *np.asarray(numbers, np.float64).T]
    found = hash_pandas_object(pd.DataFrame(dict(enumerate(columns))), index=False)  # ty: ignore[not-callable]
    return found.to_numpy().view(np.int64)


def fitted_among(rows: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Return which of ``rows`` were fitted, both as hashes.

    Of equal rows, as many as were fitted are marked, the first ones.
    """
    values, counts = np.unique(fitted, return_counts=True)
    copy = pd.Series(rows).groupby(rows).cumcount().to_numpy()
    place = np.minimum(np.searchsorted(values, rows), len(values) - 1)
    return (values[place] == rows) & (copy < counts[place])


def files(fitted: np.ndarray | None) -> dict[str, bytes]:
    """Return the file to save beside a model, name -> content; none if the fitted rows are unknown."""
    return {} if fitted is None else {FILE: packed({"rows": fitted}, {}, kind=KIND)}


def load(folder: Path) -> np.ndarray | None:
    """Read the hashes beside a model; None if it has none. Raises :class:`CheckpointError` for a damaged file."""
    path = folder / FILE
    return load_arrays(path, kind=KIND, fix="fit again")[0]["rows"] if path.is_file() else None
