"""Odd tables for recommenders, and what has to hold for each.

    case = make(seed)          # a table of columns of odd kinds, the rows to be scored, and perhaps an edited spec
    outcome = check(case)      # "fitted" or "refused: …"; AssertionError if a property does not hold

The properties: whatever is refused is refused by a ManyheadsError of one line; a row is encoded or refused as it would
be alone, in any order of rows and of columns; what is served encodes and refuses as what predicts does; a saved encoder
encodes as the one that was saved; no number is infinite.
"""

from __future__ import annotations

import datetime
import decimal
import json
import re
import tempfile
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from manyheads.core.errors import ManyheadsError
from manyheads.recsys.features.encoder import Arrays, Encoder
from manyheads.recsys.features.spec import FeatureSpec, infer_spec
from manyheads.recsys.serving.load import as_json
from manyheads.recsys.serving.rows import encode_rows

Rng = np.random.Generator
ODD_NUMBERS = [0.0, -0.0, 1.0, -1.0, 5e-324, 1e-300, 1e16, 2.0**53, 2.0**63, 1e300, -1e300, np.inf, -np.inf, np.nan]
ODD_TEXTS = [
    "",
    " ",
    "?",
    "NA",
    "nan",
    "007",
    "7",
    "a|b",
    "|",
    "a;b",
    "ü",
    "日本",
    "\ud800",
    "\0",
    "today",
    "2024-01-31",
]


@dataclass(frozen=True)
class Case:
    """A table to fit on, rows to encode, and changes to the spec by field and setting."""

    seed: int
    train: pd.DataFrame
    rows: pd.DataFrame
    edits: dict[str, dict[str, Any]]


def make(seed: int) -> Case:
    """One to five columns of random kinds; the rows to encode are some of them with some cells changed."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 40))
    names = [f"{rng.choice(NAMES)}{n if n else ''}" for n in range(rng.integers(1, 6))]
    columns = {name: COLUMNS[kind_of(rng)](rng, count) for name in names}
    train = pd.DataFrame(columns)
    rows = train.iloc[rng.integers(0, count, rng.integers(1, 8))]
    if rng.random() < 0.4:
        name = rng.choice(names)
        cells = list(rows[name].astype(object))
        cells[rng.integers(0, len(cells))] = CELLS[rng.integers(0, len(CELLS))](rng)
        rows = rows.assign(**{name: pd.Series(objects(cells), index=rows.index, dtype=object)})
    if rng.random() < 0.2:
        name = rng.choice(names)
        other = list(COLUMNS[kind_of(rng)](rng, len(rows)).astype(object))
        rows = rows.assign(**{name: pd.Series(objects(other), index=rows.index, dtype=object)})
    if rng.random() < 0.5:
        rows = rows.reset_index(drop=True)
    edits = {}
    if rng.random() < 0.4:
        edits[str(rng.choice(names))] = dict([EDITS[rng.integers(0, len(EDITS))]])
    return Case(seed, train, rows, edits)


def kind_of(rng: Rng) -> str:
    """One of all kinds, but seldom one that no table may hold: one such column refuses all."""
    kind = str(rng.choice(list(COLUMNS)))
    return str(rng.choice(list(COLUMNS))) if kind in HOPELESS and rng.random() < 0.9 else kind


def check(case: Case) -> str:
    """See the module."""
    rng = np.random.default_rng(case.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec, said = attempt(lambda: edited(infer_spec(case.train), case.edits))
        if spec is None:
            return said
        encoder, said = attempt(lambda: Encoder.fit(case.train, spec))
        if encoder is None:
            return said
        with tempfile.TemporaryDirectory() as folder:
            encoder.save(folder)
            loaded = Encoder.load(folder)
        rows = case.rows
        whole, said = attempt(lambda: encoder.arrays(rows))
        alone = [attempt(lambda n=n: encoder.arrays(rows.iloc[n : n + 1]))[0] for n in range(len(rows))]
        assert (whole is None) == any(one is None for one in alone), f"the batch: {said}; alone: {alone}"
        backwards, _ = attempt(lambda: encoder.arrays(rows.iloc[::-1]))
        names = [str(name) for name in rng.permutation(rows.columns)]
        turned, _ = attempt(lambda: encoder.arrays(rows[names].assign(_more=1)))
        again, _ = attempt(lambda: loaded.arrays(rows))
        served, refused = attempt(lambda: encode_rows(encoder, json.loads(json.dumps(as_json(rows)))))
        if "expected text" in said and re.search("found (time|Timestamp|datetime|Period)", said):
            return said  # JSON has times as text only
        assert (whole is None) == (served is None), f"predict: {said or 'taken'}; server: {refused or 'taken'}"
        if whole is None:
            assert (backwards, turned, again) == (None, None, None)
            return said
        assert np.isfinite(whole.numbers[~np.isnan(whole.numbers)]).all()
        expected = Arrays(
            np.concatenate([one.ids for one in alone]), np.concatenate([one.numbers for one in alone]), {}, {}
        )
        same(whole, expected, "alone")
        same(whole, Arrays(backwards.ids[::-1], backwards.numbers[::-1], {}, {}), "backwards")
        same(whole, turned, "columns in another order")
        same(whole, again, "loaded")
        same(whole, served, "served")
        assert (whole.unseen, whole.missing) == (served.unseen, served.missing)
        widths = zip(encoder.layout().rows, encoder.layout().widths, strict=True)
        most = np.array([rows for rows, width in widths for _ in range(width)], np.int64)
        assert (whole.ids < most).all(), "an id beyond its table"
    return "fitted"


def same(found: Arrays, expected: Arrays, what: str) -> None:
    np.testing.assert_array_equal(found.ids, expected.ids, what)
    np.testing.assert_array_equal(found.numbers, expected.numbers, what)


def attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """What ``call`` gives and nothing, or nothing and the line of its refusal."""
    try:
        return call(), ""
    except ManyheadsError as error:
        said = str(error)
        assert len(said.splitlines()) == 1, f"not one line: {said!r}"
        return None, f"refused: {said!a}"


def edited(spec: FeatureSpec, edits: dict[str, dict[str, Any]]) -> FeatureSpec:
    """The spec after a passage through JSON, with some settings changed in it."""
    stored = json.loads(json.dumps(spec.to_dict()))
    for entry in stored["fields"]:
        entry |= edits.get(entry["name"], {})
    return FeatureSpec.from_dict(stored)


def objects(cells: list[Any]) -> np.ndarray:
    found = np.empty(len(cells), object)
    for number, cell in enumerate(cells):
        found[number] = cell
    return found


def some(rng: Rng, values: list[Any], count: int, kind: Any = object) -> pd.Series:
    return pd.Series(objects([values[n] for n in rng.integers(0, len(values), count)]), dtype=kind)


def gaps(rng: Rng, column: pd.Series) -> pd.Series:
    """With a tenth of the cells missing."""
    return column.mask(pd.Series(rng.random(len(column)) < 0.1))


def stamps(rng: Rng, count: int) -> pd.Series:
    return pd.Series(pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 10**6, count), "min"))


def arrow(rng: Rng, count: int) -> pd.Series:
    import pyarrow

    kinds = {
        pyarrow.float64(): [0.5, None, 3.0],
        pyarrow.int64(): [2**60 + 1, None, -3],
        pyarrow.uint64(): [2**64 - 1, 0, None],
        pyarrow.string(): ["a", None, "b"],
        pyarrow.bool_(): [True, False, None],
        pyarrow.decimal128(10, 2): [decimal.Decimal("1.25"), None, decimal.Decimal("-3.00")],
        pyarrow.list_(pyarrow.int64()): [[1, 2], None, []],
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()): ["x", "y", None],
        pyarrow.timestamp("us"): [datetime.datetime(2024, 1, 31, 5), None],
        pyarrow.date32(): [datetime.date(2024, 1, 31), None],
        pyarrow.time64("us"): [datetime.time(5), None],
        pyarrow.duration("s"): [datetime.timedelta(hours=1), None],
        pyarrow.binary(): [b"a", None],
        pyarrow.struct([("a", pyarrow.int64())]): [{"a": 1}, None],
    }
    kind = list(kinds)[rng.integers(0, len(kinds))]
    return pd.Series([kinds[kind][n] for n in rng.integers(0, len(kinds[kind]), count)], dtype=pd.ArrowDtype(kind))


HOPELESS = ("units mixed", "times of day", "complex", "bytes", "dictionaries", "lists of lists", "mixed", "nothing")
NAMES = ["user_id", "item", "price", "timestamp", "created_at", "candidate_id", "runtime", "text", "0", "x y"]
COLUMNS: dict[str, Callable[[Rng, int], pd.Series]] = {
    "whole numbers": lambda r, n: pd.Series(r.integers(-5, 40, n)),
    "unsigned": lambda r, n: pd.Series(r.integers(2**63 - 3, 2**63 + 3, n, dtype=np.uint64)),
    "integers of any size": lambda r, n: some(r, [0, -1, 2**64, 2**100, -(2**70), 7], n),
    "small integers": lambda r, n: pd.Series(r.integers(0, 3, n).astype(r.choice(["int8", "uint16", "int32"]))),
    "nullable integers": lambda r, n: gaps(r, pd.Series(r.integers(0, 2**60, n)).astype("Int64")),
    "floats": lambda r, n: pd.Series(r.normal(size=n) * 10.0 ** r.integers(-5, 9)),
    "halves": lambda r, n: pd.Series(r.normal(size=n).astype(r.choice(["float16", "float32"]))),
    "odd floats": lambda r, n: pd.Series(r.choice(ODD_NUMBERS[: int(r.integers(2, 15))], n)),
    "float ids": lambda r, n: gaps(r, pd.Series((2**53 + r.integers(0, 9, n)).astype(float))),
    "nullable floats": lambda r, n: gaps(r, pd.Series(r.normal(size=n)).astype("Float64")),
    "texts": lambda r, n: some(r, ODD_TEXTS, n),
    "text": lambda r, n: some(r, ["a", "b", "c", None], n, "str"),
    "numbers as text": lambda r, n: some(r, ["1", "2.5", "03", "1e5"], n),
    "booleans": lambda r, n: pd.Series(r.random(n) < 0.5),
    "booleans with gaps": lambda r, n: some(r, [True, False, None], n),
    "nullable booleans": lambda r, n: gaps(r, pd.Series(r.random(n) < 0.5).astype("boolean")),
    "categories": lambda r, n: some(r, ["a", "b", None], n).astype("category"),
    "categories of numbers": lambda r, n: gaps(r, pd.Series(r.integers(0, 4, n) / 2)).astype("category"),
    "categories of whole numbers": lambda r, n: gaps(r, pd.Series(r.integers(0, 4, n))).astype("category"),
    "intervals": lambda r, n: pd.Series(pd.cut(r.normal(size=n), [-9, -1, 0, 9])),
    "sparse": lambda r, n: pd.Series(pd.arrays.SparseArray(r.choice([0.0, 0.0, 1.5, np.nan], n))),
    "times": lambda r, n: gaps(r, stamps(r, n)),
    "times in a zone": lambda r, n: stamps(r, n).dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"),
    "far times": lambda r, n: some(r, [pd.Timestamp("1677-12-31"), pd.Timestamp("2261-12-31 23:59:59")], n),
    "times as text": lambda r, n: gaps(r, stamps(r, n).dt.strftime("%Y-%m-%dT%H:%M:%S")),
    "times of several zones": lambda r, n: some(r, ["2024-01-31 05:00:00+09:00", "2024-02-01T00:00:00Z"], n),
    "seconds": lambda r, n: pd.Series(1_700_000_000 + r.integers(0, 10**7, n)),
    "milliseconds": lambda r, n: gaps(r, pd.Series(1_700_000_000_000 + r.integers(0, 10**10, n))),
    "microseconds": lambda r, n: pd.Series(1.7e15 + r.integers(0, 10**12, n)),
    "nanoseconds": lambda r, n: pd.Series(1_700_000_000 * 10**9 + r.integers(0, 10**15, n)),
    "units mixed": lambda r, n: some(r, [1_700_000_000, 1_700_000_000_000], n, "int64"),
    "dates": lambda r, n: some(r, [datetime.date(2024, 1, 31), datetime.date(2024, 2, 3), None], n),
    "times of day": lambda r, n: some(r, [datetime.time(5), datetime.time(6)], n),
    "periods": lambda r, n: pd.Series(pd.period_range("2024-01", periods=n, freq="M")),
    "spans": lambda r, n: gaps(r, pd.Series(pd.to_timedelta(r.integers(0, 10**6, n), "s"))),
    "decimals": lambda r, n: some(r, [decimal.Decimal("1.10"), decimal.Decimal("2"), decimal.Decimal("NaN")], n),
    "complex": lambda r, n: pd.Series(r.normal(size=n) + 1j),
    "bytes": lambda r, n: some(r, [b"a", b"b"], n),
    "uuids": lambda r, n: some(r, [uuid.UUID(int=1), uuid.UUID(int=2)], n),
    "dictionaries": lambda r, n: some(r, [{"a": 1}, {"b": {"c": []}}], n),
    "lists": lambda r, n: some(r, [["a", "b"], [], ["b"], None, ("c",)], n),
    "lists of numbers": lambda r, n: some(r, [[1, 2], [1.0], np.array([2.5, 1]), [None, np.nan], [True]], n),
    "lists of lists": lambda r, n: some(r, [[["a"]], [["b"]]], n),
    "sets": lambda r, n: some(r, [{"a", "b"}, frozenset({1, 2.0}), set()], n),
    "separated": lambda r, n: some(r, ["a|b", "b", "| b", "c|a|a", ""], n),
    "mixed": lambda r, n: some(r, [1, "1", 2.0, True, None], n),
    "numbers mixed": lambda r, n: some(r, [1, 2.0, 2.5, None], n),
    "nothing": lambda r, n: pd.Series([None] * n, dtype=object),
    "one value": lambda r, n: pd.Series([7.1] * n),
    "Arrow": arrow,
}
CELLS: list[Callable[[Rng], Any]] = [
    lambda r: None,
    lambda r: ODD_NUMBERS[r.integers(0, len(ODD_NUMBERS))],
    lambda r: ODD_TEXTS[r.integers(0, len(ODD_TEXTS))],
    lambda r: int(r.integers(-(2**62), 2**62)),
    lambda r: int(10 ** r.integers(10, 400)),
    lambda r: True,
    lambda r: [1, [2]],
    lambda r: ["a", None, 1.0],
    lambda r: {"a": {"b": 1}},
    lambda r: pd.Timestamp("2024-02-29 23:59"),
    lambda r: datetime.date(9999, 1, 1),
    lambda r: decimal.Decimal("0.5"),
    lambda r: 1_700_000_000_000,
    lambda r: "now",
]
EDITS: list[tuple[str, Any]] = [
    ("kind", "categorical"),
    ("kind", "numeric"),
    ("kind", "multi"),
    ("kind", "time"),
    ("family", "text"),
    ("family", "number"),
    ("family", "integer"),
    ("family", "boolean"),
    ("family", ["text"]),
    ("buckets", 7),
    ("buckets", 10**30),
    ("buckets", True),
    ("min_count", 3),
    ("min_count", 2.5),
    ("max_values", 1),
    ("max_values", 10**9),
    ("separator", ""),
    ("separator", ","),
    ("parts", ["hour", "day", "month", "weekday"]),
    ("parts", [{}]),
    ("parts", "hour"),
    ("unit", "ms"),
    ("unit", "min"),
    ("scale", "none"),
    ("scale", "log"),
    ("allow_missing", True),
    ("allow_missing", "yes"),
    ("missing", ["a"]),
    ("missing", [1]),
    ("missing", None),
    ("name", 7),
    ("why", "because"),
    ("colour", "red"),
]
