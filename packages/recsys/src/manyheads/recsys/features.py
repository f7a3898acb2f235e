"""Which columns of a table are features, and as what: inferred from the table, edited as a JSON file.

    spec = infer_spec(frame, label="clicked")
    spec.save("spec.json")          # change kinds, minimum counts, hashing …
    spec = FeatureSpec.load("spec.json")

Kinds: ``categorical`` (a table row for each value), ``multi`` (several values in a cell, their mean), ``numeric`` (one
scaled number), ``time`` (its parts, each categorical).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from manyheads.core.errors import ArgumentError, DataError, UnknownNameError
from manyheads.lab.files import write_atomically
from manyheads.recsys.columns import MARKS, Family, as_family, check_frame, family_of

FORMAT = 1
Kind = Literal["categorical", "multi", "numeric", "time"]
Part = Literal["hour", "weekday", "day", "month"]
PART_SIZES: dict[str, int] = {"hour": 24, "weekday": 7, "day": 31, "month": 12}
_USUAL: tuple[Part, ...] = ("hour", "weekday", "month")
_ID = re.compile(r"(^|[_\W])(id|ids|code|zip|user|item|uid|iid|postcode)$", re.IGNORECASE)
_TIME = re.compile(r"time|date|stamp|^ts$", re.IGNORECASE)


@dataclass(frozen=True)
class Field:
    """One column and what is made of it; only what its kind needs is read."""

    name: str
    kind: Kind
    family: Family
    """What the column held when it was inferred: text, integer, number, boolean, time or list."""
    min_count: int = 1
    """categorical, multi: rarer values share the row of the unseen ones."""
    buckets: int | None = None
    """categorical, multi: hash values into so many rows instead of keeping a vocabulary."""
    separator: str = "|"
    """multi: what stands between the values of a text cell."""
    max_values: int = 8
    """multi: more values in a cell than this are cut off."""
    scale: Literal["standard", "log", "none"] = "standard"
    """numeric: mean 0 and deviation 1, the same after sign(x) log(1 + |x|), or as it is."""
    allow_missing: bool = False
    """numeric: whether a missing number is taken (with a row of its own) or refused."""
    parts: tuple[Part, ...] = ()
    """time: which parts."""
    missing: tuple[str, ...] = ()
    """text: values that mean 'not known', such as ?; the empty text always does."""
    why: str = ""
    """Why it was inferred so."""

    def __post_init__(self) -> None:
        place = f"field {self.name!r}"
        for name, value, allowed in (
            ("kind", self.kind, get_args(Kind)),
            ("family", self.family, get_args(Family)),
            ("scale", self.scale, ("standard", "log", "none")),
        ):
            if value not in allowed:
                raise ArgumentError(f"{place}: {name}: found {value!r}, expected one of {', '.join(allowed)}")
        for name, number in (("min_count", self.min_count), ("buckets", self.buckets), ("max_values", self.max_values)):
            if number is not None and (not isinstance(number, int) or number < 1):
                raise ArgumentError(f"{place}: {name}: found {number!r}, expected a whole number from 1 on")
        unknown = [part for part in self.parts if part not in PART_SIZES]
        if unknown or (self.kind == "time" and not self.parts):
            raise ArgumentError(f"{place}: parts: found {list(self.parts)}, expected some of {', '.join(PART_SIZES)}")
        if self.kind == "numeric" and self.family not in ("integer", "number", "boolean"):
            raise ArgumentError(f"{place}: kind: found numeric for a column of {self.family}, expected categorical")
        if self.kind == "multi" and self.family not in ("text", "list"):
            raise ArgumentError(f"{place}: kind: found multi for a column of {self.family}, expected text or lists")
        if self.kind == "categorical" and self.family in ("list", "time"):
            raise ArgumentError(f"{place}: kind: found categorical for a column of {self.family}, expected another")


@dataclass(frozen=True)
class FeatureSpec:
    """The features of a table."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        if not names:
            raise ArgumentError("feature spec: found no fields, expected at least one")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ArgumentError(f"feature spec: field {twice[0]!r} is there twice, expected once")

    @property
    def columns(self) -> list[str]:
        return [field.name for field in self.fields]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; what is the default is left out."""
        plain = [
            {k: v for k, v in asdict(field).items() if k in ("name", "kind", "family") or v != _DEFAULTS.get(k)}
            for field in self.fields
        ]
        return {"format": FORMAT, "fields": plain}

    @classmethod
    def from_dict(cls, stored: Any, place: str = "feature spec") -> FeatureSpec:
        """Raises :class:`ArgumentError` for anything but what :meth:`to_dict` gives."""
        if not isinstance(stored, dict) or not isinstance(stored.get("fields"), list):
            raise ArgumentError(f"{place}: found no list 'fields', expected what 'manyheads recsys spec' writes")
        if stored.get("format") != FORMAT:
            raise ArgumentError(f"{place}: found format {stored.get('format')!r}, expected {FORMAT}: infer it again")
        known = [f.name for f in fields(Field)]
        made = []
        for number, entry in enumerate(stored["fields"]):
            if not isinstance(entry, dict) or not {"name", "kind", "family"} <= entry.keys():
                raise ArgumentError(f"{place}: fields[{number}]: expected name, kind and family")
            for key in entry:
                if key not in known:
                    raise UnknownNameError(f"setting in {place}, field {entry['name']!r},", key, known)
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
            made.append(Field(**values))
        return cls(tuple(made))

    def save(self, path: str | Path) -> None:
        write_atomically(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False).encode() + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> FeatureSpec:
        """Raises :class:`DataError` for a file that is not JSON, :class:`ArgumentError` for what is in it."""
        try:
            stored = json.loads(Path(path).read_text())
        except (ValueError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: found no JSON ({error}), expected what 'manyheads recsys spec' writes") from error
        return cls.from_dict(stored, str(path))


_DEFAULTS = {f.name: f.default for f in fields(Field)}


def infer_spec(
    frame: pd.DataFrame,
    *,
    label: str | Sequence[str] = (),
    ignore: Sequence[str] = (),
    min_count: int = 1,
    hash_above: int | None = None,
    buckets: int = 100_000,
) -> FeatureSpec:
    """What each column most likely is; ``why`` in each field says what decided.

    ``hash_above``: columns with more distinct values are hashed into ``buckets`` rows. Raises :class:`DataError` for an
    empty table, an absent label or ignored column, and a column of which every value is missing or the kinds are mixed.
    """
    left_out = [label] if isinstance(label, str) else list(label)
    left_out += ignore
    check_frame(frame, left_out, "table")
    found = []
    for name in frame.columns:
        if name in left_out:
            continue
        if not isinstance(name, str):
            raise DataError(f"table: column {name!r} has no text as its name: rename with df.columns.astype(str)")
        check_frame(frame, [name], "table")
        found.append(_infer(frame[name], min_count, hash_above, buckets))
    if not found:
        raise DataError("table: found no column besides the label, expected at least one feature")
    return FeatureSpec(tuple(found))


def _infer(column: pd.Series, min_count: int, hash_above: int | None, buckets: int) -> Field:
    name = str(column.name)
    if column.isna().all():
        raise DataError(
            f"column {name!r}: every value is missing, expected some: drop it, ignore it (--ignore) or fill it"
        )
    family = family_of(column)
    if family == "list":
        return Field(name, "multi", family, min_count=min_count, max_values=_most(column.dropna()), why="lists")
    if family == "time":
        return _time_field(column, family)
    values = column.dropna()
    distinct = int(values.nunique())
    hashed = buckets if hash_above is not None and distinct > hash_above else None
    if family == "text":
        marks = tuple(mark for mark in MARKS if values.eq(mark).any())
        real = values[~values.isin(["", *marks])].astype(str)
        if len(real) == 0:
            raise DataError(
                f"column {name!r}: every value is missing, expected some: drop it, ignore it (--ignore) or fill it"
            )
        sample = real.iloc[:1000]
        if sample.str.match(r"\d{4}-\d\d-\d\d").all() and pd.to_datetime(sample, errors="coerce").notna().all():
            return _time_field(column, family)
        separator = next((s for s in ("|", ";") if sample.str.contains(s, regex=False).mean() >= 0.05), None)
        if separator is not None:
            most = int(real.str.count(re.escape(separator)).max()) + 1
            why = f"text with {separator!r} between values, at most {most} in a cell"
            settings: dict[str, Any] = {"separator": separator, "max_values": most, "buckets": hashed}
            return Field(name, "multi", family, min_count, missing=marks, why=why, **settings)
        why = f"text, {distinct} values" + (", nearly one a row: consider leaving it out" if _unique(real) else "")
        if sample.str.contains(",", regex=False).mean() >= 0.05:
            why += "; has commas: if they part values, make it multi with separator ','"
        return Field(name, "categorical", family, min_count, hashed, missing=marks, why=why)
    if family in ("integer", "number") and _TIME.search(name) and values.between(3e8, 4.1e12).all():
        return _time_field(column, family)
    whole = family == "integer" or (family == "number" and bool(np.equal(np.mod(values, 1), 0).all()))
    if family == "boolean" or (whole and (distinct <= 12 or _ID.search(name))):
        why = "name of an id" if _ID.search(name) else f"{family}, {distinct} values"
        return Field(name, "categorical", "integer" if whole else family, min_count, hashed, why=why)
    numbers = values.astype("float64")
    skew = float(numbers[np.isfinite(numbers)].skew())
    scale = "log" if abs(skew) > 2 else "standard"
    why = f"{family}, {distinct} values, skewness {skew:.2g}"
    return Field(name, "numeric", family, scale=scale, allow_missing=len(values) < len(column), why=why)


def _time_field(column: pd.Series, family: Family) -> Field:
    stamps, missing = as_family(column, "time")
    times = pd.DatetimeIndex(stamps[~missing])
    # "day" is only worth a table of its own where it is asked for
    parts = tuple(p for p in _USUAL if len(np.unique(part_of(times, p))) > 1) or ("weekday",)
    return Field(str(column.name), "time", family, parts=parts, why=f"{family} read as times")


def part_of(times: pd.DatetimeIndex, part: Part) -> np.ndarray:
    """From 0 on; Monday is weekday 0."""
    names = {"hour": "hour", "weekday": "day_of_week", "day": "day", "month": "month"}
    return getattr(times, names[part]).to_numpy() - (1 if part in ("day", "month") else 0)


def _unique(values: pd.Series) -> bool:
    return len(values) >= 100 and values.nunique() > 0.9 * len(values)


def _most(lists: pd.Series) -> int:
    return max(1, int(lists.map(len).max()))
