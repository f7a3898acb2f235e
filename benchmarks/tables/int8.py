"""Tables of weights in 8 bits: keyword networks and recommenders."""

from __future__ import annotations

from collections.abc import Callable

from rows import Row, markdown, not_measured, read_if_measured


def int8_spotters() -> str:
    """Compare three forms of 8-bit weights in keyword networks."""
    return _int8(lambda row: not row["model"].startswith("adult"), "words that change", "other_words")


def int8_recommenders() -> str:
    """Compare three forms of 8-bit weights in recommenders."""
    return _int8(lambda row: row["model"].startswith("adult"), "AUC", "auc")


def _int8(chosen: Callable[[Row], bool], header: str, name: str) -> str:
    rows = [row for row in read_if_measured("int8") if chosen(row)]
    if not rows:
        return not_measured("int8")
    shown = [
        (row["model"], row["form"], row["error"], row[name], row["us_1"], row["us_many"], row["at_once"])
        for row in rows
    ]
    head = ("model", "weights", "relative error", header, "us, one", "us, many", "at once")
    return f"{markdown(head, shown)}\n\n{rows[0]['machine']}; `{rows[0]['command']}`."


TABLES = (int8_spotters, int8_recommenders)
