"""One window of evidence becomes a page: attributed, dated in UTC, ready to book."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from wattledger.records import (
    Account,
    Activity,
    Amounts,
    Clock,
    Device,
    Finish,
    FinishedRequest,
    Metered,
    Page,
    Posting,
    Quality,
)
from wattledger_daemon.heart.attribution.laying import DeviceWindow
from wattledger_daemon.heart.attribution.window import Entry, WindowBooks
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
    finishes = evidence.finishes(window.start_ns, window.end_ns)
    postings = (
        *dating.postings(books.entries(seen)),
        *_finish_postings(evidence, window, finishes, devices),
    )
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
        postings=_by_account(postings),
        request_postings=tuple(p for p in postings if p.request is not None),
        finished=tuple(_finished(evidence, window, finish) for finish in finishes),
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

    def postings(self, entries: Iterable[Entry]) -> tuple[Posting, ...]:
        return tuple(
            Posting(
                entry.device,
                entry.account,
                *self._extents.get(entry.device, self._whole),
                entry.amounts,
                entry.request,
            )
            for entry in entries
        )

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


def _by_account(postings: Iterable[Posting]) -> tuple[Posting, ...]:
    """Postings summed over requests."""
    sums: dict[tuple[str, Account, int, int], Amounts] = {}
    for posting in postings:
        key = (posting.device, posting.account, posting.start_ns, posting.end_ns)
        held = sums.get(key)
        sums[key] = _plus(held, posting.amounts) if held else posting.amounts
    return tuple(Posting(*key, amounts) for key, amounts in sums.items())


_COLUMNS = tuple(field.name for field in fields(Amounts))


def _plus(one: Amounts, other: Amounts) -> Amounts:
    return Amounts(*(getattr(one, name) + getattr(other, name) for name in _COLUMNS))


def _finish_postings(
    evidence: EvidenceBook, window: Window, finishes: Sequence[Finish], devices: Sequence[Device]
) -> tuple[Posting, ...]:
    """A posting at the instant of each finish: no energy, one request, its cached tokens."""
    known = {device.device: device for device in devices}
    found = []
    for finish in finishes:
        engine = evidence.engine(finish.engine)
        name = evidence.token_device(engine)
        if name is None:
            continue
        workload, job = evidence.tenures.owner_of(engine, window.start_ns)
        account = Account(
            Activity.DECODE if finish.decode_tokens else Activity.PREFILL,
            Quality.ESTIMATED if known[name].estimated else Quality.MEASURED,
            evidence.cost_of(finish.engine).method,
            known[name].static_basis,
            workload,
            job,
            finish.engine,
            engine.model,
        )
        t_ns = window.clock.epoch_ns + finish.t_ns
        amounts = Amounts(cached_tokens=finish.cached_tokens, requests=1)
        found.append(Posting(name, account, t_ns, t_ns + 1, amounts, finish.request))
    return tuple(found)


def _finished(evidence: EvidenceBook, window: Window, finish: Finish) -> FinishedRequest:
    engine = evidence.engine(finish.engine)
    workload, job = evidence.tenures.owner_of(engine, window.start_ns)
    return FinishedRequest(
        finish.request,
        finish.engine,
        engine.model,
        workload,
        job,
        window.clock.epoch_ns + finish.t_ns,
        finish.prompt_tokens,
        finish.cached_tokens,
        finish.decode_tokens,
    )
