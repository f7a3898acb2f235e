"""The encoder: ids, numbers, counts of unseen and missing values, files, refused input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from manyheads.core.errors import CheckpointError, DataError
from manyheads.recsys.features.encoder import Encoder
from manyheads.recsys.features.layout import FIRST, MISSING, PADDING, UNSEEN
from manyheads.recsys.features.spec import FeatureSpec, Field, infer_spec
from manyheads.recsys.features.vocabulary import hashed


@pytest.fixture
def encoder(shop):
    return Encoder.fit(shop, infer_spec(shop, label="bought"))


def one(kind, values, family="text", **settings):
    name = "c"
    frame = pd.DataFrame({name: values})
    return frame, Encoder.fit(frame, FeatureSpec((Field(name, kind, family, **settings),)))


def test_the_vocabulary_is_ordered_by_count_then_value():
    frame, encoder = one("categorical", ["b", "a", "c", "c"])
    assert encoder.transform(frame).ids[:, 0].tolist() == [FIRST + 2, FIRST + 1, FIRST, FIRST]


def test_unseen_and_missing_values_have_their_own_rows_and_are_counted():
    _, encoder = one("categorical", ["a", "b", "?"], missing=("?",))
    encoded = encoder.transform(pd.DataFrame({"c": ["a", "zz", None, "?", "", "yy"]}))
    assert encoded.ids[:, 0].tolist() == [FIRST, UNSEEN, MISSING, MISSING, MISSING, UNSEEN]
    assert (encoded.unseen, encoded.missing) == ({"c": 2}, {"c": 3})


def test_rare_values_are_out_of_vocabulary():
    frame, encoder = one("categorical", ["a", "a", "b", "c"], min_count=2)
    assert encoder.transform(frame).ids[:, 0].tolist() == [FIRST, FIRST, UNSEEN, UNSEEN]
    assert encoder.report()[0]["rare"] == 2


def test_the_collision_rate_equals_counting_by_hand():
    values = [f"v{i}" for i in range(300)]
    _, encoder = one("categorical", values, buckets=256)
    buckets = hashed(values, 256).tolist()
    shared = sum(buckets.count(b) > 1 for b in buckets)
    assert encoder.report()[0]["collision_rate"] == pytest.approx(shared / 300)
    assert 0.5 < shared / 300 < 0.8  # 1 - (255 / 256) ** 299 = 0.69 expected of uniform hashing


def test_hashing_is_the_same_on_every_machine():
    # BLAKE2b with 8 bytes, little endian, of "a" and "1"
    import hashlib

    wanted = [int.from_bytes(hashlib.blake2b(t, digest_size=8).digest(), "little") % 1000 for t in (b"a", b"1")]
    assert hashed(["a", 1], 1000).tolist() == wanted


def test_multi_valued_cells_are_padded_and_truncated():
    _, encoder = one("multi", ["a|b", "b", "b"], max_values=2)
    encoded = encoder.transform(pd.DataFrame({"c": ["b", "a|zz", "", "a|b|b"]}))
    b, a = FIRST, FIRST + 1
    assert encoded.ids.tolist() == [[b, PADDING], [a, UNSEEN], [MISSING, PADDING], [a, b]]
    assert encoded.unseen == {"c": 1}


def test_lists_and_separated_text_are_encoded_alike():
    _, text = one("multi", ["a|b", "b"], max_values=2)
    _, lists = one("multi", [["a", "b"], ["b"]], "list", max_values=2)
    assert torch.equal(
        text.transform(pd.DataFrame({"c": ["b|a"]})).ids, lists.transform(pd.DataFrame({"c": [["b", "a"]]})).ids
    )


def test_numbers_have_mean_0_and_deviation_1_and_gaps_stay_gaps():
    values = np.array([1.0, 5.0, np.nan, 12.0])
    frame, encoder = one("numeric", values, "number", allow_missing=True)
    found = encoder.transform(frame).numbers[:, 0].numpy()
    expected = (values - np.nanmean(values)) / np.nanstd(values)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_constant_column_becomes_0():
    frame, encoder = one("numeric", [7.1, 7.1, 7.1], "number")
    assert encoder.transform(frame).numbers.abs().max() < 1e-6


def test_times_are_split_into_parts():
    frame, encoder = one("time", ["2026-03-05 18:30:00", "2026-12-31 00:00:00"], parts=("hour", "weekday", "day"))
    assert (encoder.transform(frame).ids - FIRST).tolist() == [[18, 3, 4], [0, 3, 30]]


def test_fitting_on_chunks_equals_fitting_on_the_whole_table(shop):
    spec = infer_spec(shop, label="bought", min_count=2)
    whole = Encoder.fit(shop, spec)
    parts = Encoder.fit_chunks((shop.iloc[i : i + 37] for i in range(0, len(shop), 37)), spec)
    first, second = whole.transform(shop), parts.transform(shop)
    assert torch.equal(first.ids, second.ids)
    torch.testing.assert_close(first.numbers, second.numbers, equal_nan=True, rtol=1e-6, atol=1e-6)


def test_an_encoder_survives_its_files(shop, encoder, tmp_path):
    encoder.save(tmp_path)
    loaded = Encoder.load(tmp_path)
    first, second = encoder.transform(shop), loaded.transform(shop)
    assert torch.equal(first.ids, second.ids)
    assert torch.equal(first.numbers.nan_to_num(99), second.numbers.nan_to_num(99))
    assert loaded.layout() == encoder.layout()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["encoder.json", "encoder.safetensors"]


def test_texts_of_every_alphabet_survive_the_files(tmp_path):
    frame, encoder = one("categorical", ["Ünïcode", "日本", "", "a\nb", "🙂"])
    encoder.save(tmp_path)
    assert torch.equal(Encoder.load(tmp_path).transform(frame).ids, encoder.transform(frame).ids)


def test_a_damaged_encoder_is_refused(encoder, tmp_path):
    encoder.save(tmp_path)
    (tmp_path / "encoder.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"encoder\.json: damaged"):
        Encoder.load(tmp_path)


def test_the_layout_names_every_token(encoder):
    layout = encoder.layout(("bought",))
    assert layout.names == ("device", "item_id", "tags", "at.hour", "at.weekday")
    assert layout.rows == (5, 42, 6, 26, 9)
    assert layout.numeric == ("price", "age")
    assert layout.tokens == 7
    assert layout.columns_of("at.hour") == slice(5, 6)


def test_ids_read_as_floats_because_of_a_gap_are_the_same_ids():
    _, encoder = one("categorical", [3, 4, 4], "integer")
    found = encoder.transform(pd.DataFrame({"c": [3.0, np.nan, 4.0]})).ids[:, 0].tolist()
    assert found == [FIRST + 1, MISSING, FIRST]


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("device", 3, r"column 'device': found integer \(3\), expected text as at fitting: convert it"),
        ("item_id", "x", r"column 'item_id': found text \('x'\), expected integer as at fitting"),
        ("item_id", 3.5, "column 'item_id', row 0 and 399 more: found 3.5, expected a whole number"),
        ("age", "old", r"column 'age': found text \('old'\), expected number as at fitting"),
        ("age", np.inf, "column 'age', row 0 and 399 more: found inf, expected a finite number: clean it"),
        ("age", np.nan, "column 'age', row 0: found a missing number, expected none as at fitting"),
        ("tags", 4, "column 'tags': found integer"),
        ("at", "soon", "column 'at', row 0 and 399 more: found text \\('soon'\\), expected a time such as"),
    ],
)
def test_values_of_another_family_than_at_fitting_are_refused(shop, encoder, column, value, says):
    with pytest.raises(DataError, match=says):
        encoder.transform(shop.assign(**{column: value}))


def test_a_missing_column_and_an_empty_table_are_refused(shop, encoder):
    with pytest.raises(DataError, match="column 'age' is missing; found device"):
        encoder.transform(shop.drop(columns="age"))
    with pytest.raises(DataError, match="found no rows, expected at least one"):
        encoder.transform(shop.iloc[:0])


def test_a_column_without_a_value_at_fitting_is_refused(shop):
    spec = infer_spec(shop, label="bought")
    with pytest.raises(DataError, match="column 'price': every value is missing"):
        Encoder.fit(shop.assign(price=np.nan), spec)
    with pytest.raises(DataError, match="column 'device': every value is missing"):
        Encoder.fit(shop.assign(device=None), spec)
