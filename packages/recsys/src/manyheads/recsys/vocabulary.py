"""From values to rows of an embedding table: a vocabulary with counts, or hashing with its collisions counted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from manyheads.recsys.layout import FIRST, UNSEEN


def hashed(values: Iterable[Any], buckets: int) -> np.ndarray:
    """``BLAKE2b(str(value)) mod buckets``: the same on every machine, in every process and version."""
    digests = (hashlib.blake2b(str(value).encode(), digest_size=8).digest() for value in values)
    return np.fromiter((int.from_bytes(d, "little") % buckets for d in digests), np.int64)


@dataclass
class Counter:
    """Counts distinct values over any number of chunks."""

    counts: pd.Series = field(default_factory=lambda: pd.Series(dtype=np.int64))

    def update(self, values: np.ndarray) -> None:
        new = pd.Series(values).value_counts(sort=False)
        self.counts = new if len(self.counts) == 0 else self.counts.add(new, fill_value=0).astype(np.int64)


@dataclass(frozen=True)
class Vocabulary:
    """Values in the order of their rows: by falling count, then by value."""

    values: np.ndarray  # int64 or objects that are str
    rare: int = 0  # distinct values below the minimum count

    @classmethod
    def of(cls, counter: Counter, min_count: int) -> Vocabulary:
        counts = counter.counts.sort_index()
        kept = counts[counts >= min_count].sort_values(ascending=False, kind="stable")
        kind = np.int64 if pd.api.types.is_integer_dtype(kept.index) and len(kept) else object
        return cls(kept.index.to_numpy(kind), len(counts) - len(kept))

    @property
    def rows(self) -> int:
        return FIRST + len(self.values)

    def lookup(self, values: np.ndarray) -> np.ndarray:
        place = self._index.get_indexer(pd.Index(values, dtype=self.values.dtype))
        return np.where(place < 0, UNSEEN, place + FIRST)

    def arrays(self) -> dict[str, np.ndarray]:
        """Integers as they are, texts as UTF-8 bytes with their ends."""
        if self.values.dtype == np.int64:
            return {"integers": self.values}
        coded = [value.encode("utf-8", "surrogatepass") for value in self.values]
        ends = np.cumsum([len(c) for c in coded], dtype=np.int64)
        return {"bytes": np.frombuffer(b"".join(coded), np.uint8), "ends": ends}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], rare: int) -> Vocabulary:
        if "integers" in arrays:
            return cls(arrays["integers"], rare)
        raw, start, values = arrays["bytes"].tobytes(), 0, []
        for end in arrays["ends"].tolist():
            values.append(raw[start:end].decode("utf-8", "surrogatepass"))
            start = end
        return cls(np.array(values, object), rare)

    @property
    def _index(self) -> pd.Index:
        found = self.__dict__.get("index")
        if found is None:
            found = pd.Index(self.values)
            object.__setattr__(self, "index", found)
        return found


@dataclass(frozen=True)
class Buckets:
    """Hashed values; ``values`` distinct ones were met at fitting, ``shared`` of them have a bucket with others."""

    buckets: int
    values: int = 0
    shared: int = 0

    @classmethod
    def of(cls, counter: Counter, buckets: int) -> Buckets:
        used = np.bincount(hashed(counter.counts.index, buckets), minlength=1)
        return cls(buckets, len(counter.counts), int(used[used > 1].sum()))

    @property
    def rows(self) -> int:
        return FIRST + self.buckets

    @property
    def collision_rate(self) -> float:
        """The share of the distinct values that share their bucket with another."""
        return self.shared / self.values if self.values else 0.0

    def lookup(self, values: np.ndarray) -> np.ndarray:
        codes, distinct = pd.factorize(values)
        return hashed(distinct, self.buckets)[codes] + FIRST

    def arrays(self) -> dict[str, np.ndarray]:
        return {}
