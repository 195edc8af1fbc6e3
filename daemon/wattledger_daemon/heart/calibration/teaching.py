"""A booked window's lessons: every engine, every whole row that ends in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wattledger.records import NS_PER_S, Engine
from wattledger_daemon.heart.attribution.laying import DeviceWindow
from wattledger_daemon.heart.calibration.rows import (
    AFTER_NS,
    ROW_NS,
    SURE_NS,
    Lesson,
    Span,
    lesson_of,
    with_stillness,
)
from wattledger_daemon.heart.evidence import EvidenceBook
from wattledger_daemon.heart.metering import EnergyInterval
from wattledger_daemon.heart.step_sums import StepSum

_LONGEST_NS = 60 * NS_PER_S
"""A longer window is a void hour, or one of a replay, which calibrates nothing."""


def lessons_of(
    evidence: EvidenceBook,
    epoch_ns: int,
    span: tuple[int, int],
    seen: Sequence[DeviceWindow],
    lost_ns: Sequence[int] = (),
) -> list[Lesson]:
    """What a window in which devices were as `seen` teaches; rows lie on the UTC grid.

    Shorter windows make a row together, longer ones several, so that a row is always long
    enough for what a counter smears over its edges. Where events were lost, at `lost_ns`, steps
    would look too dear, and time that was not idle as if it were.
    """

    def intervals(
        device: str, start_ns: int, end_ns: int, cuts_ns: Sequence[int]
    ) -> list[EnergyInterval]:
        return evidence.meter(device).intervals(start_ns, end_ns, cuts_ns)

    def near(engine: Engine, stretch: Span) -> list[StepSum]:
        start_ns, end_ns = stretch
        return evidence.step_totals(engine.engine, start_ns - AFTER_NS, end_ns + AFTER_NS)

    def look(stretch: Span) -> list[DeviceWindow]:
        return [evidence.device_window(item.device, *stretch) for item in seen]

    found = []
    for row in _rows(epoch_ns, *span):
        items = seen if row == span else look(row)
        for engine in evidence.engines:
            lesson = None
            if not any(row.start_ns <= t_ns < span[1] for t_ns in lost_ns):
                lesson = lesson_of(engine, items, near(engine, row), intervals, row)
            if not any(row.start_ns - SURE_NS <= t_ns < span[1] for t_ns in lost_ns):
                earlier = Span(row.start_ns - SURE_NS, row.end_ns - SURE_NS)
                lesson = with_stillness(
                    lesson,
                    engine,
                    look=look,
                    steps=near(engine, earlier),
                    intervals=intervals,
                    span=row,
                )
            if lesson is not None:
                found.append(lesson)
    return found


def _rows(epoch_ns: int, start_ns: int, end_ns: int) -> Iterator[Span]:
    """Stretches of the UTC grid that end in (start_ns, end_ns]."""
    if end_ns - start_ns > _LONGEST_NS:
        return
    last_ns = start_ns - (epoch_ns + start_ns) % ROW_NS + ROW_NS
    while last_ns <= end_ns:
        yield Span(last_ns - ROW_NS, last_ns)
        last_ns += ROW_NS
