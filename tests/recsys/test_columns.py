"""Columns of every type: read as a user expects, or refused in one line before any work; each row alone."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from manyheads.core.errors import ArgumentError, DataError, ManyheadsError
from manyheads.recsys.features.columns import as_family, family_of
from manyheads.recsys.features.encoder import Encoder, TableWarning
from manyheads.recsys.features.labels import Labels
from manyheads.recsys.features.layout import FIRST, UNSEEN
from manyheads.recsys.features.spec import FeatureSpec, Field, infer_spec
from manyheads.recsys.features.tables import read_table
from manyheads.recsys.serving.load import as_json
from manyheads.recsys.serving.rows import encode_rows

NUMBERS = [1.5, -2.25, 1.5, 40.0]


def ids(frame, rows=None):
    encoder = Encoder.fit(frame, infer_spec(frame))
    return encoder.arrays(frame if rows is None else rows).ids


LARGE = {
    "beyond 63 bits": pd.Series([2**63 + 1, 2**63 + 2, 5], dtype="uint64"),
    "beyond 64 bits": pd.Series([2**100, -(2**100), 5], dtype=object),
    "beside gaps": pd.Series([2**60 + 1, 2**60 + 2, None], dtype="Int64"),
    "of Arrow": pd.Series([2**63 + 1, 2**63 + 2, None], dtype="uint64[pyarrow]"),
}


@pytest.mark.parametrize("kind", LARGE)
def test_large_whole_numbers_stay_distinct_ids_in_memory_and_in_files(kind, tmp_path):
    frame = pd.DataFrame({"user_id": LARGE[kind]})
    encoder = Encoder.fit(frame, infer_spec(frame))
    found = encoder.arrays(frame).ids[:, 0]
    assert len(set(found.tolist())) == 3
    encoder.save(tmp_path)
    np.testing.assert_array_equal(Encoder.load(tmp_path).arrays(frame).ids[:, 0], found)
    other = pd.DataFrame({"user_id": pd.Series([2**63 + 9], dtype="uint64")})
    assert encoder.arrays(other).ids.tolist() == [[UNSEEN]]


AS_NUMBERS = {
    "Arrow": pd.Series(NUMBERS, dtype="double[pyarrow]"),
    "nullable": pd.Series(NUMBERS, dtype="Float64"),
    "decimals": pd.Series([decimal.Decimal(str(n)) for n in NUMBERS]),
    "spans": pd.Series(pd.to_timedelta(NUMBERS, "s")),
    "spans one by one": pd.Series([datetime.timedelta(seconds=n) for n in NUMBERS], dtype=object),
    "sparse": pd.Series(pd.arrays.SparseArray(NUMBERS)),
    "categories": pd.Series(NUMBERS).astype("category"),
    "objects": pd.Series(NUMBERS, dtype=object),
}


@pytest.mark.parametrize("kind", AS_NUMBERS)
def test_equal_numbers_of_any_type_are_encoded_alike(kind):
    frame = pd.DataFrame({"price": AS_NUMBERS[kind]})
    spec = infer_spec(frame)
    assert [(one.kind, one.family) for one in spec.fields] == [("numeric", "number")]
    plain = pd.DataFrame({"price": NUMBERS})
    expected = (np.array(NUMBERS) - np.mean(NUMBERS)) / np.std(NUMBERS)
    encoder = Encoder.fit(frame, spec)
    for rows in (frame, plain):
        np.testing.assert_allclose(encoder.arrays(rows).numbers[:, 0], expected, rtol=1e-6)


AS_TEXT = {
    "intervals": (pd.Series(pd.cut([0.5, 1.5, 0.5], [0, 1, 2])), ["(0, 1]", "(1, 2]", "(0, 1]"]),
    "UUIDs": (pd.Series([uuid.UUID(int=n) for n in (1, 2, 1)]), [str(uuid.UUID(int=n)) for n in (1, 2, 1)]),
    "Arrow": (pd.Series(["a", "b", "a"], dtype="string[pyarrow]"), ["a", "b", "a"]),
    "categories": (pd.Series(["a", "b", "a"], dtype="category"), ["a", "b", "a"]),
}


@pytest.mark.parametrize("kind", AS_TEXT)
def test_values_of_text_types_are_read_as_their_text(kind):
    column, texts = AS_TEXT[kind]
    np.testing.assert_array_equal(ids(pd.DataFrame({"c": column})), ids(pd.DataFrame({"c": texts})))


def test_periods_and_dates_are_read_as_their_start():
    stamps = pd.date_range("2024-01-01", periods=5, freq="MS")
    expected = ids(pd.DataFrame({"at": stamps}))
    for column in (stamps.to_period("M"), stamps.date, stamps.tz_localize("UTC"), stamps.strftime("%Y-%m-%d")):
        np.testing.assert_array_equal(ids(pd.DataFrame({"at": pd.Series(column)})), expected)


def test_list_values_1_and_1_0_are_equal_and_missing_ones_are_dropped():
    frame = pd.DataFrame({"l": [[1, 2], [1.0, 2.0], np.array([1, 2]), (1, None, 2), {1, 2}, [decimal.Decimal(1), 2]]})
    found = ids(frame)
    assert (found == found[0]).all()


def test_minus_0_and_0_are_one_category():
    frame = pd.DataFrame({"x": [0.0, -0.0, 0.5]})
    encoder = Encoder.fit(frame, FeatureSpec((Field("x", "categorical", "number"),)))
    assert encoder.arrays(frame).ids[:, 0].tolist() == [FIRST, FIRST, FIRST + 1]


HOPELESS = {
    "bytes": ([b"a", b"b"], r"found bytes \(b'a'\), expected text, .*: decode it with"),
    "dictionaries": ([{"a": 1}, {"a": 2}], "found dict .*: give its values as columns of their own"),
    "complex": ([1j, 2j], "found complex .*: give its real and imaginary part"),
    "times of day": ([datetime.time(5), datetime.time(6)], "found time .*: give the hour as a number"),
    "mixed": ([1, "1"], "found integer and text mixed"),
    "booleans and numbers": ([True, 2], "found boolean and integer mixed"),
}


@pytest.mark.parametrize("kind", HOPELESS)
def test_unsupported_columns_are_refused_before_any_other_work(kind, monkeypatch):
    values, says = HOPELESS[kind]
    monkeypatch.setattr("manyheads.recsys.features.spec._infer", lambda *a: pytest.fail("worked on a column"))
    frame = pd.DataFrame({"good": [1, 2], "z": pd.Series(values, dtype=object)})
    with pytest.raises(DataError, match=f"column 'z'.*{says}") as caught:
        infer_spec(frame)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [1e300, -1e300, 1.7e308, 5e-324])
def test_huge_and_tiny_numbers_give_finite_encodings(size):
    frame = pd.DataFrame({"x": [1.0, 2.5, 3.0, 4.0, size] * 5, "y": [0.5, 1.5] * 12 + [0.25]})
    encoder = Encoder.fit(frame, infer_spec(frame))
    assert np.isfinite(encoder.arrays(frame).numbers).all()


def test_a_number_far_from_the_fitted_range_is_refused():
    frame = pd.DataFrame({"x": np.linspace(0, 1, 20)})
    encoder = Encoder.fit(frame, infer_spec(frame))
    with pytest.raises(DataError, match=r"column 'x', row 0: found 1e.300, expected a number near those"):
        encoder.arrays(pd.DataFrame({"x": [1e300]}))


UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_of_times_is_fixed_at_fitting(unit):
    stamps = 1_700_000_000 + 3600 * np.arange(50)
    frame = pd.DataFrame({"timestamp": stamps * UNITS[unit]})
    spec = FeatureSpec.from_dict(json.loads(json.dumps(infer_spec(frame).to_dict())))
    assert spec.fields[0].unit == unit
    encoder = Encoder.fit(frame, spec)
    hours = (pd.to_datetime(stamps, unit="s").hour + FIRST).tolist()
    assert encoder.arrays(frame).ids[:, encoder.layout().names.index("timestamp.hour")].tolist() == hours
    for other in UNITS:
        if other != unit:
            with pytest.raises(DataError, match=r"row 0: found .* since 1970, from 1678 to 2261: convert it"):
                encoder.arrays(pd.DataFrame({"timestamp": [1_700_000_000 * UNITS[other]]}))


def test_times_of_two_units_in_one_column_are_refused():
    with pytest.raises(DataError, match="column 'timestamp': found seconds and milliseconds since 1970 mixed"):
        infer_spec(pd.DataFrame({"timestamp": [1_700_000_000, 1_700_000_000_000]}))


@pytest.mark.parametrize(
    "name", ["candidate_id", "update_count", "runtime", "timezone", "lifetime", "updates", "dateline", "time_id", "x"]
)
def test_names_such_as_runtime_or_time_id_are_no_times(name):
    values = 1_700_000_000 + 7 * np.arange(50)
    assert infer_spec(pd.DataFrame({name: values})).fields[0].kind != "time"


@pytest.mark.parametrize("name", ["time", "event_time", "timestamp_ms", "createdDate", "ts", "EventTS", "created_at"])
def test_a_time_name_with_plausible_values_is_a_time(name):
    values = 1_700_000_000 + 7 * np.arange(50)
    assert infer_spec(pd.DataFrame({name: values})).fields[0].kind == "time"
    assert infer_spec(pd.DataFrame({name: np.arange(50)})).fields[0].kind != "time"


@pytest.mark.parametrize("text", ["today", "now", "tomorrow", "12:30", "3 days ago", "2024-13-01", "2024-02-30"])
def test_relative_and_impossible_times_are_refused(text):
    column = pd.Series([text], name="at")
    with pytest.raises(DataError, match=f"column 'at', row 0: found text .'{text}'., expected a time such as"):
        as_family(column, "time")


def test_ids_merged_by_a_float_column_give_a_warning():
    numbers = 2**53 + 1 + np.arange(30)
    floats = pd.DataFrame({"user_id": numbers.astype(float)})
    with pytest.warns(TableWarning, match="column 'user_id': found .* several ids may have become one"):
        assert len(np.unique(ids(floats))) == 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = pd.DataFrame({"user_id": pd.Series(numbers, dtype="Int64").mask(numbers == numbers[3])})
        assert len(np.unique(ids(exact))) == 30


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_ids_next_to_a_gap_in_a_file_stay_distinct(suffix, tmp_path):
    numbers = pd.Series(2**53 + 1 + np.arange(30), dtype="Int64")
    numbers[3] = pd.NA
    path = tmp_path / f"t.{suffix}"
    frame = pd.DataFrame({"user_id": numbers, "price": np.arange(30) / 7, "text": ["a"] * 30})
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    found = read_table(path)
    assert found["user_id"].dropna().tolist() == numbers.dropna().tolist()
    assert (found["price"].dtype, str(found["text"].dtype)) == (np.float64, "str")
    assert len(np.unique(ids(found[["user_id"]]))) == 30


def test_labels_of_a_number_and_a_text_are_refused():
    with pytest.raises(DataError, match="found integer and text mixed"):
        Labels.of(pd.DataFrame({"y": pd.Series([0, "1"], dtype=object)}), ["y"])


@pytest.mark.parametrize(
    ("column", "classes"),
    [
        (pd.Series([0, 1], dtype="Int64"), (0, 1)),
        (pd.Series([True, False], dtype="boolean"), (False, True)),
        (pd.Series([0.0, 1.0], dtype="double[pyarrow]"), (0.0, 1.0)),
        (pd.Series([decimal.Decimal(0), decimal.Decimal(1)]), (0.0, 1.0)),
        (pd.Series(["no", "yes"], dtype="category"), ("no", "yes")),
    ],
)
def test_labels_of_any_type_become_plain_values(column, classes):
    labels = Labels.of(pd.DataFrame({"y": column}), ["y"])
    assert labels.classes == (classes,)
    assert labels.encode(pd.DataFrame({"y": column})).ravel().tolist() == [
        float(value == classes[1]) for value in column
    ]


def test_an_unseen_month_uses_the_embedding_of_the_nearest_seen_month():
    stamps = pd.Series(pd.date_range("2024-01-01", "2024-10-01", freq="h", inclusive="left"))
    frame = pd.DataFrame({"at": stamps})
    old, new = frame[stamps < "2024-09-01"], frame[stamps >= "2024-09-01"]
    (field,) = infer_spec(old).fields
    encoder = Encoder.fit(old, FeatureSpec((replace(field, parts=("hour", "weekday", "month")),)))
    place = encoder.layout().names.index("at.month")
    fitted, found = encoder.arrays(old), encoder.arrays(new)
    assert set(found.ids[:, place]) <= set(fitted.ids[:, place])
    assert set(found.ids[:, place]) == {7 + FIRST}  # of August
    assert (fitted.unseen, found.unseen) == ({}, {"at": len(new)})
    assert encoder.notes(found, len(new)) == [
        "column 'at': 720 of 720 values were never seen at fitting and are scored as the nearest that were: fit again "
        "with newer rows, or without it"
    ]


def test_a_mostly_unseen_column_gives_a_warning(shop):
    from manyheads.recsys.training.recommender import Recommender

    model = Recommender("lr", label="bought", epochs=1).fit(shop)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TableWarning)
        model.predict_proba(shop)
    with pytest.warns(TableWarning, match="column 'item_id': 400 of 400 values were never seen at fitting"):
        model.predict_proba(shop.assign(item_id=shop["item_id"] + 1000))


def test_tables_of_other_libraries_keep_names_whole_numbers_and_gaps(shop):
    polars = pytest.importorskip("polars")
    from manyheads.recsys.training.recommender import Recommender

    plain = shop.assign(item_id=(2**53 + 1 + shop["item_id"]).astype("Int64").mask(shop.index % 50 == 3))
    table = polars.from_pandas(plain)
    model = Recommender("lr", label="bought", epochs=1).fit(table)
    assert model.feature_names_in_.tolist() == [name for name in shop.columns if name != "bought"]
    expected = Recommender("lr", label="bought", epochs=1).fit(plain).predict_proba(plain)
    np.testing.assert_allclose(model.predict_proba(table), expected, atol=1e-6)
    apart = Recommender("lr", epochs=1).fit(table.drop("bought"), table["bought"])
    np.testing.assert_allclose(apart.predict_proba(table.drop("bought")), expected, atol=1e-6)
    with pytest.raises(DataError, match="found LazyFrame, expected a pandas DataFrame or another table: collect it"):
        infer_spec(table.lazy())


def test_a_label_matrix_is_refused_in_one_line(shop):
    from manyheads.recsys.training.recommender import Recommender

    y = np.stack([shop["bought"], shop["bought"]], 1)
    with pytest.raises(DataError, match=r"y: found an array of shape \(400, 2\), expected one label a row") as caught:
        Recommender("lr", epochs=1).fit(shop.drop(columns="bought"), y)
    assert "\n" not in str(caught.value)


def test_served_rows_are_encoded_like_predicted_rows(shop):
    frame = shop.drop(columns="bought")
    encoder = Encoder.fit(frame, infer_spec(frame))
    expected, found = encoder.arrays(frame), encode_rows(encoder, json.loads(json.dumps(as_json(frame))))
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.numbers, expected.numbers)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("buckets", True),
        ("buckets", 10**30),
        ("max_values", 10**9),
        ("separator", ""),
        ("parts", ({},)),
        ("missing", None),
        ("unit", "min"),
        ("allow_missing", "yes"),
        ("family", ["text"]),
        ("name", 7),
    ],
)
def test_a_bad_setting_of_a_field_is_refused(setting, value):
    with pytest.raises(ArgumentError, match=f"{setting}: found"):
        Field(**{"name": "a", "kind": "categorical", "family": "text", setting: value})


def test_a_column_with_several_faults_gives_one_line():
    for column in (pd.Series([b"a", {}, 1j], dtype=object), pd.Series([float("inf"), "x"], dtype=object)):
        with pytest.raises(ManyheadsError) as caught:
            family_of(column)
        assert "\n" not in str(caught.value)
