"""Map values to rows of an embedding table: a vocabulary with counts, or hashing with counted collisions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from manyheads.recsys.features.layout import FIRST, UNSEEN

# up to so many values, a dictionary is faster than an index
FEW = 64


def hashed(values: Iterable[Any], buckets: int) -> np.ndarray:
    """Return ``BLAKE2b(str(value)) mod buckets``: the same on every machine, in every process and version."""
    texts = (str(value).encode("utf-8", "surrogatepass") for value in values)
    digests = (hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.fromiter((int.from_bytes(d, "little") % buckets for d in digests), np.int64)


@dataclass
class Counter:
    """Count distinct values over any number of chunks."""

    counts: dict[Any, int] = field(default_factory=dict)

    def update(self, values: np.ndarray) -> None:
        codes, distinct = pd.factorize(values)
        for value, count in zip(distinct.tolist(), np.bincount(codes).tolist(), strict=True):
            self.counts[value] = self.counts.get(value, 0) + count


@dataclass(frozen=True)
class Vocabulary:
    """The values in the order of their rows: most frequent first, then by value."""

    # int64, objects (str), or objects (int) if one needs more than 64 bits
    values: np.ndarray
    # number of distinct values below the minimum count
    rare: int = 0

    @classmethod
    def of(cls, counter: Counter, min_count: int) -> Vocabulary:
        counts = counter.counts
        kept = sorted((value for value in counts if counts[value] >= min_count), key=lambda v: (-counts[v], v))
        return cls(_array(kept), len(counts) - len(kept))

    @property
    def rows(self) -> int:
        return FIRST + len(self.values)

    def lookup(self, values: np.ndarray) -> np.ndarray:
        if len(values) > FEW and values.dtype == self.values.dtype:
            place = self._index.get_indexer(pd.Index(values, dtype=self.values.dtype))
            return np.where(place < 0, UNSEEN, place + FIRST)
        places = self._places
        return np.fromiter((places.get(value, UNSEEN) for value in values.tolist()), np.int64, len(values))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the values as arrays to save.

        Whole numbers as int64, or as decimal digits if one needs more than 64 bits; texts as UTF-8 bytes with their
        end offsets.
        """
        if self.values.dtype == np.int64:
            return {"integers": self.values}
        coded = [str(value).encode("utf-8", "surrogatepass") for value in self.values]
        ends = np.cumsum([len(c) for c in coded], dtype=np.int64)
        large = len(self.values) > 0 and isinstance(self.values[0], int)
        return {"digits" if large else "bytes": np.frombuffer(b"".join(coded), np.uint8), "ends": ends}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], rare: int) -> Vocabulary:
        if "integers" in arrays:
            return cls(arrays["integers"], rare)
        raw, start, values = arrays["digits" if "digits" in arrays else "bytes"].tobytes(), 0, []
        for end in arrays["ends"].tolist():
            values.append(raw[start:end].decode("utf-8", "surrogatepass"))
            start = end
        return cls(np.array([int(v) for v in values] if "digits" in arrays else values, object), rare)

    @property
    def _index(self) -> pd.Index:
        return self._kept("index", lambda: pd.Index(self.values))

    @property
    def _places(self) -> dict[Any, int]:
        return self._kept("places", lambda: {value: FIRST + n for n, value in enumerate(self.values.tolist())})

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        """Build on first use: a table of many rows needs the index, a single served row the dictionary."""
        if name not in self.__dict__:
            object.__setattr__(self, name, make())
        return self.__dict__[name]


def _array(values: list[Any]) -> np.ndarray:
    if values and isinstance(values[0], int) and all(-(2**63) <= value < 2**63 for value in values):
        return np.array(values, np.int64)
    return np.array(values, object)


@dataclass(frozen=True)
class Buckets:
    """Hash buckets; of ``values`` distinct values at fitting, ``shared`` collide with another."""

    buckets: int
    values: int = 0
    shared: int = 0

    @classmethod
    def of(cls, counter: Counter, buckets: int) -> Buckets:
        used = np.bincount(hashed(counter.counts, buckets), minlength=1)
        return cls(buckets, len(counter.counts), int(used[used > 1].sum()))

    @property
    def rows(self) -> int:
        return FIRST + self.buckets

    @property
    def collision_rate(self) -> float:
        """Share of the distinct values that collide with another."""
        return self.shared / self.values if self.values else 0.0

    def lookup(self, values: np.ndarray) -> np.ndarray:
        codes, distinct = pd.factorize(values)
        return hashed(distinct, self.buckets)[codes] + FIRST

    def arrays(self) -> dict[str, np.ndarray]:
        return {}
