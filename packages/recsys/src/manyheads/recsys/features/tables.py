"""Read and write tables; split their rows into train, validation and test."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from manyheads.core.errors import ArgumentError, DataError
from manyheads.lab.data.files import write_atomically
from manyheads.lab.data.registry import read_unpacked
from manyheads.lab.install import missing
from manyheads.recsys.features.columns import as_family, epoch_unit, family_of
from manyheads.recsys.features.frames import check_frame, first_row, from_arrow, plain_types

SUFFIXES = (".csv", ".csv.gz", ".csv.xz", ".tsv", ".parquet")
Split = Literal["random", "time"]


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a ``.csv`` (also ``.gz``, ``.xz``), ``.tsv`` or ``.parquet`` file.

    Raises :class:`DataError` for a missing, empty or unreadable file, :class:`MissingPackageError` for parquet without
    pyarrow.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path}: found {path.suffix or 'no suffix'}, expected one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return from_arrow(pyarrow.parquet.read_table(path))
        separator = "\t" if path.suffix == ".tsv" else ","
        raw = read_unpacked(path)
        names = pd.read_csv(io.BytesIO(raw), sep=separator, header=None, nrows=1, dtype=str).iloc[0].tolist()
        twice = [name for name in names if names.count(name) > 1 and isinstance(name, str)]
        # pandas would rename the second one silently
        if twice:
            raise DataError(f"{path}: column {twice[0]!r} is there twice, expected once: rename or drop one of them")
        # nullable types keep whole numbers exact in columns with gaps
        return plain_types(
            pd.read_csv(io.BytesIO(raw), sep=separator, low_memory=False, dtype_backend="numpy_nullable")
        )
    except ImportError as error:
        raise missing("pyarrow", "manyheads-recsys", "parquet", place=str(path)) from error
    except DataError:
        raise
    # includes the errors of parser, encoding and arrow
    except (ValueError, OSError) as error:
        said = " ".join(str(error).split())[:160]
        raise DataError(f"{path}: cannot be read as a table ({said}): check the file") from error


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a .parquet or .csv file, atomically."""
    if path.suffix == ".parquet":
        content = io.BytesIO()
        frame.to_parquet(content)
        write_atomically(path, content.getvalue())
    else:
        write_atomically(path, frame.to_csv(index=False).encode())


def split_rows(
    frame: pd.DataFrame,
    *,
    split: Split = "random",
    time: str | None = None,
    shares: tuple[int, int, int] = (8, 1, 1),
    seed: int = 2021,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Split into train, validation and test rows by ``shares``: at random, or by ``time``, the newest rows last.

    Rows keep their index, so that error messages name the rows of the original table.

    Raises:
        ArgumentError: a split by time without a time column, or a negative seed.
        DataError: too few rows, or a row without a time.
    """
    if seed < 0:
        raise ArgumentError(f"seed: found {seed}, expected 0 or more")
    if split == "random":
        order = np.random.default_rng(seed).permutation(len(frame))
    elif time is None:
        raise ArgumentError("split: found time without a time column, expected its name (--time)")
    else:
        check_frame(frame, [time], "table")
        numeric = family_of(frame[time]) in ("integer", "number")
        unit = (epoch_unit(frame[time]) if numeric else None) or "s"
        stamps, missing, _ = as_family(frame[time], "time", unit=unit)
        if missing.any():
            raise DataError(
                f"column {time!r}, row {first_row(frame.index, missing)}: found no time, expected one in every row"
            )
        order = np.argsort(stamps, kind="stable")
    first = len(frame) * shares[0] // sum(shares)
    second = len(frame) * (shares[0] + shares[1]) // sum(shares)
    sizes = (first, second - first, len(frame) - second)
    if any(size == 0 and share > 0 for size, share in zip(sizes, shares, strict=True)):
        raise DataError(f"table: found {len(frame)} rows, too few for a split of {':'.join(map(str, shares))}")
    parts = (order[:first], order[first:second], order[second:])
    train, validation, test = (frame.iloc[part] for part in parts)
    return train, validation, test
