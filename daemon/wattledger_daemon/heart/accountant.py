"""The daemon's heart: evidence in, pages out; no clock, no I/O, no logging.

An `Accountant` is a fold over evidence. It closes windows on the UTC grid once the watermark
has passed, and makes a booked window's page again when a late event touches it, as long as
the evidence of that window is still kept. The same evidence in the same order always gives
the same pages, so that a journal of it is all a restarted daemon needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from wattledger.records import (
    NS_PER_S,
    Clock,
    Device,
    DeviceKind,
    Evidence,
    Finish,
    Page,
    StaticBasis,
    Step,
)
from wattledger_daemon.heart.attribution.laying import DeviceWindow
from wattledger_daemon.heart.calibration.weaving import Costs
from wattledger_daemon.heart.columns import StepColumns, columns_of
from wattledger_daemon.heart.evidence import EvidenceBook, Touched
from wattledger_daemon.heart.idle import IdleBook, Lesson, lesson_of
from wattledger_daemon.heart.metering import MAX_GAP_NS
from wattledger_daemon.heart.paging import EventCounts, Window, make_page

_HOUR_NS = 3600 * NS_PER_S
_LATELY_NS = 3 * NS_PER_S


@dataclass(frozen=True, slots=True)
class AccountantSettings:
    """Lengths in nanoseconds; `horizon_ns` None keeps all evidence (a replay).

    Above `max_rows` (a row is a step, a run of a request's steps or a process in a use record,
    some 100 bytes) the horizon comes nearer, down to the windows not yet booked: memory is
    bounded under any load.
    With `learn_idle` a device that comes without idle power is given what is learned of it, with
    `learn_costs` an engine without a pinned cost model is calibrated; a replay takes its trace at
    its word.
    """

    window_ns: int = 5 * NS_PER_S
    watermark_ns: int = 10 * NS_PER_S
    max_gap_ns: int = MAX_GAP_NS
    horizon_ns: int | None = 600 * NS_PER_S
    max_rows: int = 100_000
    learn_idle: bool = False
    learn_costs: bool = False


class Accountant:
    """Folds one host's evidence into pages. `t_ns` is CLOCK_MONOTONIC throughout."""

    def __init__(self, clock: Clock, settings: AccountantSettings) -> None:
        self._clock = clock
        self._settings = settings
        live = settings.horizon_ns is not None
        self._evidence = EvidenceBook(settings.max_gap_ns, live=live)
        self._windows: list[Window] = []
        self._dirty: set[Window] = set()
        self._events: list[tuple[int, EventCounts]] = []
        self._booked_until_ns: int | None = None
        self._origin_ns: int | None = None
        self._idle = IdleBook()
        self._lessons: dict[Window, list[Lesson]] = {}
        self._learned: dict[str, Device] = {}
        self._costs = Costs(self._evidence, learning=settings.learn_costs)

    @property
    def clock(self) -> Clock:
        """The clock that windows are cut by now."""
        return self._clock

    @property
    def booked_until_ns(self) -> int | None:
        """End of the last booked window; None before the first."""
        return self._booked_until_ns

    @property
    def latest_ns(self) -> int | None:
        """The latest moment that any evidence speaks of; None without evidence."""
        return self._evidence.latest_ns

    # ------------------------------------------------------------------ evidence

    def observe(self, evidence: Evidence) -> None:
        """Take a piece of evidence, in any order but a device's own readings.

        A late step or finish dirties the windows it touches. Where their evidence is gone it
        keeps its tokens and gets no energy: that stays with the engine's idle time.
        """
        if isinstance(evidence, Step):
            self.observe_steps(columns_of(evidence))
            return
        if isinstance(evidence, Finish):
            evidence = self._within_reach(evidence)
        elif isinstance(evidence, Device) and evidence.static_basis is StaticBasis.LEARNED:
            evidence = self._relearned(evidence)
        touched = self._evidence.observe(evidence)
        if touched is None:
            return
        if touched.duplicate:
            self._count(touched.start_ns, EventCounts(duplicates=1))
        elif self._booked_until_ns is not None and touched.start_ns < self._booked_until_ns:
            self._mark(touched)

    def observe_steps(self, steps: StepColumns) -> None:
        """Take steps in columns, in any order, each as `observe` would."""
        if not steps:
            return
        reach_ns, booked_ns = self._reach_ns, self._booked_until_ns
        if reach_ns is not None and booked_ns is not None and min(steps.starts_ns) < reach_ns:
            for start_ns in steps.starts_ns:
                if start_ns < reach_ns:
                    self._count(start_ns, EventCounts(late=1))
            steps = steps.moved(reach_ns, booked_ns)
        known = self._evidence.observe_steps(steps)
        for at in known:
            self._count(steps.starts_ns[at], EventCounts(duplicates=1))
        if booked_ns is not None and min(steps.starts_ns) < booked_ns:
            extents = enumerate(zip(steps.starts_ns, steps.ends_ns, strict=True))
            for at, (start_ns, end_ns) in extents:
                if start_ns < booked_ns and at not in known:
                    self._mark(Touched(start_ns, end_ns, engine_event=True))

    def _relearned(self, device: Device) -> Device:
        """A device from our own journal, without what `_idle` shall keep of it."""
        if not self._settings.learn_idle:
            return device
        self._idle.remember(device)
        return replace(device, static_w=None, static_basis=StaticBasis.UNKNOWN)

    @property
    def _reach_ns(self) -> int | None:
        """From when on a window may be booked again; None before the first."""
        return self._windows[0].start_ns if self._windows else self._booked_until_ns

    def _within_reach(self, finish: Finish) -> Finish:
        reach_ns, booked_ns = self._reach_ns, self._booked_until_ns
        if reach_ns is None or booked_ns is None or finish.t_ns >= reach_ns:
            return finish
        self._count(finish.t_ns, EventCounts(late=1))
        return replace(finish, t_ns=booked_ns)

    def _mark(self, touched: Touched) -> None:
        dirty = [
            window
            for window in self._windows
            if window.start_ns < max(touched.end_ns, touched.start_ns + 1)
            and window.end_ns > touched.start_ns
        ]
        self._dirty.update(dirty)
        if dirty and touched.engine_event:
            self._count(touched.start_ns, EventCounts(late=1))

    def count(self, t_ns: int, *, duplicates: int = 0, dropped: int = 0) -> None:
        """Count engine events of `t_ns` that never became evidence."""
        self._count(t_ns, EventCounts(duplicates=duplicates, dropped=dropped))

    def _count(self, t_ns: int, counts: EventCounts) -> None:
        """Count in the window of `t_ns`, or in the next one where that is booked already."""
        booked_ns = self._booked_until_ns
        t_ns = t_ns if booked_ns is None else max(t_ns, booked_ns)
        self._events.append((t_ns, counts))
        if counts.dropped:
            self._costs.lose(t_ns)

    # --------------------------------------------------------------------- pages

    def due(self, now_ns: int) -> list[Page]:
        """Pages to book now, oldest first: dirty windows, and those past the watermark.

        Nothing is forgotten or advanced until `booked` is told of each page.
        """
        ripe_ns = now_ns - self._settings.watermark_ns
        return self._pages([w for w in self._open_windows(ripe_ns) if w.end_ns <= ripe_ns])

    def flush(self, until_ns: int) -> list[Page]:
        """Pages of everything before `until_ns`, the last window cut short there."""
        windows = list(self._open_windows(until_ns))
        return self._pages([replace(w, end_ns=min(w.end_ns, until_ns)) for w in windows])

    def preview(self, now_ns: int) -> list[Page]:
        """Pages of what is not booked yet, up to now, as if nothing of it were still to come.

        Who used a device last is taken to use it still. Nothing is kept: what is booked later is
        the same with a preview or without.
        """
        pages = []
        idle = self._idle.copy()
        carried_on = self._evidence.carried_on
        for window in self._open_windows(now_ns):
            cut = replace(window, end_ns=min(window.end_ns, now_ns))
            seen = self._seen(cut, idle)
            pages.append(self._page(cut, [carried_on(item, cut.end_ns) for item in seen]))
            if self._settings.learn_idle:
                idle.learn(self._lessons_of(cut, seen))
        return pages

    def unbooked_finishes(self) -> list[Finish]:
        """Requests that finished in what is not booked yet, by time."""
        latest_ns = self.latest_ns
        start_ns = (
            self._evidence.first_ns if self._booked_until_ns is None else self._booked_until_ns
        )
        if latest_ns is None or start_ns is None:
            return []
        return self._evidence.finishes(start_ns, latest_ns + 1)

    @property
    def metered_until_ns(self) -> int | None:
        """Up to where every meter has spoken that is not silent by now; None where none has."""
        told = [
            self._evidence.meter(device.device).last_ns
            for device in self._evidence.devices
            if device.kind is not DeviceKind.NODE
        ]
        spoken = [t_ns for t_ns in told if t_ns is not None]
        return min((t_ns for t_ns in spoken if t_ns > max(spoken) - _LATELY_NS), default=None)

    def _pages(self, fresh: list[Window]) -> list[Page]:
        """Pages of dirty and fresh windows; a fresh one stands under what those before it taught.

        So that it does not matter how many windows are closed at once.
        """
        idle = self._idle.copy()
        self._lessons = {}
        self._costs.try_anew()
        dirty = sorted(self._dirty, key=lambda window: window.start_ns)
        pages = [self._page(window, self._seen(window, idle)) for window in dirty]
        for window in fresh:
            seen = self._seen(window, idle)
            pages.append(self._page(window, seen))
            if self._settings.learn_idle:
                self._lessons[window] = self._lessons_of(window, seen)
                idle.learn(self._lessons[window])
            self._costs.try_window(window, seen)
        self._costs.stand()
        return pages

    def _page(self, window: Window, seen: Sequence[DeviceWindow]) -> Page:
        return make_page(self._evidence, window, self._counts_in(window), seen)

    def _seen(self, window: Window, idle: IdleBook) -> list[DeviceWindow]:
        return [
            self._evidence.device_window(idle.dress(device), window.start_ns, window.end_ns)
            for device in self._evidence.devices
        ]

    def _lessons_of(self, window: Window, seen: Iterable[DeviceWindow]) -> list[Lesson]:
        span = (window.start_ns, window.end_ns)
        stepped = self._evidence.has_steps(*span)
        found = [lesson_of(item, *span, stepped=stepped) for item in seen]
        return [lesson for lesson in found if lesson is not None]

    def _open_windows(self, until_ns: int) -> Iterator[Window]:
        """Windows not yet booked that start before `until_ns`."""
        start_ns = self._booked_until_ns
        if start_ns is None:
            first_ns = self._evidence.first_ns
            if first_ns is None:
                return
            # Not the grid's edge before it: so that a page begins where any other length of
            # window would begin it, and is replaced whole by it.
            start_ns = first_ns
        while start_ns < until_ns:
            end_ns = self._window_end(start_ns, until_ns)
            yield Window(self._clock, start_ns, end_ns)
            start_ns = end_ns

    def _window_end(self, start_ns: int, until_ns: int) -> int:
        """The next edge of the UTC grid; a void hour, aligned, is one window."""
        window_ns = self._settings.window_ns
        hour_end_ns = start_ns + _HOUR_NS
        if (
            self._grid_floor(start_ns, _HOUR_NS) == start_ns
            and hour_end_ns <= until_ns
            and self._evidence.is_void(start_ns, hour_end_ns)
        ):
            return hour_end_ns
        return self._grid_floor(start_ns, window_ns) + window_ns

    def _grid_floor(self, t_ns: int, grid_ns: int) -> int:
        utc_ns = self._clock.epoch_ns + t_ns
        return utc_ns - utc_ns % grid_ns - self._clock.epoch_ns

    def _counts_in(self, window: Window) -> EventCounts:
        # What was counted before there was anything to book stands on the first page.
        first = window.start_ns == (
            self._evidence.first_ns if self._origin_ns is None else self._origin_ns
        )
        inside = [
            c
            for t_ns, c in self._events
            if t_ns < window.end_ns and (first or window.start_ns <= t_ns)
        ]
        return EventCounts(
            sum(c.late for c in inside),
            sum(c.duplicates for c in inside),
            sum(c.dropped for c in inside),
        )

    # -------------------------------------------------------------------- booking

    def booked(self, page: Page) -> str:
        """Go on past a page that is on disk; returns the line that `restore` folds back."""
        epoch_ns = page.clock.epoch_ns
        window = Window(page.clock, page.start_ns - epoch_ns, page.end_ns - epoch_ns)
        self._book(window)
        return json.dumps(
            {
                "host": page.clock.host,
                "boot_id": page.clock.boot_id,
                "epoch_ns": epoch_ns,
                "start_ns": window.start_ns,
                "end_ns": window.end_ns,
            }
        )

    def restore(self, booked_json: str) -> None:
        """Fold back a line that `booked` returned."""
        line = json.loads(booked_json)
        clock = Clock(line["host"], line["boot_id"], line["epoch_ns"])
        self._book(Window(clock, line["start_ns"], line["end_ns"]))

    def _book(self, window: Window) -> None:
        self._dirty.discard(window)
        if self._booked_until_ns is not None and window.end_ns <= self._booked_until_ns:
            return
        if self._origin_ns is None:
            self._origin_ns = window.start_ns
        self._learn(window)
        self._booked_until_ns = window.end_ns
        self._windows.append(window)
        if self._settings.horizon_ns is not None:
            self.forget_before(window.end_ns - self._settings.horizon_ns)
            while self._evidence.rows > self._settings.max_rows and self._windows:
                self.forget_before(self._windows[0].end_ns)

    def _learn(self, window: Window) -> None:
        """Windows booked before keep the figures they were booked under, unless restated."""
        lessons = self._lessons.pop(window, None)
        ahead = lessons is not None or not self._settings.learn_idle
        seen = [] if ahead and self._costs.knows(window) else self._seen(window, self._idle)
        self._costs.book(window, seen)
        if self._settings.learn_idle:
            if lessons is None:
                lessons = self._lessons_of(window, seen)
            self._learned.update((device.device, device) for device in self._idle.learn(lessons))

    def remember_idle(self, devices: Iterable[Device]) -> None:
        """Take the idle power that was learned in former boots, before any evidence."""
        for device in devices if self._settings.learn_idle else ():
            self._idle.remember(device)

    def take_learned(self) -> list[Device]:
        """Devices whose idle power was learned anew since this was last asked."""
        learned, self._learned = list(self._learned.values()), {}
        return learned

    @property
    def costs(self) -> Costs:
        """What is calibrated, to be remembered before any evidence and kept as it moves."""
        return self._costs

    def re_anchor(self, clock: Clock, t_ns: int) -> None:
        """Cut windows by another clock from `t_ns` on, which must be booked up to."""
        if self._booked_until_ns is not None and self._booked_until_ns != t_ns:
            raise ValueError("flush and book everything before the clock changes")
        self._clock = clock

    def roster(self) -> list[Evidence]:
        """Devices with their idle power, processes, engines and pinned costs known now."""
        return [
            self._idle.dress(item) if isinstance(item, Device) else item
            for item in self._evidence.roster()
        ]

    def standing(self) -> list[Evidence]:
        """Where each meter stands, as readings that another accountant can go on from."""
        return list(self._evidence.standing())

    def forget_before(self, t_ns: int) -> None:
        """Forget what ended by `t_ns`; only windows whose evidence is whole stay in reach."""
        self._evidence.forget_before(t_ns)
        self._windows = [window for window in self._windows if window.start_ns >= t_ns]
        # What can be restated no more shall not change either.
        reach_ns = self._reach_ns
        if reach_ns is not None:
            for device in self._evidence.devices:
                self._evidence.meter(device.device).pin(reach_ns)
        self._events = [entry for entry in self._events if entry[0] >= t_ns]
