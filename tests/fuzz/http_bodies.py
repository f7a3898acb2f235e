"""Odd bodies for the server of recommenders, and what has to hold for each answer.

    for seed in range(1000):
        body, headers = make(seed, rows)            # rows: what the model takes, as JSON values
        check(status, content, body, ranker)        # of the answer; raises AssertionError where it is not right

Never 500: an answer is 200 or of the class 4xx, with JSON of one short line; where it is 200, its scores are numbers
between 0 and 1 and those of the ranker for the same rows.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np

JSON = {"content-type": "application/json"}
RAW = [  # values that a JSON writer would not give
    "9" * 400,
    "-" + "9" * 5000,
    "1e400",
    "-1e400",
    "1e-400",
    "NaN",
    "Infinity",
    "-Infinity",
    "[" * 200 + "]" * 200,
    "[" * 3000 + "]" * 3000,
    "[" * 100_000,
    '{"a":' * 500 + "1" + "}" * 500,
    '"\\ud800"',
    '"\\udfff\\ud800"',
    '"\\u0000"',
    '"unended',
    "01",
    "+1",
    ".5",
    "0x10",
    "'a'",
    "undefined",
    "nul",
    "",
]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**53 + 1,
    2**63,
    2**64,
    -(2**63) - 1,
    10**60,
    -0.0,
    0.5,
    1e15,
    1e300,
    5e-324,
    "",
    " ",
    "a",
    "?",
    "nan",
    "today",
    "now",
    "2024-02-30",
    "2024-01-31",
    "2024-01-31T05:00:00+09:00",
    "9999-12-31",
    "0001-01-01",
    1_700_000_000,
    1_700_000_000_000,
    "a|b||c",
    "x" * 10_000,
    "日本",
    [],
    [None],
    ["a", 1, 1.0, True],
    [["a"]],
    {},
    {"a": {"b": [1]}},
]


def make(seed: int, rows: list[dict[str, Any]]) -> tuple[bytes, dict[str, str]]:
    """A body and its headers: a good request that was changed in one to three places, or no request at all."""
    rng = np.random.default_rng(seed)
    asked = request(rng, rows)
    raw: dict[str, str] = {}
    for _ in range(int(rng.integers(0, 3))):
        change(rng, asked, raw)
    text = json.dumps(asked, ensure_ascii=bool(rng.random() < 0.5))
    for mark, value in raw.items():
        text = text.replace(f'"{mark}"', value)
    body = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        body = damaged(rng, body)
    headers = dict(JSON)
    if rng.random() < 0.1:
        kinds = ["text/plain", "application/json; charset=utf-8", "application/json;charset=utf-16", "", "a/b/c", ";"]
        headers["content-type"] = str(rng.choice(kinds))
    return body, headers


def request(rng: np.random.Generator, rows: list[dict[str, Any]]) -> Any:
    """Whole rows, or a request and its candidates split by some of the fields."""
    drawn = [copy.deepcopy(rows[n]) for n in rng.integers(0, len(rows), rng.integers(1, 6))]
    if rng.random() < 0.5:
        return {"rows": drawn}
    names = list(rows[0])
    shared = [name for name in names if rng.random() < 0.4]
    return {
        "request": {name: drawn[0][name] for name in shared},
        "candidates": [{name: row[name] for name in names if name not in shared} for row in drawn],
    }


def change(rng: np.random.Generator, asked: Any, raw: dict[str, str]) -> None:
    """Changes one place of a request; a mark stands for a raw value."""
    places = [key for key in asked if isinstance(asked[key], dict | list)]
    place = str(rng.choice(places)) if places else ""
    inner = asked.get(place)
    row = inner[rng.integers(0, len(inner))] if isinstance(inner, list) and inner else inner
    value: Any = copy.deepcopy(VALUES[rng.integers(0, len(VALUES))])
    if rng.random() < 0.3:
        mark = f"@{len(raw)}@"
        raw[mark], value = RAW[rng.integers(0, len(RAW))], mark
    turn = rng.random()
    if turn < 0.6 and isinstance(row, dict) and row:
        row[str(rng.choice(list(row)))] = value
    elif turn < 0.7 and isinstance(row, dict) and row:
        del row[str(rng.choice(list(row)))]
    elif turn < 0.8 and isinstance(row, dict):
        row[str(rng.choice(["more", "\ud800", "", "rows", "x" * 5000]))] = value
    elif turn < 0.9 and isinstance(inner, list):
        inner.insert(int(rng.integers(0, len(inner) + 1)), value)
    else:
        asked[str(rng.choice(["rows", "request", "candidates", "else"]))] = value


def damaged(rng: np.random.Generator, body: bytes) -> bytes:
    """The body cut, with other bytes in it, in another encoding, said twice, or something else altogether."""
    place = int(rng.integers(0, len(body) + 1))
    noise = rng.integers(0, 256, int(rng.integers(1, 9)), dtype=np.uint8).tobytes()
    text = body.decode("utf-8", "replace")
    made = [
        body[:place],
        body[:place] + noise + body[place:],
        body[:place] + noise + body[place + len(noise) :],
        b"\xef\xbb\xbf" + body,
        text.encode("utf-16"),
        text.encode("utf-32"),
        body + body,
        body.replace(b":", b":" + b" " * 50),
        body.replace(b"{", b'{"rows": 1, "rows": 2, ', 1),
        body.replace(b'"age"', b'"age": 1, "age"', 1),
        b"",
        noise,
        b"null",
        b"[]",
        b"0",
        b'"rows"',
    ]
    return made[rng.integers(0, len(made))]


def check(status: int, content: bytes, body: bytes, ranker: Any) -> None:
    """See the module; ``status`` and ``content`` are the answer to ``body``."""
    assert status == 200 or 400 <= status < 500, (status, content[:300], body[:300])
    answer = json.loads(content)
    if status != 200:
        assert set(answer) == {"error"}
        assert 0 < len(answer["error"]) <= 500
        assert len(answer["error"].splitlines()) == 1
        return
    asked = json.loads(body)
    shared = asked.get("request", {})
    rows = asked["rows"] if "rows" in asked else [{**candidate, **shared} for candidate in asked["candidates"]]
    expected = ranker.score_rows(rows).probabilities
    found = np.array([answer["scores"][task] for task in ranker.labels.tasks]).T
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_allclose(found, expected, atol=1e-5)
