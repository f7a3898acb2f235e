"""Data of an experiment: a named data set or any table, split, and encoded by an encoder of its training rows."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from manyheads.core.errors import DataError
from manyheads.lab.data.files import digest_of
from manyheads.lab.data.registry import read
from manyheads.lab.training.experiment import Splits
from manyheads.recsys.datasets.catalogue import ADULT, MOVIELENS
from manyheads.recsys.datasets.frappe import COLUMNS, rebuild
from manyheads.recsys.features.columns import family_of
from manyheads.recsys.features.encoder import Encoder
from manyheads.recsys.features.frames import check_frame
from manyheads.recsys.features.labels import Labels
from manyheads.recsys.features.layout import Rows
from manyheads.recsys.features.spec import FeatureSpec, Field, infer_spec
from manyheads.recsys.features.tables import Split, read_table, split_rows


@dataclass(frozen=True)
class Opened:
    """Splits, with encoder and labels to encode new rows."""

    splits: Splits
    encoder: Encoder
    labels: Labels


def prepare(
    parts: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame],
    spec: FeatureSpec,
    tasks: tuple[str, ...],
    group: str | None = None,
) -> Opened:
    """Fit an encoder on the first part and encode all three. ``group``: the column of groups for GAUC and NDCG."""
    encoder, labels = Encoder.fit(parts[0], spec), Labels.of(parts[0], tasks)
    train, validation, test = (encode(part, encoder, labels, group) for part in parts)
    return Opened(Splits(train, validation, test, facts(encoder, labels)), encoder, labels)


def facts(encoder: Encoder, labels: Labels) -> dict[str, Any]:
    """Return the layout that a model is built for, and the files to save beside its weights, name -> content."""
    return {"layout": encoder.layout(labels.tasks), "files": {**encoder.files(), **labels.files()}}


def encode(frame: pd.DataFrame, encoder: Encoder, labels: Labels, group: str | None = None) -> Rows:
    """Encode labelled rows as tensors."""
    encoded = encoder.transform(frame)
    groups = None if group is None else _groups(frame, group)
    return Rows(encoded.ids, encoded.numbers, torch.from_numpy(labels.encode(frame)), groups)


def _groups(frame: pd.DataFrame, name: str) -> torch.Tensor:
    """Return a number per group, NaN for a row without a group."""
    check_frame(frame, [name], "table")
    codes = pd.factorize(frame[name])[0]
    return torch.from_numpy(np.where(codes < 0, np.nan, codes))


@dataclass(frozen=True)
class Frappe:
    """The data set ``frappe-x1r``, see :mod:`manyheads.recsys.datasets.frappe`."""

    seed: int = 2021
    """Seed of the items of the training negatives."""

    def open(self) -> Splits:
        return _frappe(self.seed).splits


@dataclass(frozen=True)
class MovieLens:
    """MovieLens-100K as clicks: a rating of 4 or 5 is positive.

    Twelve fields: user, item, age in steps of five years, gender, occupation, first two digits of the zip code, year,
    the first three genres, hour and weekday.
    """

    split: Split = "time"
    """time trains on the oldest ratings and tests on the newest; random leaks the future."""
    seed: int = 2021

    def open(self) -> Splits:
        return _movielens(self.split, self.seed).splits


@dataclass(frozen=True)
class Adult:
    """Adult census: income above 50,000 dollars a year."""

    seed: int = 2021

    def open(self) -> Splits:
        return _adult(self.seed).splits


@dataclass(frozen=True)
class Table:
    """Any table file: CSV, TSV or parquet."""

    path: str
    label: tuple[str, ...]
    spec: str | None = None
    """Path of a feature spec (see 'manyheads recsys spec'); inferred from the training rows if None."""
    split: Split = "random"
    time: str | None = None
    """The time column for a split by time."""
    group: str | None = None
    """The column of groups for GAUC and NDCG, such as the user."""
    seed: int = 2021

    def content(self) -> str | None:
        """Return the digest of the table and its spec; None if there is none."""
        return digest_of(self.path, self.spec)

    def open(self) -> Splits:
        parts = split_rows(read_table(self.path), split=self.split, time=self.time, seed=self.seed)
        spec = infer_spec(parts[0], label=self.label) if self.spec is None else FeatureSpec.load(self.spec)
        return prepare(parts, spec, self.label, self.group).splits


def adult_table() -> pd.DataFrame:
    """Return Adult, which comes with the package, as a table."""
    return pd.read_csv(io.BytesIO(read(ADULT)))


def movielens_table() -> pd.DataFrame:
    """Return one row per rating: the twelve fields, ``timestamp`` and ``liked``."""
    folder = MOVIELENS.open()
    ratings, users, films = (_atomic(folder / f"ml-100k.{kind}") for kind in ("inter", "user", "item"))
    joined = ratings.merge(users, on="user_id", how="left").merge(films, on="item_id", how="left")
    if len(joined) != len(ratings):
        raise DataError(f"{folder}: found users or films twice: put good copies of the files there")
    times = pd.to_datetime(joined["timestamp"].astype(float), unit="s")
    genres = joined["class"].fillna("").str.split(" ")
    columns = {
        "user": joined["user_id"].astype(int),
        "item": joined["item_id"].astype(int),
        "age": joined["age"].astype(int) // 5,
        "gender": joined["gender"],
        "occupation": joined["occupation"],
        "zip": joined["zip_code"].str[:2],
        "year": joined["release_year"].fillna(""),
        **{f"genre{i + 1}": genres.str.get(i).fillna("") for i in range(3)},
        "hour": times.dt.hour.astype(int),
        "weekday": times.dt.day_of_week.astype(int),
        "timestamp": times,
        "liked": (joined["rating"].astype(float) >= 4).astype(int),
    }
    return pd.DataFrame(columns)


def _atomic(path: Path) -> pd.DataFrame:
    """Read an atomic file of RecBole: tab-separated, the header has types after a colon."""
    table = pd.read_csv(path, sep="\t", dtype=str, quoting=3)
    return table.rename(columns=lambda name: name.partition(":")[0])


def categories(frame: pd.DataFrame, names: list[str]) -> FeatureSpec:
    """Return a spec with all of ``names`` as categorical fields."""
    return FeatureSpec(tuple(Field(name, "categorical", family_of(frame[name])) for name in names))


@lru_cache(maxsize=1)
def _frappe(seed: int) -> Opened:
    parts = rebuild(seed)
    spec = categories(parts["train"], list(COLUMNS))
    return prepare((parts["train"], parts["validation"], parts["test"]), spec, ("label",), "user")


@lru_cache(maxsize=1)
def _movielens(split: Split, seed: int) -> Opened:
    table = movielens_table()
    names = [name for name in table.columns if name not in ("timestamp", "liked")]
    parts = split_rows(table, split=split, time="timestamp", seed=seed)
    return prepare(parts, categories(table, names), ("liked",), "user")


@lru_cache(maxsize=1)
def _adult(seed: int) -> Opened:
    parts = split_rows(adult_table(), seed=seed)
    return prepare(parts, infer_spec(parts[0], label="income", ignore=("fnlwgt",)), ("income",))
