"""The frequency of time stamps, through gaps and through changes of the clock, and the stamps that come next.

Days and longer steps are counted on the clock of the time zone, hours and shorter ones in absolute time: at the end of
daylight saving a day has 25 hourly rows and one daily row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset

from manyheads.core.errors import DataError

_WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


@dataclass(frozen=True)
class Grid:
    """A regular grid from the first stamp to the last."""

    freq: str
    stamps: pd.DatetimeIndex

    @classmethod
    def spanning(cls, stamps: pd.DatetimeIndex, freq: str) -> Grid:
        """Raises :class:`DataError` for a frequency that pandas does not know."""
        try:
            offset = to_offset(freq)
            if offset.n < 1:
                raise ValueError
            return cls(offset.freqstr, pd.date_range(stamps[0], stamps[-1], freq=offset))
        except (ValueError, TypeError, OverflowError, AttributeError) as error:
            raise DataError(f"freq: found {freq!r}, expected a pandas alias such as h, 15min, D, W, MS") from error

    def holds(self, stamps: pd.DatetimeIndex) -> bool:
        return bool(stamps.isin(self.stamps).all())


def find_grid(stamps: pd.DatetimeIndex) -> Grid | None:
    """The grid with the fewest rows that holds every stamp; None where there is none, or fewer than 3 stamps.

    Tried are the most frequent step, and the calendar: business days, weeks, months, quarters, years.
    """
    if len(stamps) < 3:
        return None
    local = stamps if stamps.tz is None else stamps.tz_localize(None)
    try:
        regular = pd.DatetimeIndex(local, freq="infer").freqstr
    except ValueError:  # stamps that rise on the clock of UTC only
        regular = None
    if regular is not None and (stamps.tz is None or not _is_absolute(regular)):
        grid = Grid.spanning(stamps, regular)
        if grid.stamps.equals(stamps):
            return grid
    grids = []
    for freq in _candidates(stamps, local):
        grid = Grid.spanning(stamps, freq)
        if grid.holds(stamps):
            grids.append(grid)
    return min(grids, key=lambda grid: len(grid.stamps), default=None)


def usual_step(stamps: pd.DatetimeIndex) -> str:
    """pandas' alias of the most frequent step."""
    return _alias(pd.Series(stamps).diff().mode().iloc[0])


def season_of(freq: str) -> int:
    """Rows in a season: a day for less than a day, a week for days (5 for business days), a year for the rest.

    Raises nothing: 1, no season, where the frequency is unknown.
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


def same_frequency(one: str | None, other: str | None) -> bool:
    """Whether two aliases mean the same step, such as ``24h`` and ``D``."""
    if one is None or other is None or one == other:
        return True
    try:
        return pd.Timedelta(to_offset(one)) == pd.Timedelta(to_offset(other))
    except ValueError:
        return {one, other} in ({"24h", "D"}, {"168h", "7D"}) or to_offset(one) == to_offset(other)


def frequency(stamps: pd.DatetimeIndex) -> str | None:
    """pandas' alias; None where the stamps have no regular one."""
    if stamps.freqstr is not None:
        return stamps.freqstr
    grid = find_grid(stamps)
    return grid.freq if grid is not None and len(grid.stamps) == len(stamps) else None


def future_stamps(stamps: pd.DatetimeIndex, horizon: int) -> pd.DatetimeIndex:
    """The next ``horizon`` stamps, in the same time zone."""
    return pd.date_range(stamps[-1], periods=horizon + 1, freq=frequency(stamps))[1:]


def _is_absolute(freq: str) -> bool:
    """Whether the step is one of hours, minutes or seconds."""
    offset = to_offset(freq)
    return isinstance(offset, pd.tseries.offsets.Tick) and offset.rule_code.split("-")[0] != "D"


def _candidates(stamps: pd.DatetimeIndex, local: pd.DatetimeIndex) -> Iterator[str]:
    whole_days = len(local.normalize().unique()) == len(local) and (local - local.normalize()).nunique() == 1
    if whole_days:
        yield from _calendar(local)
    yield from _steps(stamps)


def _calendar(local: pd.DatetimeIndex) -> Iterator[str]:
    """For stamps of one a day at most, all at the same time of the day."""
    gaps = np.diff(local.normalize().to_numpy()).astype("timedelta64[D]").astype(int)
    step = int(np.bincount(gaps).argmax()) if gaps.max() < 100_000 else int(gaps.min())
    if step % 7 or not (gaps % 7 == 0).all():
        yield f"{step}D"
    else:
        yield f"{step // 7}W-{_WEEKDAYS[local[0].day_of_week]}"
    if (local.day_of_week < 5).all() and step == 1:
        yield "B"
    for starts, kind in ((local.is_month_start, "S"), (local.is_month_end, "E")):
        if starts.all():
            yield from _months(local, kind)
    business = pd.offsets.BMonthBegin(), pd.offsets.BMonthEnd()
    for offset, alias in zip(business, ("BMS", "BME"), strict=True):
        if step > 20 and all(offset.is_on_offset(stamp) for stamp in local):
            yield alias


def _steps(stamps: pd.DatetimeIndex) -> Iterator[str]:
    step = pd.Series(stamps).diff().mode().iloc[0]
    if step < pd.Timedelta(days=1) or stamps.tz is None:
        yield _alias(step)


def _alias(step: pd.Timedelta) -> str:
    days, rest = divmod(step.value, pd.Timedelta(days=1).value)
    return to_offset(step).freqstr if rest else f"{days}D"


def _months(local: pd.DatetimeIndex, kind: str) -> Iterator[str]:
    """Months, quarters and years, whole ones, and every second … sixth month."""
    count = np.diff((local.year * 12 + local.month).to_numpy())
    step = int(np.bincount(count).argmax())
    first = local[0].month
    if step % 12 == 0:
        yield f"{step // 12}Y{kind}-{_MONTHS[first - 1]}"
    elif step == 3:
        yield f"Q{kind}-{_MONTHS[(first - 1) % 3 + (0 if kind == 'S' else 9)]}"
    yield f"{step}M{kind}"
    yield f"M{kind}"
