"""Data sets: the reconstructed Frappe split against published counts, both MovieLens splits, Adult, any table."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manyheads.core.errors import ArgumentError, DataError
from manyheads.lab.data.registry import where
from manyheads.recsys.datasets.catalogue import ADULT, FRAPPE, FRAPPE_TEST, FRAPPE_VALIDATION, MOVIELENS, datasets
from manyheads.recsys.datasets.frappe import COLUMNS, multiset_difference, raw_logs, rebuild
from manyheads.recsys.datasets.splits import Adult, Frappe, MovieLens, Table, adult_table, movielens_table
from manyheads.recsys.features.tables import read_table, split_rows


def here(*sets):
    missing = [s.name for s in sets if s.where() is None]
    return pytest.mark.skipif(bool(missing), reason=f"{missing} may not be shipped and MANYHEADS_DATA has none of it")


needs_frappe = here(FRAPPE, FRAPPE_VALIDATION, FRAPPE_TEST)
needs_movielens = here(MOVIELENS)
CONTEXT = [name for name in COLUMNS if name != "item"]


@pytest.fixture(scope="module")
def frappe():
    return rebuild()


@needs_frappe
def test_the_raw_log_has_the_published_sizes():
    logs = raw_logs()
    assert len(logs) == 96203
    assert logs.nunique().tolist() == [957, 4082, 7, 7, 2, 3, 2, 9, 80, 233]


@needs_frappe
def test_the_parts_have_the_published_rows_and_positives(frappe):
    assert {part: len(rows) for part, rows in frappe.items()} == {"train": 202027, "validation": 57722, "test": 28860}
    positives = {part: int(rows["label"].sum()) for part, rows in frappe.items()}
    assert positives == {"train": 67604, "validation": 19063, "test": 9536}
    assert (frappe["train"]["label"] == 0).sum() == 134423


@needs_frappe
def test_the_positives_of_the_three_parts_are_all_logs(frappe):
    every = pd.concat(frappe.values())
    found = every.loc[every["label"] == 1, list(COLUMNS)].value_counts().sort_index()
    assert found.equals(raw_logs().value_counts().sort_index())


@needs_frappe
def test_every_log_has_two_negatives_with_its_user_and_context(frappe):
    every = pd.concat(frappe.values())
    negatives = every.loc[every["label"] == 0, CONTEXT].value_counts().sort_index()
    assert negatives.equals(raw_logs()[CONTEXT].value_counts().sort_index() * 2)


@needs_frappe
def test_negative_sampling_is_uniform_over_unused_apps(frappe):
    logs = raw_logs()
    train = frappe["train"]
    negatives = train[train["label"] == 0]
    assert (
        not negatives[["user", "item"]]
        .apply(tuple, axis=1)
        .isin(set(zip(logs["user"], logs["item"], strict=True)))
        .any()
    )
    assert negatives["item"].value_counts().reindex(range(4082), fill_value=0).var() == pytest.approx(
        134423 / 4082, rel=0.1
    )  # Poisson: the variance is the mean


@needs_frappe
def test_the_training_part_has_the_5379_values_that_the_published_parameter_counts_imply(frappe):
    assert int(frappe["train"][list(COLUMNS)].nunique().sum()) == 5379


@needs_frappe
def test_the_reconstruction_equals_an_independent_one(frappe):
    folder = Path(os.environ.get("MANYHEADS_DATA", "")) / "rec/frappe"
    if not (folder / "train_x1r.parquet").is_file():
        pytest.skip("no independent rebuild is here")
    for part, name in (("validation", "valid"), ("test", "test")):
        other = pd.read_parquet(folder / f"{name}_x1r.parquet")
        assert (other.to_numpy() == frappe[part].to_numpy()).all()
    other, own = pd.read_parquet(folder / "train_x1r.parquet").astype(int), frappe["train"]
    for label, columns in ((1, list(COLUMNS)), (0, CONTEXT)):
        counts = [t.loc[t["label"] == label, columns].value_counts().sort_index() for t in (other, own)]
        assert counts[0].equals(counts[1])


@needs_frappe
def test_frappe_is_encoded_with_5399_rows_and_three_unseen_users():
    splits = Frappe().open()
    layout = splits.facts["layout"]
    assert sum(layout.rows) == 5379 + 2 * 10
    assert layout.tokens == 10
    assert (splits.validation.ids[:, 0] == 1).sum() + (splits.test.ids[:, 0] == 1).sum() > 0


def test_published_rows_that_are_not_in_the_log_are_refused():
    rows = pd.DataFrame({"a": [1, 1, 2]})
    assert multiset_difference(rows, pd.DataFrame({"a": [1]}))["a"].tolist() == [1, 2]
    with pytest.raises(DataError, match="1 published rows are not in the raw log"):
        multiset_difference(rows, pd.DataFrame({"a": [2, 2]}))


@needs_movielens
def test_movielens_has_its_known_counts():
    table = movielens_table()
    assert len(table) == 100000
    assert (table["user"].nunique(), table["item"].nunique(), table["occupation"].nunique()) == (943, 1682, 21)
    assert table["liked"].sum() == 21201 + 34174  # fives and fours
    assert table[["user", "item"]].duplicated().sum() == 0


@needs_movielens
def test_a_split_by_time_trains_on_the_past_only():
    table = movielens_table()
    train, validation, test = split_rows(table, split="time", time="timestamp")
    assert train["timestamp"].max() <= validation["timestamp"].min() <= validation["timestamp"].max()
    assert validation["timestamp"].max() <= test["timestamp"].min()
    assert (len(train), len(validation), len(test)) == (80000, 10000, 10000)


@needs_movielens
def test_the_two_splits_of_movielens_differ_and_have_twelve_fields():
    by_time, drawn = MovieLens("time").open(), MovieLens("random").open()
    assert by_time.facts["layout"].tokens == drawn.facts["layout"].tokens == 12
    assert len(by_time.train) == len(drawn.train) == 80000
    # new users and films come later: only a split by time shows it
    unseen = [int((s.test.ids[:, :2] == 1).sum()) for s in (by_time, drawn)]
    assert unseen[0] > 100 * max(unseen[1], 1)


def test_adult_is_shipped_and_has_its_known_counts():
    assert where(ADULT) is not None
    assert ADULT.verify() == "ok"
    table = adult_table()
    assert table.shape == (48842, 15)
    assert (table["income"] == ">50K").sum() == 11687
    marks = {name: int((table[name] == "?").sum()) for name in ("workclass", "occupation", "native-country")}
    assert marks == {"workclass": 2799, "occupation": 2809, "native-country": 857}


def test_adult_equals_its_source_table():
    path = Path(os.environ.get("MANYHEADS_DATA", "")) / "rec/adult/adult.parquet.brotli"
    if not path.is_file():
        pytest.skip("the original is not here")
    pd.testing.assert_frame_equal(pd.read_parquet(path), adult_table())


def test_adult_keeps_unknown_values_as_missing():
    splits = Adult().open()
    layout = splits.facts["layout"]
    column = layout.columns_of("workclass")
    parts = (splits.train, splits.validation, splits.test)
    assert sum(int((part.ids[:, column] == 0).sum()) for part in parts) == 2799
    assert [len(part) for part in parts] == [39073, 4884, 4885]


def test_only_adult_is_shipped():
    assert [d.name for d in datasets if any(o.kind == "shipped" for o in d.origins)] == ["adult"]


def test_every_table_format_gives_the_same_rows(shop, tmp_path):
    shop.to_csv(tmp_path / "a.csv", index=False)
    shop.to_csv(tmp_path / "a.csv.xz", index=False)
    shop.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    for name in ("a.csv", "a.csv.xz", "a.tsv"):
        splits = Table(str(tmp_path / name), ("bought",)).open()
        assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [320, 40, 40]
        assert splits.facts["layout"].tokens == 7  # device, item, tags, hour, weekday, price, age


def test_parquet_is_read(shop, tmp_path):
    pytest.importorskip("pyarrow")
    shop.to_parquet(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "a.parquet"), shop)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("no.csv", None, r"no\.csv: no such file"),
        ("a.xlsx", b"x", r"found \.xlsx, expected one of \.csv"),
        ("a.csv", b"", "cannot be read as a table"),
        ("b.csv", b"\xff\xfe\x00", "cannot be read as a table"),
        ("a.csv.gz", b"\x1f\x8bnot gzip", "is truncated or damaged"),
        ("a.parquet", b"PAR1", "cannot be read as a table"),
    ],
)
def test_unreadable_table_files_are_refused(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ([0, 1, 2] * 5, r"label 'y': found 3 values \(0, 1, 2\), expected two"),
        ([1] * 15, r"label 'y': found one class only \(1\), expected two"),
        ([np.nan] * 15, r"label 'y': every value is missing, expected two values"),
        ([0.0, 1.0, np.nan] * 5, "label 'y', row [0-9]+: found no value, expected one"),
    ],
)
def test_labels_that_are_not_binary_are_refused(tmp_path, column, says):
    pd.DataFrame({"x": ["a", "b", "c"] * 5, "y": column}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match=says):
        Table(str(tmp_path / "t.csv"), ("y",)).open()


def test_impossible_splits_are_refused(shop):
    with pytest.raises(ArgumentError, match="found time without a time column"):
        split_rows(shop, split="time")
    with pytest.raises(DataError, match="found 5 rows, too few for a split of 8:1:1"):
        split_rows(shop.iloc[:5])
