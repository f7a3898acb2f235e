"""Frequencies: recognise one from stamps with gaps, and make the regular time axis of one.

Frequencies below a day count absolute time; days, weeks, months, quarters and years follow the local clock. The day of
a daylight-saving change therefore has 23 or 25 hourly rows and one daily row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset

from manyheads.core.errors import DataError
from manyheads.forecasting.series.panels import Panel

_HOUR = np.timedelta64(1, "h")
_DAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_LONGEST = 10_000_000  # stamps of an axis, at most


def offset_of(freq: str | pd.Timedelta) -> Any:
    """The pandas offset of a frequency. Raises :class:`DataError` for anything that does not go forward in time."""
    try:
        offset = to_offset(freq)
        if offset.n < 1 or _usual_length(offset) <= pd.Timedelta(0):
            raise ValueError
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"freq: found {freq!r}, expected a pandas alias such as h, 15min, D, W, MS") from error
    return offset


def axis(
    freq: str, start: pd.Timestamp | None = None, end: pd.Timestamp | None = None, periods: int | None = None
) -> pd.DatetimeIndex:
    """Stamps at a frequency, from two of ``start``, ``end`` and ``periods``.

    Raises :class:`DataError` for stamps outside the range of pandas, and for more than ten million of them.
    """
    offset, anchor = offset_of(freq), start if start is not None else end
    assert anchor is not None
    if start is not None and end is not None and (end - start) / _usual_length(offset) > _LONGEST:
        raise DataError(f"from {start} to {end} are more than {_LONGEST} rows at frequency {freq}: correct the stamps")
    zone, absolute = anchor.tz, isinstance(offset, pd.offsets.Tick) and not isinstance(offset, pd.offsets.Day)
    try:
        if zone is None or absolute:
            return pd.date_range(start, end, periods, freq=freq)
        clocks = [None if stamp is None else stamp.tz_localize(None) for stamp in (start, end)]
        made = pd.date_range(*clocks, periods, freq=freq)
        # a day without a midnight (daylight saving) gets its first time of day
        local = made.tz_localize(zone, nonexistent="shift_forward", ambiguous=np.ones(len(made), dtype=bool))
    except (pd.errors.OutOfBoundsDatetime, OverflowError, ValueError) as error:
        raise DataError(f"stamps at frequency {freq} from {anchor} leave the calendar: correct them") from error
    try:
        return pd.DatetimeIndex(local, freq=freq)
    except ValueError:
        # an index with a shifted stamp cannot carry a frequency in pandas
        return pd.DatetimeIndex(local)


def recognise(stamps: pd.DatetimeIndex) -> str | None:
    """The frequency on whose grid most of the rising stamps lie; of several, the one with the fewest gaps.

    None for fewer than 3 stamps.
    """
    if len(stamps) < 3:
        return None
    best, fewest = None, (1, 0)
    for freq in dict.fromkeys(_candidates(stamps)):
        if (stamps[-1] - stamps[0]) / _usual_length(offset_of(freq)) > 3 * len(stamps) + 10:
            continue
        made = axis(freq, stamps[0], stamps[-1])
        found = (-int(stamps.isin(made).sum()), len(made))
        if found < fewest:
            best, fewest = freq, found
    return best or next(_candidates(stamps))


def is_regular(stamps: pd.Series) -> bool:
    """Return whether the distinct stamps are at one frequency without a gap."""
    found = pd.DatetimeIndex(stamps.unique()).sort_values()
    freq = recognise(found)
    return freq is not None and is_complete(found, freq)


def is_complete(stamps: pd.DatetimeIndex, freq: str) -> bool:
    """Return whether stamps are at a frequency without a gap."""
    return bool((stamps == axis(freq, stamps[0], periods=len(stamps))).all())


def _candidates(stamps: pd.DatetimeIndex) -> Iterator[str]:
    """Candidate frequencies from the most frequent step between two stamps; the more common alias first."""
    steps = np.diff(stamps.tz_convert("UTC").tz_localize(None) if stamps.tz else stamps)
    step, clock = _mode(steps), pd.DatetimeIndex(stamps.tz_localize(None))
    if step < 23 * _HOUR:
        yield _alias(step)
        yield from _inferred(clock)
        return
    dates = clock.normalize()
    days = round(float(_mode(np.diff(dates)) / (24 * _HOUR))) or 1
    yield from _months(clock, days)
    weekday = _DAYS[int(_mode(clock.day_of_week.to_numpy()))]
    for weeks in {days // 7, 1} if days % 7 == 0 else ():
        yield f"W-{weekday}" if weeks == 1 else f"{weeks}W-{weekday}"
    yield "D" if days == 1 else f"{days}D"
    if days == 1:
        yield "B"
    yield from _inferred(clock)
    if step % (24 * _HOUR) != np.timedelta64(0):
        yield _alias(step)


def _inferred(clock: pd.DatetimeIndex) -> Iterator[str]:
    """The frequency that pandas infers from stamps without gaps, such as the third Friday of each month."""
    try:
        found = pd.DatetimeIndex(clock, freq="infer").freqstr
    except ValueError:
        # an hour that occurs twice on the clock
        return
    if found is not None:
        yield found


def _months(clock: pd.DatetimeIndex, days: int) -> Iterator[str]:
    if days < 28:
        return
    months = clock.year.to_numpy() * 12 + clock.month.to_numpy() - 1
    spacing = max(1, int(_mode(np.diff(months))))
    last = _MONTHS[int(_mode(months)) % 12]
    for first_or_last in ("S", "E"):
        for business in ("", "B"):
            name = f"{business}M{first_or_last}"
            if spacing == 12:
                yield f"{business}Y{first_or_last}-{last}"
            elif spacing == 3:
                # a quarter is named by its first month of the year, or by the year's last
                month = int(_mode(months % 3)) + (0 if first_or_last == "S" else 9)
                yield f"{business}Q{first_or_last}-{_MONTHS[month]}"
            elif spacing > 1:
                yield f"{spacing}{name}"
            yield name


def _alias(step: np.timedelta64) -> str:
    return offset_of(pd.to_timedelta([step])[0]).freqstr


def _mode(values: np.ndarray):
    unique, counts = np.unique(values, return_counts=True)
    return unique[np.argmax(counts)]


def _usual_length(offset: Any) -> pd.Timedelta:
    start = pd.Timestamp("2001-01-01")
    return (start + 12 * offset - start) / 12


def season_of(freq: str) -> int:
    """Rows in one season: a day for frequencies below a day, a week for days (5 business days), a year for the rest.

    1 (no season) if the frequency has none of these; it never raises.
    """
    offset = to_offset(freq)
    base = offset.rule_code.split("-")[0]
    calendar = {"B": 5, "W": 52, "ME": 12, "MS": 12, "BME": 12, "BMS": 12, "QE": 4, "QS": 4, "BQE": 4, "BQS": 4, "D": 7}
    if base in calendar and base != "D":
        return max(1, round(calendar[base] / offset.n))
    day = 86_400.0
    try:
        seconds = day * offset.n if base == "D" else pd.Timedelta(offset).total_seconds()
    except ValueError:
        return 1
    if seconds < day:
        return max(1, round(day / seconds))
    if seconds % (7 * day) == 0:
        return max(1, round(52 * 7 * day / seconds))
    return 7 if seconds == day else 1


def same_frequency(one: str, other: str) -> bool:
    """Return whether two aliases are the same step, such as ``24h`` and ``D``."""
    first, second = to_offset(one), to_offset(other)
    try:
        return first == second or pd.Timedelta(first) == pd.Timedelta(second)
    except ValueError:
        return {first.freqstr, second.freqstr} in ({"24h", "D"}, {"168h", "7D"})


def frequency(panel: Panel) -> str:
    """The frequency of a panel as a pandas alias. Raises :class:`DataError` for stamps without one."""
    found = panel.freq or panel.stamps.freqstr
    if found is not None:
        return found
    found = recognise(panel.stamps)
    if found is None:
        raise DataError(f"{panel.name}: {panel.rows} rows are too few to know the frequency: give at least 3")
    if not is_complete(panel.stamps, found):
        raise DataError(f"{panel.name}: found stamps without a frequency, expected regular ones: give a regular panel")
    return found


def future_stamps(panel: Panel, horizon: int) -> pd.DatetimeIndex:
    """The next ``horizon`` stamps, in the time zone of the panel."""
    last = panel.stamps[-1]
    made = axis(frequency(panel), last, periods=horizon + 2)
    return made[made > last][:horizon]
