"""One window of evidence becomes a page: attributed, dated in UTC, ready to book."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from wattledger.records import Clock, Metered, Page, Posting
from wattledger_daemon.heart.attribution.entries import Entry
from wattledger_daemon.heart.attribution.laying import DeviceWindow
from wattledger_daemon.heart.attribution.window import WindowBooks
from wattledger_daemon.heart.ends import Ends, summed
from wattledger_daemon.heart.evidence import EvidenceBook
from wattledger_daemon.heart.metering import Incident, Meter


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of one clock's monotonic time that is booked as one page."""

    clock: Clock
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class EventCounts:
    """Engine events received in a window that did not come once and in time."""

    late: int = 0
    duplicates: int = 0
    dropped: int = 0


def make_page(
    evidence: EvidenceBook, window: Window, counts: EventCounts, seen: Sequence[DeviceWindow]
) -> Page:
    """The page of a window in which the devices were as `seen`; the same in, the same page."""
    devices = [item.device for item in seen]
    engines = evidence.engine_windows(window.start_ns, window.end_ns)
    books = WindowBooks(window.start_ns, window.end_ns, engines, evidence.tenures)
    dating = _Dating(window, seen)
    shared, fine = dating.postings(books.entries(seen))
    finishes = evidence.finishes(window.start_ns, window.end_ns)
    known = {item.engine.engine: item for item in engines}
    for name in {finish.engine for finish in finishes} - known.keys():
        known[name] = evidence.engine_window(name, window.start_ns, window.end_ns)
    ends = Ends(finishes, known, devices)
    at_end, fine_at_end = ends.postings(window.clock.epoch_ns)
    return Page(
        clock=window.clock,
        start_ns=window.clock.epoch_ns + window.start_ns,
        end_ns=window.clock.epoch_ns + window.end_ns,
        devices=tuple(devices),
        metered=tuple(
            metered
            for item in seen
            if (metered := dating.metered(item, evidence.meter(item.device.device)))
        ),
        postings=(*shared, *at_end),
        request_postings=(*fine, *fine_at_end),
        finished=ends.finished(window.clock.epoch_ns),
        late=counts.late,
        duplicates=counts.duplicates,
        dropped=counts.dropped,
    )


class _Dating:
    """UTC extents of each device's entries: where it was metered, else the whole window."""

    def __init__(self, window: Window, seen: Sequence[DeviceWindow]) -> None:
        epoch_ns = window.clock.epoch_ns
        self._window = window
        self._whole = (epoch_ns + window.start_ns, epoch_ns + window.end_ns)
        self._extents = {
            item.device.device: (
                epoch_ns + item.intervals[0].start_ns,
                epoch_ns + item.intervals[-1].end_ns,
            )
            for item in seen
            if item.intervals
        }

    def postings(self, entries: Iterable[Entry]) -> tuple[list[Posting], list[Posting]]:
        """Postings summed over requests, and those of each request."""
        shared, fine = [], []
        for (_, device), group in groupby(entries, lambda entry: (id(entry.account), entry.device)):
            extent = self._extents.get(device, self._whole)
            parts = list(group)
            for _, account, request, amounts in parts:
                if request is not None:
                    fine.append(Posting(device, account, *extent, amounts, request))
            total = summed([entry.amounts for entry in parts])
            shared.append(Posting(device, parts[0].account, *extent, total))
        return shared, fine

    def metered(self, item: DeviceWindow, meter: Meter) -> Metered | None:
        """What the meter saw, None where that is nothing: no time, and no incident either."""
        window = (self._window.start_ns, self._window.end_ns)
        gaps, resets, wraps = (
            meter.incidents(*window, kind) for kind in (Incident.GAP, Incident.RESET, Incident.WRAP)
        )
        if not (item.intervals or gaps or resets or wraps):
            return None
        return Metered(
            item.device.device,
            *self._extents.get(item.device.device, self._whole),
            energy_uj=sum(interval.energy_uj for interval in item.intervals),
            device_ns=sum(interval.length_ns for interval in item.intervals),
            gaps=gaps,
            resets=resets,
            wraps=wraps,
        )
