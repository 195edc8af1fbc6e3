"""A booked window's lessons: every engine, every whole row that ends in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wattledger.records import NS_PER_S
from wattledger_daemon.heart.attribution.laying import DeviceWindow
from wattledger_daemon.heart.calibration.rows import AFTER_NS, ROW_NS, Lesson, lesson_of
from wattledger_daemon.heart.evidence import EvidenceBook
from wattledger_daemon.heart.metering import EnergyInterval

_LONGEST_NS = 60 * NS_PER_S
"""A longer window is a void hour, or one of a replay, which calibrates nothing."""


def lessons_of(
    evidence: EvidenceBook, epoch_ns: int, span: tuple[int, int], seen: Sequence[DeviceWindow]
) -> list[Lesson]:
    """What a window in which devices were as `seen` teaches; rows lie on the UTC grid.

    Shorter windows make a row together, longer ones several, so that a row is always long
    enough for what a counter smears over its edges.
    """

    def intervals(
        device: str, start_ns: int, end_ns: int, cuts_ns: Sequence[int]
    ) -> list[EnergyInterval]:
        return evidence.meter(device).intervals(start_ns, end_ns, cuts_ns)

    found = []
    for row in _rows(epoch_ns, *span):
        items = seen
        if row != span:
            items = [evidence.device_window(item.device, *row) for item in seen]
        for engine in evidence.engines:
            near = (row[0] - AFTER_NS, row[1] + AFTER_NS)
            steps = evidence.step_totals(engine.engine, *near)
            lesson = lesson_of(engine, items, steps, intervals, row)
            if lesson is not None:
                found.append(lesson)
    return found


def _rows(epoch_ns: int, start_ns: int, end_ns: int) -> Iterator[tuple[int, int]]:
    """Stretches of the UTC grid that end in (start_ns, end_ns]."""
    if end_ns - start_ns > _LONGEST_NS:
        return
    last_ns = start_ns - (epoch_ns + start_ns) % ROW_NS + ROW_NS
    while last_ns <= end_ns:
        yield last_ns - ROW_NS, last_ns
        last_ns += ROW_NS
