"""Windows of time: from what people write to half-open UTC nanoseconds, and back.

All arithmetic is in integers. A time or date without offset is UTC; only `--day` and `--month`
name local days, which are resolved to UTC first and so have 23 or 25 hours where a clock changes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from enum import StrEnum

from wattledger.errors import InputError
from wattledger.records import NS_PER_S

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[Tt ]([0-9]{2}:[0-9]{2}(?::[0-9]{2})?)(?:\.([0-9]{1,9}))?([Zz]|[+-][0-9]{2}:[0-9]{2})?)?"
)
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MONTH = re.compile(r"([0-9]{4})-([0-9]{2})")
# Nanoseconds of later years leave the 64-bit integers that every store keeps.
_YEARS = range(1970, 2262)


class Period(StrEnum):
    """A local calendar period that a statement can be grouped by."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open stretch [start_ns, end_ns) of UTC nanoseconds; `InputError` where empty."""

    start_ns: int
    end_ns: int

    def __post_init__(self) -> None:
        if self.start_ns >= self.end_ns:
            raise InputError(
                f"the window from {format_instant(self.start_ns)} to "
                f"{format_instant(self.end_ns)} is empty: --from must lie before --to"
            )

    @property
    def length_ns(self) -> int:
        """Length in nanoseconds."""
        return self.end_ns - self.start_ns

    def to_json(self) -> dict[str, object]:
        """`from` and `to` in RFC 3339, `seconds` as a float."""
        return {
            "from": format_instant(self.start_ns),
            "to": format_instant(self.end_ns),
            "seconds": self.length_ns / NS_PER_S,
        }


def format_instant(t_ns: int) -> str:
    """RFC 3339 in UTC with `Z`, exact to the nanosecond, without trailing zeros."""
    seconds, fraction_ns = divmod(t_ns, NS_PER_S)
    text = (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()
    return f"{text}.{fraction_ns:09d}".rstrip("0") + "Z" if fraction_ns else f"{text}Z"


def parse_instant(text: str, now_ns: int) -> int:
    """UTC nanoseconds of an RFC 3339 time, a date (its midnight) or `now`.

    Without an offset the time is UTC. Raises `InputError` for anything else, for more than
    nine fractional digits and for years outside 1970 to 2261.
    """
    if text.strip().lower() == "now":
        return now_ns
    match = _INSTANT.fullmatch(text.strip())
    if match is None:
        raise _bad_instant(text)
    day, clock, fraction, offset = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock or '00:00'}").replace(
            tzinfo=_zone_of(offset)
        )
    except ValueError as error:
        raise _bad_instant(text) from error
    return _to_ns(moment, text) + int((fraction or "0").ljust(9, "0"))


def _bad_instant(text: str) -> InputError:
    return InputError(
        f"time {text!r} is not understood: write 2026-10-01T12:00:00Z, 2026-10-01 or now"
    )


def _zone_of(offset: str | None) -> tzinfo:
    if offset is None or offset in "Zz":
        return UTC
    hours, minutes = int(offset[1:3]), int(offset[4:6])
    if minutes > 59:
        raise ValueError(offset)
    span = timedelta(hours=hours, minutes=minutes)
    return timezone(-span if offset[0] == "-" else span)


def _to_ns(moment: datetime, text: str) -> int:
    try:
        elapsed = moment.astimezone(UTC) - _EPOCH
    except OverflowError:
        elapsed = timedelta(days=-1)
    if elapsed < timedelta(0) or moment.year not in _YEARS:
        raise InputError(f"time {text!r} is out of range: use years {_YEARS[0]} to {_YEARS[-1]}")
    return (elapsed.days * 86_400 + elapsed.seconds) * NS_PER_S


def parse_duration(text: str) -> int:
    """Nanoseconds of `90m`, `24h`, `7d` or `30s`; raises `InputError` for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise InputError(f"duration {text!r} is not understood: write 90m, 24h or 7d")
    return int(match[1]) * _UNIT_S[match[2]] * NS_PER_S


def timezone_named(name: str) -> tzinfo:
    """The time zone of an IANA name such as `Europe/Paris`; raises `InputError` if unknown."""
    if name.upper() in ("UTC", "Z"):
        return UTC
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InputError(
            f"--tz {name!r} is not a known time zone: write an IANA name such as Europe/Paris"
        ) from error


def day_window(text: str, tz: tzinfo = UTC) -> Window:
    """The local day `2026-10-01`; raises `InputError`."""
    try:
        if _DAY.fullmatch(text) is None:
            raise ValueError(text)
        first = date.fromisoformat(text)
        return Window(_midnight_ns(first, tz), _midnight_ns(first + timedelta(days=1), tz))
    except (ValueError, OverflowError) as error:
        raise InputError(f"--day {text!r} is not a day: write 2026-10-01") from error


def month_window(text: str, tz: tzinfo = UTC) -> Window:
    """The local month `2026-10`; raises `InputError`."""
    match = _MONTH.fullmatch(text)
    try:
        if match is None:
            raise ValueError(text)
        first = date(int(match[1]), int(match[2]), 1)
        return Window(_midnight_ns(first, tz), _midnight_ns(_next_month(first), tz))
    except (ValueError, OverflowError) as error:
        raise InputError(f"--month {text!r} is not a month: write 2026-10") from error


def resolve_window(
    now_ns: int,
    *,
    from_text: str | None = None,
    to_text: str | None = None,
    last: str | None = None,
    day: str | None = None,
    month: str | None = None,
    tz: tzinfo = UTC,
) -> Window:
    """The window that the flags name; `--to` defaults to now.

    Raises `InputError` where no or more than one way of naming it is used.
    """
    ways = (from_text or to_text, last, day, month)
    if sum(way is not None for way in ways) != 1:
        raise InputError("name one window of time: --from and --to, or --last, --day or --month")
    if day is not None:
        return day_window(day, tz)
    if month is not None:
        return month_window(month, tz)
    if last is not None:
        start_ns = now_ns - parse_duration(last)
        if start_ns < 0:
            raise InputError(f"--last {last!r} reaches before 1970: ask for less")
        return Window(start_ns, now_ns)
    if from_text is None:
        raise InputError(f"--to {to_text!r} has no --from: name the start of the window too")
    return Window(parse_instant(from_text, now_ns), parse_instant(to_text or "now", now_ns))


def period_edges(window: Window, period: Period, tz: tzinfo = UTC) -> list[int]:
    """Starts of the local periods that begin inside the window, ascending, UTC nanoseconds."""
    edges: list[int] = []
    edge_ns = _next_start(window.start_ns, period, tz)
    while edge_ns < window.end_ns:
        edges.append(edge_ns)
        edge_ns = _next_start(edge_ns, period, tz)
    return edges


def period_label(t_ns: int, period: Period, tz: tzinfo = UTC) -> str:
    """The local period that holds `t_ns`: `2026-10-01T14:00:00+02:00`, `2026-10-01`, `2026-10`."""
    local = datetime.fromtimestamp(t_ns // NS_PER_S, tz)
    if period is Period.HOUR:
        # As text: `replace` would take the offset of another minute where the clock changed.
        text = local.isoformat()
        text = f"{text[:14]}00:00{text[19:]}"
        return text.removesuffix("+00:00") + "Z" if tz is UTC else text
    return local.date().isoformat()[: 10 if period is Period.DAY else 7]


def _next_start(t_ns: int, period: Period, tz: tzinfo) -> int:
    second = t_ns // NS_PER_S
    local = datetime.fromtimestamp(second, tz)
    if period is Period.HOUR:
        return (second - local.minute * 60 - local.second + 3600) * NS_PER_S
    if period is Period.DAY:
        return _midnight_ns(local.date() + timedelta(days=1), tz)
    return _midnight_ns(_next_month(local.date()), tz)


def _next_month(day: date) -> date:
    return date(day.year + day.month // 12, day.month % 12 + 1, 1)


def _midnight_ns(day: date, tz: tzinfo) -> int:
    # fold=0 is right twice: the first of two midnights, and the leap itself where midnight is
    # skipped.
    return _to_ns(datetime(day.year, day.month, day.day, tzinfo=tz), day.isoformat())
