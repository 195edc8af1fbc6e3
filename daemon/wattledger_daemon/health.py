"""What the daemon knows of its own state, as one immutable snapshot a second.

The pipeline thread makes the snapshot and swaps it in whole; readers take it without a lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from wattledger.records import (
    NS_PER_S,
    CounterReading,
    Device,
    Evidence,
    Page,
    PowerReading,
    Quality,
)
from wattledger_daemon.batches import Events
from wattledger_daemon.crosscheck import CrossCheck
from wattledger_daemon.live import LastWindows, WindowSums
from wattledger_daemon.sampling import SensorHealth

_POWER_SPAN_NS = NS_PER_S
_STALE_NS = 10 * NS_PER_S


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """A device's mean power over the last second or so.

    None before the second reading, and where none came for 10 s. `counter_ratio` is the
    counter's energy over that of integrated power; None before a minute of both.
    """

    device: Device
    power_w: float | None
    quality: Quality
    gaps: int
    resets: int
    counter_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """An engine as its reports tell of it; `last_ns` is when it last reported.

    The steps of a `coarse` one are sums over stretches of time.
    """

    engine: str
    kind: str
    model: str
    pids: tuple[int, ...]
    prefill_tokens: int
    decode_tokens: int
    finishes: int
    dropped_events: int
    duplicates: int
    refused: int
    last_ns: int
    coarse: bool = False


@dataclass(frozen=True, slots=True)
class Running:
    """Unfinished requests of an engine's latest step, which ended at `end_ns`; None: not told."""

    end_ns: int
    requests: int | None


@dataclass(frozen=True, slots=True)
class Work:
    """What the pipeline did: its turns, what it keeps for a restart, events counted in pages.

    `folded` requests stand with the others, their tenant being one too many.
    """

    turn_s: float = 0.0
    longest_turn_s: float = 0.0
    journal_bytes: int = 0
    late: int = 0
    duplicates: int = 0
    dropped: int = 0
    folded: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The daemon's state at `t_ns`, CLOCK_MONOTONIC."""

    t_ns: int
    devices: tuple[DeviceHealth, ...] = ()
    engines: tuple[EngineHealth, ...] = ()
    sensors: tuple[SensorHealth, ...] = ()
    queue_depth: int = 0
    windows_booked: int = 0
    windows: tuple[WindowSums, ...] = ()
    running: Mapping[str, Running] = field(default_factory=dict)
    work: Work = Work()


@dataclass(slots=True)
class _Gauge:
    """Live figures of one device."""

    device: Device
    anchor: CounterReading | None = None
    latest: CounterReading | None = None
    power_w: float | None = None
    read_ns: int = 0
    counted: bool = False
    gaps: int = 0
    resets: int = 0
    check: CrossCheck = field(default_factory=CrossCheck)

    def counter(self, reading: CounterReading) -> None:
        """Mean power since the anchor, once that lies far enough back; a reset starts anew."""
        self.counted = True
        self.latest = reading
        anchor = self.anchor
        if anchor is None or reading.energy_uj < anchor.energy_uj:
            self.anchor = reading
        elif reading.t_ns - anchor.t_ns >= _POWER_SPAN_NS:
            spent_uj = reading.energy_uj - anchor.energy_uj
            self.power_w = spent_uj * 1e-6 / ((reading.t_ns - anchor.t_ns) / NS_PER_S)
            self.anchor = reading
            self.read_ns = reading.t_ns

    def power(self, reading: PowerReading) -> None:
        """The power itself, where nothing counts it; else what the counter is checked by."""
        if self.latest is not None:
            self.check.take(reading, self.latest)
        elif not self.counted:
            self.power_w = reading.power_uw * 1e-6
            self.read_ns = reading.t_ns

    def health(self, now_ns: int) -> DeviceHealth:
        quality = Quality.MEASURED if self.counted else Quality.INTEGRATED
        if self.device.estimated:
            quality = Quality.ESTIMATED
        power_w = self.power_w if now_ns - self.read_ns <= _STALE_NS else None
        return DeviceHealth(self.device, power_w, quality, self.gaps, self.resets, self.check.ratio)


@dataclass(slots=True)
class Health:
    """Gathers what passes the pipeline; used by its thread alone."""

    windows_booked: int = 0
    _gauges: dict[str, _Gauge] = field(default_factory=dict)
    _booked_until_ns: int = 0
    _last: LastWindows = field(default_factory=LastWindows)
    _running: dict[str, Running] = field(default_factory=dict)
    _work: Work = field(default_factory=Work)
    _journalled: deque[tuple[int, int]] = field(default_factory=deque)
    _journal_bytes: int = 0

    def saw(self, evidence: Iterable[Evidence]) -> None:
        """Follow the devices and their readings in a stretch of evidence."""
        for item in evidence:
            if isinstance(item, CounterReading):
                if item.device in self._gauges:
                    self._gauges[item.device].counter(item)
            elif isinstance(item, PowerReading):
                gauge = self._gauges.get(item.device)
                if gauge is not None:
                    gauge.power(item)
            elif isinstance(item, Device):
                known = self._gauges.setdefault(item.device, _Gauge(item))
                known.device = item

    def reported(self, told: Iterable[Events]) -> None:
        """Follow what engines run, each by the last step that any batch of events tells of."""
        latest: dict[str, tuple[int, Events]] = {}
        for events in told:
            engine, ends_ns = events.steps.engine, events.steps.ends_ns
            if ends_ns and (engine not in latest or latest[engine][0] <= max(ends_ns)):
                latest[engine] = max(ends_ns), events
        for engine, (end_ns, events) in latest.items():
            known = self._running.get(engine)
            if known is None or known.end_ns <= end_ns:
                self._running[engine] = Running(end_ns, _unfinished(events, end_ns))

    def journalled(self, t_ns: int, size_bytes: int) -> None:
        """Note what was written to the journal."""
        self._journalled.append((t_ns, size_bytes))
        self._journal_bytes += size_bytes

    def trimmed(self, before_ns: int) -> None:
        """Note that the journal forgot its entries before `before_ns`; so does this."""
        while self._journalled and self._journalled[0][0] < before_ns:
            self._journal_bytes -= self._journalled.popleft()[1]
        self._running = {e: r for e, r in self._running.items() if r.end_ns >= before_ns}

    def turned(self, duration_ns: int) -> None:
        """Note how long a turn took."""
        turn_s = duration_ns / NS_PER_S
        longest_s = max(self._work.longest_turn_s, turn_s)
        self._work = replace(self._work, turn_s=turn_s, longest_turn_s=longest_s)

    def folded(self, requests: int) -> None:
        """Note how many requests' tenants were folded into the others so far."""
        if requests != self._work.folded:
            self._work = replace(self._work, folded=requests)

    def booked(self, page: Page) -> None:
        """Count a booked window, once however often it is booked again."""
        self._last.booked(page)
        epoch_ns = page.clock.epoch_ns
        if page.start_ns - epoch_ns < self._booked_until_ns:
            return
        self._booked_until_ns = page.end_ns - epoch_ns
        self.windows_booked += 1
        self._work = replace(
            self._work,
            late=self._work.late + page.late,
            duplicates=self._work.duplicates + page.duplicates,
            dropped=self._work.dropped + page.dropped,
        )
        for metered in page.metered:
            gauge = self._gauges.get(metered.device)
            if gauge is not None:
                gauge.gaps += metered.gaps
                gauge.resets += metered.resets

    def snapshot(
        self,
        t_ns: int,
        engines: Sequence[EngineHealth],
        sensors: Sequence[SensorHealth],
        queue_depth: int,
    ) -> Snapshot:
        """The state now, as one immutable value."""
        devices = tuple(gauge.health(t_ns) for gauge in self._gauges.values())
        return Snapshot(
            t_ns,
            devices,
            tuple(engines),
            tuple(sensors),
            queue_depth,
            self.windows_booked,
            self._last.windows,
            dict(self._running),
            replace(self._work, journal_bytes=self._journal_bytes),
        )


def _unfinished(events: Events, end_ns: int) -> int | None:
    """How many requests of the step that ended then have not finished; None: not told."""
    steps = events.steps
    at = steps.ends_ns.index(end_ns)
    if not steps.sums[at].requests or "" in steps.names:
        # Nobody in particular may be any number of requests.
        return None
    last = set(steps.requests[at])
    last.update(r for r, first, length, _ in steps.stretches if first <= at < first + length)
    names = steps.names
    ended = {finish.request for finish in events.finishes}
    return len(last) - sum(name in names and names.index(name) in last for name in ended)
