from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattledger.errors import InputError
from wattledger.timespan import (
    Period,
    Window,
    day_window,
    format_instant,
    month_window,
    parse_duration,
    parse_instant,
    period_edges,
    period_label,
    resolve_window,
    timezone_named,
)

S = 1_000_000_000
NOW_NS = 1_790_000_000 * S
PARIS = timezone_named("Europe/Paris")


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01", 0),
        ("1970-01-02T00:00", 86_400 * S),
        ("1970-01-01T00:00:01.000000001Z", S + 1),
        ("1970-01-01t01:00:00.5+01:00", S // 2),
        ("1970-01-01 00:00:00-00:30", 1800 * S),
        (" now ", NOW_NS),
    ],
)
def test_an_instant_is_read_to_the_nanosecond(text: str, expected_ns: int) -> None:
    assert parse_instant(text, NOW_NS) == expected_ns


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2026-13-01",
        "2026-02-30T00:00:00Z",
        "2026-01-01T25:00:00Z",
        "2026-01-01T00:00:00.0000000001Z",
        "2026-01-01T00:00:00+24:00",
        "2026-01-01T00:00:00+01:99",
        "1969-12-31T23:59:59Z",
        "1970-01-01T00:00:00+01:00",
        "2262-01-01",
        "9999-12-31T23:59:59-01:00",
        "0001-01-01T00:00:00+01:00",
        "٢٠٢٦-01-01",
    ],
)
def test_a_time_that_is_not_one_is_named(text: str) -> None:
    with pytest.raises(InputError, match="time "):
        parse_instant(text, NOW_NS)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 9_214_646_399 * S + S - 1))
def test_instants_survive_being_written_and_read(t_ns: int) -> None:
    text = format_instant(t_ns)
    assert parse_instant(text, NOW_NS) == t_ns
    assert "." not in text or not text.endswith("0Z")


def test_instants_are_written_plainly() -> None:
    assert format_instant(NOW_NS) == "2026-09-21T14:13:20Z"
    assert format_instant(NOW_NS + 120_000_000) == "2026-09-21T14:13:20.12Z"


def test_durations() -> None:
    assert parse_duration("90m") == 5400 * S
    assert parse_duration("24h") == 86_400 * S
    assert parse_duration("7d") == 7 * 86_400 * S
    for text in ("", "0h", "h", "-1h", "1.5h", "1w", "9999999999h"):
        with pytest.raises(InputError, match="90m, 24h or 7d"):
            parse_duration(text)


def test_a_window_holds_something() -> None:
    with pytest.raises(InputError, match="is empty"):
        Window(5, 5)
    assert Window(0, 90 * S).to_json() == {
        "from": "1970-01-01T00:00:00Z",
        "to": "1970-01-01T00:01:30Z",
        "seconds": 90.0,
    }


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)]
)
def test_a_local_day_has_the_hours_it_has(day: str, hours: int) -> None:
    found = day_window(day, PARIS)
    assert found.length_ns == hours * 3600 * S
    assert len(period_edges(found, Period.HOUR, PARIS)) == hours - 1


def test_local_days_start_where_the_zone_says() -> None:
    assert day_window("2026-10-01", PARIS).to_json()["from"] == "2026-09-30T22:00:00Z"
    assert month_window("2026-10", PARIS).length_ns == (31 * 24 + 1) * 3600 * S
    assert month_window("2026-12").to_json()["to"] == "2027-01-01T00:00:00Z"
    # Midnight is skipped, midnight comes twice, a whole day is skipped.
    assert day_window("2018-11-04", timezone_named("America/Sao_Paulo")).length_ns == 23 * 3600 * S
    assert day_window("2026-11-01", timezone_named("America/Havana")).length_ns == 25 * 3600 * S
    samoa = timezone_named("Pacific/Apia")
    assert day_window("2011-12-29", samoa).end_ns == day_window("2011-12-31", samoa).start_ns


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "Europe"])
def test_an_unknown_zone_is_named(name: str) -> None:
    with pytest.raises(InputError, match="--tz"):
        timezone_named(name)


def test_bad_days_and_months_are_named() -> None:
    for text in ("2026-10", "20261001", "2026-W40-1", "2026-02-29", "9999-12-31"):
        with pytest.raises(InputError):
            day_window(text)
    for text in ("2026", "2026-13", "2026-1", "0000-01", "October"):
        with pytest.raises(InputError):
            month_window(text)


def test_one_way_of_naming_a_window() -> None:
    assert resolve_window(NOW_NS, last="1h") == Window(NOW_NS - 3600 * S, NOW_NS)
    assert resolve_window(NOW_NS, from_text="1970-01-01").end_ns == NOW_NS
    assert resolve_window(NOW_NS, from_text="1970-01-01", to_text="1970-01-02").end_ns == 86_400 * S
    assert resolve_window(NOW_NS, day="2026-10-01", tz=PARIS) == day_window("2026-10-01", PARIS)
    assert resolve_window(NOW_NS, month="2026-10") == month_window("2026-10")
    with pytest.raises(InputError, match="one window of time"):
        resolve_window(NOW_NS)
    with pytest.raises(InputError, match="one window of time"):
        resolve_window(NOW_NS, last="1h", day="2026-10-01")
    with pytest.raises(InputError, match="no --from"):
        resolve_window(NOW_NS, to_text="now")
    with pytest.raises(InputError, match="is empty"):
        resolve_window(NOW_NS, from_text="now", to_text="1970-01-01")
    with pytest.raises(InputError, match="before 1970"):
        resolve_window(NOW_NS, last="99999d")


def test_periods_are_labelled_as_the_zone_reads_them() -> None:
    noon_ns = parse_instant("2026-10-01T12:34:56Z", 0)
    assert period_label(noon_ns, Period.HOUR) == "2026-10-01T12:00:00Z"
    assert period_label(noon_ns, Period.HOUR, PARIS) == "2026-10-01T14:00:00+02:00"
    assert period_label(noon_ns, Period.DAY, timezone_named("Pacific/Auckland")) == "2026-10-02"
    assert period_label(noon_ns, Period.MONTH, PARIS) == "2026-10"
    # An hour of a zone half an hour off begins there.
    kolkata = timezone_named("Asia/Kolkata")
    edges = period_edges(Window(noon_ns, noon_ns + 3600 * S), Period.HOUR, kolkata)
    assert [format_instant(edge) for edge in edges] == ["2026-10-01T13:30:00Z"]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["UTC", "Europe/Paris", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    st.sampled_from(list(Period)),
    st.integers(1_600_000_000, 1_900_000_000),
)
def test_labels_change_exactly_at_edges(zone: str, period: Period, start_s: int) -> None:
    tz = timezone_named(zone)
    window = Window(start_s * S, (start_s + 40 * 86_400) * S)
    edges = period_edges(window, period, tz)
    assert edges == sorted(set(edges))
    starts = [window.start_ns, *edges]
    labels = [period_label(start, period, tz) for start in starts]
    assert len(set(labels)) == len(labels)
    for start_ns, end_ns, label in zip(starts, [*edges, window.end_ns], labels, strict=True):
        assert period_label(end_ns - 1, period, tz) == label
        assert start_ns < end_ns
