"""What the daemon knows of its own state, as one immutable snapshot a second.

The pipeline thread makes the snapshot and swaps it in whole; readers take it without a lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from wattledger.records import (
    NS_PER_S,
    CounterReading,
    Device,
    Evidence,
    Page,
    PowerReading,
    Quality,
)
from wattledger_daemon.sampling import SensorHealth

_POWER_SPAN_NS = NS_PER_S


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """A device's mean power over the last second or so; None before the second reading."""

    device: Device
    power_w: float | None
    quality: Quality
    gaps: int
    resets: int


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """An engine as its reports tell of it; `last_ns` is when it last reported."""

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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The daemon's state at `t_ns`, CLOCK_MONOTONIC."""

    t_ns: int
    devices: tuple[DeviceHealth, ...] = ()
    engines: tuple[EngineHealth, ...] = ()
    sensors: tuple[SensorHealth, ...] = ()
    queue_depth: int = 0
    windows_booked: int = 0


@dataclass(slots=True)
class _Gauge:
    """Live figures of one device."""

    device: Device
    anchor: CounterReading | None = None
    power_w: float | None = None
    counted: bool = False
    gaps: int = 0
    resets: int = 0

    def counter(self, reading: CounterReading) -> None:
        """Mean power since the anchor, once that lies far enough back; a reset starts anew."""
        self.counted = True
        anchor = self.anchor
        if anchor is None or reading.energy_uj < anchor.energy_uj:
            self.anchor = reading
        elif reading.t_ns - anchor.t_ns >= _POWER_SPAN_NS:
            spent_uj = reading.energy_uj - anchor.energy_uj
            self.power_w = spent_uj * 1e-6 / ((reading.t_ns - anchor.t_ns) / NS_PER_S)
            self.anchor = reading

    def health(self) -> DeviceHealth:
        quality = Quality.MEASURED if self.counted else Quality.INTEGRATED
        if self.device.estimated:
            quality = Quality.ESTIMATED
        return DeviceHealth(self.device, self.power_w, quality, self.gaps, self.resets)


@dataclass(slots=True)
class Health:
    """Gathers what passes the pipeline; used by its thread alone."""

    windows_booked: int = 0
    _gauges: dict[str, _Gauge] = field(default_factory=dict)
    _booked_until_ns: int = 0

    def saw(self, evidence: Iterable[Evidence]) -> None:
        """Follow the devices and their readings in a stretch of evidence."""
        for item in evidence:
            if isinstance(item, CounterReading):
                if item.device in self._gauges:
                    self._gauges[item.device].counter(item)
            elif isinstance(item, PowerReading):
                gauge = self._gauges.get(item.device)
                if gauge is not None and not gauge.counted:
                    gauge.power_w = item.power_uw * 1e-6
            elif isinstance(item, Device):
                known = self._gauges.setdefault(item.device, _Gauge(item))
                known.device = item

    def booked(self, page: Page) -> None:
        """Count a booked window, once however often it is booked again."""
        epoch_ns = page.clock.epoch_ns
        if page.start_ns - epoch_ns < self._booked_until_ns:
            return
        self._booked_until_ns = page.end_ns - epoch_ns
        self.windows_booked += 1
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
        devices = tuple(gauge.health() for gauge in self._gauges.values())
        return Snapshot(
            t_ns, devices, tuple(engines), tuple(sensors), queue_depth, self.windows_booked
        )
