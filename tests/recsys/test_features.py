"""The feature spec: inference, editing, refused content."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from manyheads.core.errors import ArgumentError, DataError, UnknownNameError
from manyheads.recsys.features.encoder import Encoder
from manyheads.recsys.features.spec import FeatureSpec, Field, infer_spec


def test_each_kind_is_recognised(shop):
    spec = infer_spec(shop, label="bought")
    kinds = {field.name: field.kind for field in spec.fields}
    assert kinds == {
        "device": "categorical",
        "item_id": "categorical",
        "price": "numeric",
        "tags": "multi",
        "at": "time",
        "age": "numeric",
    }


def test_skewed_numbers_are_log_scaled_and_gaps_are_allowed_if_fitted(shop):
    fields = {field.name: field for field in infer_spec(shop, label="bought").fields}
    assert (fields["price"].scale, fields["price"].allow_missing) == ("log", True)
    assert (fields["age"].scale, fields["age"].allow_missing) == ("standard", False)


def test_few_distinct_whole_numbers_are_categorical_and_many_are_numeric():
    frame = pd.DataFrame({"rooms": [1, 2, 3] * 20, "metres": range(60), "y": [0, 1] * 30})
    assert [field.kind for field in infer_spec(frame, label="y").fields] == ["categorical", "numeric"]


def test_seconds_since_1970_are_times():
    frame = pd.DataFrame({"timestamp": [881250949, 891717742, 878887116], "n": [1, 2, 3]})
    field = infer_spec(frame).fields[0]
    assert (field.kind, field.parts) == ("time", ("hour", "weekday"))


def test_texts_that_are_dates_are_times_and_lists_are_multi_valued():
    frame = pd.DataFrame({"d": ["2026-01-01", "2026-02-03"], "l": [["a"], ["a", "b"]]})
    first, second = infer_spec(frame).fields
    assert (first.kind, second.kind, second.max_values) == ("time", "multi", 2)


def test_marks_of_missing_values_are_found():
    frame = pd.DataFrame({"work": ["private", "?", "state", "private"]})
    assert infer_spec(frame).fields[0].missing == ("?",)


def test_high_cardinality_columns_are_hashed_on_request():
    frame = pd.DataFrame({"name": [f"v{i}" for i in range(50)], "few": ["a", "b"] * 25})
    fields = infer_spec(frame, hash_above=10, buckets=64).fields
    assert [field.buckets for field in fields] == [64, None]


def test_a_spec_survives_its_file(shop, tmp_path):
    spec = infer_spec(shop, label="bought", min_count=3)
    spec.save(tmp_path / "spec.json")
    assert FeatureSpec.load(tmp_path / "spec.json") == spec


def test_an_edited_spec_file_is_followed(shop, tmp_path):
    path = tmp_path / "spec.json"
    infer_spec(shop, label="bought").save(path)
    stored = json.loads(path.read_text())
    stored["fields"][0]["min_count"] = 7
    path.write_text(json.dumps(stored))
    assert FeatureSpec.load(path).fields[0].min_count == 7


@pytest.mark.parametrize(
    ("edit", "error", "says"),
    [
        ({"min_cout": 2}, UnknownNameError, "min_count"),
        ({"min_count": 0}, ArgumentError, "field 'device': min_count: found 0, expected a whole number from 1 on"),
        ({"kind": "numbre"}, ArgumentError, "expected one of categorical, multi, numeric, time"),
        ({"kind": "numeric"}, ArgumentError, "found numeric for a column of text, expected categorical"),
        ({"kind": "time", "parts": ["minute"]}, ArgumentError, "expected some of hour, weekday, day, month"),
    ],
)
def test_a_wrong_setting_names_the_field_and_what_is_expected(shop, tmp_path, edit, error, says):
    stored = infer_spec(shop, label="bought").to_dict()
    stored["fields"][0] |= edit
    with pytest.raises(error, match=says):
        FeatureSpec.from_dict(stored)


def test_a_file_that_is_no_spec_is_refused(tmp_path):
    path = tmp_path / "spec.json"
    path.write_text("kinds: none")
    with pytest.raises(DataError, match=r"spec\.json: found no JSON"):
        FeatureSpec.load(path)
    path.write_text("[]")
    with pytest.raises(ArgumentError, match="found no list 'fields'"):
        FeatureSpec.load(path)


def test_the_same_field_twice_is_refused():
    with pytest.raises(ArgumentError, match="'a' is there twice"):
        FeatureSpec((Field("a", "categorical", "text"), Field("a", "categorical", "text")))


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (pd.DataFrame({"a": []}), "found no rows"),
        (pd.DataFrame({"a": [np.nan, np.nan], "b": [1, 2]}), "column 'a': every value is missing"),
        (pd.DataFrame({"a": ["?", ""], "b": [1, 2]}), "column 'a': every value is missing"),
        (pd.DataFrame({"a": ["x", 3.5]}), "column 'a': found number and text mixed"),
        (pd.DataFrame({"y": [0, 1]}), "no column besides the label"),
        (pd.DataFrame({0: [1, 2], "y": [0, 1]}), "has no text as its name"),
    ],
)
def test_tables_without_a_valid_spec_are_refused(frame, says):
    with pytest.raises(DataError, match=says):
        infer_spec(frame, label="y" if "y" in frame else ())


def test_a_missing_label_is_named(shop):
    with pytest.raises(DataError, match="column 'sold' is missing; found device, item_id"):
        infer_spec(shop, label="sold")


@pytest.mark.parametrize(("days", "parts"), [(1, ("hour",)), (9, ("hour",)), (200, ("hour", "weekday")), (900, None)])
def test_parts_of_a_time_need_two_cycles(days, parts):
    stamps = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(0, days * 24 * 60, 37), unit="min")
    table = pd.DataFrame({"at": stamps, "clicked": np.arange(len(stamps)) % 2})
    older, newest = table.iloc[: len(table) * 9 // 10], table.iloc[len(table) * 9 // 10 :]
    spec = infer_spec(older, label="clicked")
    assert spec.fields[0].parts == (parts or ("hour", "weekday", "month"))
    assert ("left out" in spec.fields[0].why) == (1 < days < 900)
    if days > 1:
        assert Encoder.fit(older, spec).transform(newest).unseen == {}
