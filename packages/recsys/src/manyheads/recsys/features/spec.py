"""Feature spec: the features of a table and their types, inferred from the table and edited as a JSON file.

    spec = infer_spec(frame, label="clicked")
    spec.save("spec.json")          # edit kinds, minimum counts, hashing …
    spec = FeatureSpec.load("spec.json")

Kinds: ``categorical`` (one row of an embedding table per value), ``multi`` (several values per cell, the mean of their
rows), ``numeric`` (one scaled number), ``time`` (parts such as the hour, each categorical; an unseen part takes the row
of the nearest seen part of its cycle).
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

from manyheads.core.errors import ArgumentError, DataError, ManyheadsError, UnknownNameError
from manyheads.lab.data.files import write_atomically
from manyheads.recsys.features.cells import MARKS, SECONDS, Family, Unit
from manyheads.recsys.features.columns import as_family, epoch_unit, family_of, read
from manyheads.recsys.features.frames import as_frame, check_frame

FORMAT = 1
Kind = Literal["categorical", "multi", "numeric", "time"]
Part = Literal["hour", "weekday", "day", "month"]
PART_SIZES: dict[str, int] = {"hour": 24, "weekday": 7, "day": 31, "month": 12}
# days of one cycle of the parts that are inferred
_CYCLES: dict[Part, int] = {"hour": 1, "weekday": 7, "month": 365}
# maximum of ``max_values`` if it is inferred from the widest cell
_MAX_VALUES = 256
# maximum of ``buckets``: ids are int32
_MAX_BUCKETS = 2**31 - 4
_ID = re.compile(r"(^|[_\W])(id|ids|code|zip|user|item|uid|iid|postcode)$", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_TIMES = {"time", "date", "datetime", "timestamp", "stamp", "ts", "epoch", "unixtime"}
_NO_TIMES = {"id", "ids", "code", "count", "counts", "index", "key", "hash", "num", "number", "zone"}


@dataclass(frozen=True)
class Field:
    """One column and its encoding; a setting that its kind does not need is ignored."""

    name: str
    kind: Kind
    family: Family
    """Family of the values at inference: text, integer, number, boolean, time or list."""
    min_count: int = 1
    """categorical, multi: values that occur less often are out of vocabulary and share the row of unseen values."""
    buckets: int | None = None
    """categorical, multi: number of hash buckets; without it the values have a vocabulary."""
    separator: str = "|"
    """multi: separator of the values of a text cell."""
    max_values: int = 8
    """multi: only the first so many values of a cell are read."""
    scale: Literal["standard", "log", "none"] = "standard"
    """numeric: standard: mean 0 and deviation 1; log: the same after sign(x) log(1 + |x|); none: unchanged."""
    allow_missing: bool = False
    """numeric: accept missing numbers (they have their own embedding) instead of refusing them."""
    parts: tuple[Part, ...] = ()
    """time: the parts, of hour, weekday, day and month."""
    unit: Unit = "s"
    """time: unit of numbers that count since 1970: s, ms, us or ns."""
    missing: tuple[str, ...] = ()
    """text: values that mean missing, such as ?; the empty text always does."""
    why: str = ""
    """The reason of the inference."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ArgumentError(f"field: name: found {self.name!r}, expected text")
        place = f"field {self.name!r}"
        for name, value, allowed in (
            ("kind", self.kind, get_args(Kind)),
            ("family", self.family, get_args(Family)),
            ("scale", self.scale, ("standard", "log", "none")),
            ("unit", self.unit, get_args(Unit)),
            ("allow_missing", self.allow_missing, (True, False)),
        ):
            if not any(value is one or (isinstance(value, str) and value == one) for one in allowed):
                said = ", ".join(map(str, allowed))
                raise ArgumentError(f"{place}: {name}: found {value!r}, expected one of {said}")
        for name, number, most in (
            ("min_count", self.min_count, 2**63),
            ("buckets", self.buckets, _MAX_BUCKETS),
            ("max_values", self.max_values, 4096),
        ):
            if name == "buckets" and number is None:
                continue
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ArgumentError(f"{place}: {name}: found {number!r}, expected a whole number from 1 on")
            if number > most:
                raise ArgumentError(f"{place}: {name}: found {number}, expected at most {most}")
        if not isinstance(self.separator, str) or not self.separator:
            raise ArgumentError(f"{place}: separator: found {self.separator!r}, expected text, such as |")
        for name, several in (("parts", self.parts), ("missing", self.missing)):
            if not isinstance(several, tuple) or not all(isinstance(one, str) for one in several):
                raise ArgumentError(f"{place}: {name}: found {several!r}, expected a list of texts")
        unknown = [part for part in self.parts if part not in PART_SIZES]
        if unknown or (self.kind == "time" and not self.parts) or len(set(self.parts)) < len(self.parts):
            said = ", ".join(PART_SIZES)
            raise ArgumentError(f"{place}: parts: found {list(self.parts)}, expected some of {said}, each once")
        if self.kind == "time" and self.family not in ("text", "integer", "number", "time"):
            raise ArgumentError(f"{place}: kind: found time for a column of {self.family}, expected another")
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
        """Return a JSON document; default values are left out."""
        plain = [
            {k: v for k, v in asdict(field).items() if k in ("name", "kind", "family") or v != _DEFAULTS.get(k)}
            for field in self.fields
        ]
        return {"format": FORMAT, "fields": plain}

    @classmethod
    def from_dict(cls, stored: Any, place: str = "feature spec") -> FeatureSpec:
        """Build a spec from :meth:`to_dict`. Raises :class:`ArgumentError` for any other content."""
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
        """Read a spec file.

        Raises :class:`DataError` for a missing file or one that is not JSON, :class:`ArgumentError` for bad content.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}), expected a feature spec") from error
        except (ValueError, RecursionError) as error:
            said = " ".join(str(error).split())[:160]
            raise DataError(f"{path}: found no JSON ({said}), expected what 'manyheads recsys spec' writes") from error
        try:
            return cls.from_dict(stored, str(path))
        except ManyheadsError as error:
            if str(path) in str(error):
                raise
            raise ArgumentError(f"{path}: {error}") from error


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
    """Infer the kind of each column; ``why`` of each field has the reason.

    Args:
        frame: the table.
        label: label columns; they are no features.
        ignore: columns that are not used as features.
        min_count: values that occur less often are out of vocabulary.
        hash_above: columns with more distinct values are hashed.
        buckets: number of hash buckets of such a column.

    Raises:
        DataError: an empty table, a missing label or ignored column, or a column whose values are all missing or of
            several families.
    """
    frame = as_frame(frame)
    left_out = [label] if isinstance(label, str) else list(label)
    left_out += [ignore] if isinstance(ignore, str) else ignore
    check_frame(frame, left_out, "table")
    families: dict[str, Family] = {}
    # check every column before the slower inference of any
    for name in frame.columns:
        if name in left_out:
            continue
        if not isinstance(name, str):
            raise DataError(f"table: column {name!r} has no text as its name: rename with df.columns.astype(str)")
        check_frame(frame, [name], "table")
        families[name] = family_of(frame[name])
    if not families:
        raise DataError("table: found no column besides the label, expected at least one feature")
    return FeatureSpec(tuple(_infer(frame[name], families[name], min_count, hash_above, buckets) for name in families))


def _infer(column: pd.Series, family: Family, min_count: int, hash_above: int | None, buckets: int) -> Field:
    name = str(column.name)
    if family == "list":
        lists = as_family(column, family)
        most = max(map(len, lists.values[~lists.missing]))
        return Field(
            name,
            "multi",
            family,
            min_count=min_count,
            max_values=min(max(1, most), _MAX_VALUES),
            why=_multi_reason(most, "lists"),
        )
    if family == "time":
        return _time_field(column, family)
    marks = _missing_marks(column) if family == "text" else ()
    found = read(column, family, marks)
    values = found.values[~found.missing & ~found.bad]
    if len(values) == 0:
        raise DataError(
            f"column {name!r}: every value is missing, expected some: drop it, ignore it (--ignore) or fill it"
        )
    distinct = len(pd.unique(values))
    hashed = buckets if hash_above is not None and distinct > hash_above else None
    if family == "text":
        if _are_dates(values[:1000]):
            return _time_field(column, family, marks)
        separator = next((s for s in ("|", ";") if _share(values[:1000], s) >= 0.05), None)
        if separator is not None:
            most = max(value.count(separator) for value in values) + 1
            why = _multi_reason(most, f"text with {separator!r} between values")
            return Field(
                name,
                "multi",
                family,
                min_count,
                hashed,
                separator=separator,
                max_values=min(most, _MAX_VALUES),
                missing=marks,
                why=why,
            )
        unique = len(values) >= 100 and distinct > 0.9 * len(values)
        why = f"text, {distinct} values" + (", nearly one a row: consider leaving it out" if unique else "")
        if _share(values[:1000], ",") >= 0.05:
            why += "; has commas: if they part values, make it multi with separator ','"
        return Field(name, "categorical", family, min_count, hashed, missing=marks, why=why)
    if family != "boolean" and _is_time_name(name) and (unit := epoch_unit(column)) is not None:
        return _time_field(column, family, unit=unit)
    whole = family == "integer" or (family == "number" and bool(np.equal(np.mod(values, 1), 0).all()))
    if family == "boolean" or (whole and (distinct <= 12 or _ID.search(name))):
        why = "name of an id" if _ID.search(name) else f"{family}, {distinct} values"
        return Field(name, "categorical", "integer" if whole else family, min_count, hashed, why=why)
    skew = _skewness(values)
    scale = "log" if abs(skew) > 2 else "standard"
    why = f"{family}, {distinct} values, skewness {skew:.2g}"
    return Field(name, "numeric", family, scale=scale, allow_missing=bool(found.missing.any()), why=why)


def _time_field(column: pd.Series, family: Family, marks: tuple[str, ...] = (), unit: Unit = "s") -> Field:
    found = as_family(column, "time", marks, unit)
    stamps = found.values[~found.missing]
    varied = [p for p in _CYCLES if len(np.unique(part_of(stamps, p))) > 1]
    days = float(np.ptp(stamps)) / (86400 * 10**9) if len(stamps) else 0.0
    # with less than two cycles, the newest rows have parts that older rows lack: their month would be noise
    parts = tuple(p for p in varied if days >= 2 * _CYCLES[p]) or tuple(varied[:1]) or ("weekday",)
    short = [p for p in varied if p not in parts]
    why = f"{SECONDS[unit]} since 1970" if family in ("integer", "number") else family
    why += " read as times"
    if short:
        need = ", ".join(f"{2 * _CYCLES[p]} days" for p in short)
        why += f"; they span {days:.3g} days: {', '.join(short)} left out, worth a part from {need} on"
    return Field(str(column.name), "time", family, parts=parts, unit=unit, missing=marks, why=why)


def part_of(stamps: np.ndarray, part: str) -> np.ndarray:
    """Return a part of times in nanoseconds since 1970, UTC, counted from 0; Monday is weekday 0."""
    if part == "hour":
        return stamps // (3600 * 10**9) % 24
    days = stamps // (86400 * 10**9)
    if part == "weekday":
        # 1 January 1970 was a Thursday
        return (days + 3) % 7
    months = days.astype("datetime64[D]").astype("datetime64[M]")
    if part == "month":
        return months.astype(np.int64) % 12
    return days - months.astype("datetime64[D]").astype(np.int64)


def _is_time_name(name: str) -> bool:
    words = {word.lower() for word in _WORD.findall(name)}
    last = _WORD.findall(name)[-1:]
    return not words & _NO_TIMES and (bool(words & _TIMES) or last == ["at"])


def _missing_marks(column: pd.Series) -> tuple[str, ...]:
    values = read(column, "text").values
    return tuple(mark for mark in MARKS if (values == mark).any())


def _are_dates(values: np.ndarray) -> bool:
    if not all(re.match(r"\d{4}-\d\d-\d\d", value) for value in values):
        return False
    return not read(pd.Series(values, dtype=object), "time").bad.any()


def _share(values: np.ndarray, part: str) -> float:
    return sum(part in value for value in values) / len(values)


def _multi_reason(most: int, what: str) -> str:
    return f"{what}, at most {most} in a cell" + (
        f", of which the first {_MAX_VALUES} are read" if most > _MAX_VALUES else ""
    )


def _skewness(values: np.ndarray) -> float:
    """Return the skewness, 0 for a constant column; of values scaled to at most 1, so that no power overflows."""
    plain = values.astype(np.float64)
    return float(np.nan_to_num(pd.Series(plain / max(1e-300, float(np.abs(plain).max()))).skew()))
