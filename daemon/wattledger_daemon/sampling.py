"""Drives one sensor, and survives whatever it does; `beats.py` gives it a thread.

This is one of the two borders where a broad `except` stands: a sensor that raises is counted,
told when its state changes, and tried again later and later.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from wattledger.records import NS_PER_S, CounterReading, Device, Evidence, PowerReading
from wattledger_collectors.sensors.protocol import (
    Absent,
    Denied,
    DevicesChanged,
    ReadFault,
    Sensor,
    UseSensor,
)
from wattledger_daemon.logs import event

_LOG = logging.getLogger(__name__)
_BACKOFF_S = 1.0
_BACKOFF_LONGEST_S = 60.0
_HAND_OVER_NS = NS_PER_S
_SLOW_NS = NS_PER_S // 4
_STUCK_NS = NS_PER_S
_STUCK_OPENING_NS = 5 * NS_PER_S
_BUSY_SHARE = 0.05
_THROTTLED_S = 30.0
_REMEMBERED = 5

Emit = Callable[[Sequence[Evidence]], bool]
Polled = Sequence[Evidence | ReadFault]
_READINGS = (CounterReading, PowerReading)


class SensorState(StrEnum):
    """What a sensor is doing; `absent` and `denied` are final until a restart."""

    STARTING = "starting"
    RUNNING = "running"
    ABSENT = "absent"
    DENIED = "denied"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class Source:
    """What a runner drives: energy sensors and use sensors under one face.

    `open` and `poll` may raise `Absent`, `Denied` or anything. One that is `costly` is polled less
    often where its polls take long, and once more when it is stopped: what it tells reaches back
    to the poll before.
    """

    name: str
    period_s: float
    open: Callable[[], tuple[Device, ...]]
    poll: Callable[[], Polled]
    close: Callable[[], None]
    costly: bool = False

    @classmethod
    def of(cls, sensor: Sensor) -> Source:
        """An energy sensor as a source."""
        return cls(sensor.name, sensor.period_s, sensor.open, sensor.read, sensor.close)

    @classmethod
    def of_use(cls, sensor: UseSensor, poll: Callable[[], Polled]) -> Source:
        """A use sensor as a source, its `sample` wrapped by `poll`; it has nothing to open."""
        return cls(sensor.name, sensor.period_s, tuple, poll, sensor.close, costly=True)


@dataclass(frozen=True, slots=True)
class SensorHealth:
    """How a sensor is doing; `reason` says why it does not run, and the mend.

    `skipped` counts the polls that were not made because one before them took too long;
    `throttles` how often it was slowed down for being costly, `period_s` its period now.
    """

    name: str
    state: SensorState
    reason: str
    reads: int
    failures: int
    last_duration_s: float
    longest_duration_s: float = 0.0
    skipped: int = 0
    throttles: int = 0
    period_s: float = 0.0


class SensorRunner:
    """One sensor, polled when it is due; any one thread at a time may drive it.

    What it reads goes to `emit`, which never blocks (False: refused), once a second: the poll
    itself stays as short as it can, for it runs ten times a second on a CPU that has just woken.
    """

    def __init__(
        self,
        source: Source,
        emit: Emit,
        *,
        wanted: Callable[[], bool | None] = lambda: True,
        dress: Callable[[Device], Device] = lambda device: device,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Prepare to drive `source`.

        `wanted` says whether to open at all, None while that is not known yet; `dress` adds
        to a found device what the site's config knows of it.
        """
        self.name = source.name
        self.due_ns = clock()
        self._devices: tuple[Device, ...] = ()
        self._known: frozenset[str] = frozenset()
        self._source = source
        self._emit = emit
        self._wanted = wanted
        self._dress = dress
        self._clock = clock
        self._base_ns = self._period_ns = int(source.period_s * NS_PER_S)
        self._wait_s = 0.0
        self._state = SensorState.STARTING
        self._reason = ""
        self._reads = 0
        self._failures = 0
        self._skipped = 0
        self._throttles = 0
        self._last_ns = 0
        self._longest_ns = 0
        self._durations_ns: deque[int] = deque(maxlen=_REMEMBERED)
        self._faulty: set[str] = set()
        self._opened = False
        self._pending: list[Evidence | ReadFault] = []
        self._handed_ns = self.due_ns

    @property
    def health(self) -> SensorHealth:
        """How the sensor is doing now."""
        return SensorHealth(
            self.name,
            self._state,
            self._reason,
            self._reads,
            self._failures,
            self._last_ns / NS_PER_S,
            self._longest_ns / NS_PER_S,
            self._skipped,
            self._throttles,
            self._period_ns / NS_PER_S,
        )

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices found, as the site's config knows them now; empty until it is open."""
        return tuple(map(self._dress, self._devices))

    @property
    def settled(self) -> bool:
        """Whether the sensor has said what it can do here."""
        return self._state in (SensorState.RUNNING, SensorState.ABSENT, SensorState.DENIED)

    @property
    def over(self) -> bool:
        """Whether the sensor has proved not to be here, or not to be ours to read."""
        return self._state in (SensorState.ABSENT, SensorState.DENIED)

    @property
    def patience_ns(self) -> int:
        """How long a turn may take before the sensor counts as stuck."""
        return _STUCK_NS if self._reads else _STUCK_OPENING_NS

    # ------------------------------------------------------------------- polling

    def turn(self) -> bool:
        """Poll once and settle `due_ns`, on absolute deadlines; whether it was slow.

        Polls missed by a slow one are skipped, never made up for in a burst. Finding the devices
        at the start may take its time.
        """
        start_ns, first = self._clock(), not self._reads
        worked = self._poll()
        end_ns = self._clock()
        if not worked:
            self._wait_s = min(max(2 * self._wait_s, _BACKOFF_S), _BACKOFF_LONGEST_S)
            self.due_ns = end_ns + int(self._wait_s * NS_PER_S)
            return end_ns - start_ns > _SLOW_NS and not first
        self._wait_s = 0.0
        self._last_ns = end_ns - start_ns
        if end_ns - self._handed_ns >= _HAND_OVER_NS - self._period_ns // 2:
            self._flush()
        if self._source.costly:
            self._throttle()
        beats = max(1, -((self.due_ns - end_ns) // self._period_ns))
        self._skipped += beats - 1
        self.due_ns += beats * self._period_ns
        self._longest_ns = max(self._longest_ns, self._last_ns)
        return self._last_ns > _SLOW_NS and not first

    def tick(self) -> bool:
        """Open where that is still to be done, poll once, hand over; whether it worked."""
        return self._poll() and self._flush()

    def finish(self) -> None:
        """Say the last word, and release what the sensor holds."""
        if self._source.costly and self._state is SensorState.RUNNING:
            self._poll()
        self._flush()
        self.close()

    def close(self) -> None:
        """Release what the sensor holds."""
        try:
            self._source.close()
        except Exception as error:  # noqa: BLE001 - the border: others share this thread
            _LOG.warning(event("sensor_close_failed", sensor=self.name, reason=error))

    def _poll(self) -> bool:
        try:
            if not self._opened and not self._open():
                return False
            try:
                self._pending += self._source.poll()
            except DevicesChanged as change:
                if not self._open_anew(change):
                    return False
                self._pending += self._source.poll()
        except Exception as error:  # noqa: BLE001 - the border: no sensor may end the daemon
            self._flush()
            self._failed(error)
            return False
        self._reads += 1
        if self._state is not SensorState.RUNNING:
            if not self._flush():
                return False
            self._settle(SensorState.RUNNING, "")
        return True

    def _failed(self, error: Exception) -> None:
        if isinstance(error, Absent):
            self._settle(SensorState.ABSENT, error.reason)
        elif isinstance(error, Denied):
            self._settle(SensorState.DENIED, str(error))
        else:
            self._failures += 1
            self._opened = False
            self._settle(SensorState.FAILING, f"{type(error).__name__}: {error}")

    def _throttle(self) -> None:
        """Keep a costly sensor's polls to a twentieth of the time: a driver locks others out."""
        self._durations_ns.append(self._last_ns)
        # The median, by hand: the library's would bring a megabyte of decimals with it.
        spent_ns = sorted(self._durations_ns)[len(self._durations_ns) // 2]
        wanted_ns = min(
            max(self._base_ns, int(spent_ns / _BUSY_SHARE)), int(_THROTTLED_S * NS_PER_S)
        )
        # Not at every wobble: only where the period would double, or could be halved.
        if wanted_ns >= 2 * self._period_ns:
            self._throttles += 1
            _LOG.warning(
                event("sensor_throttled", sensor=self.name, period_s=f"{wanted_ns / NS_PER_S:.1f}")
            )
        elif 2 * wanted_ns > self._period_ns and wanted_ns > self._base_ns:
            return
        self._period_ns = wanted_ns

    def _open(self) -> bool:
        wanted = self._wanted()
        if wanted is None:
            return False
        if not wanted:
            raise Absent("another sensor measures this")
        devices = self._source.open()
        # A reading means nothing to the books before its device is known there.
        if not self._emit(tuple(map(self._dress, devices))):
            return False
        self._devices = devices
        self._known = frozenset(device.device for device in devices)
        self._opened = True
        return True

    def _open_anew(self, change: DevicesChanged) -> bool:
        _LOG.info(event("devices_changed", sensor=self.name, what=change))
        self._flush()
        self._opened = False
        return self._open()

    # --------------------------------------------------------------- handing over

    def _flush(self) -> bool:
        """Hand over what was polled; False where it names a device that `open` did not."""
        polled, self._pending = self._pending, []
        self._handed_ns = self._clock()
        try:
            self._hand_over(polled)
        except LookupError as error:
            self._failed(error)
            return False
        return True

    def _hand_over(self, polled: Polled) -> None:
        evidence: list[Evidence] = []
        for item in polled:
            if isinstance(item, ReadFault):
                self._tell_fault(item)
                continue
            if isinstance(item, _READINGS) and item.device not in self._known:
                raise LookupError(f"a reading of {item.device}, which open() did not name")
            evidence.append(item)
        if self._faulty:
            self._tell_mended(evidence)
        if evidence:
            self._emit(evidence)

    def _tell_fault(self, fault: ReadFault) -> None:
        self._failures += 1
        if fault.device not in self._faulty:
            self._faulty.add(fault.device)
            fields = {"device": fault.device, "reason": fault.reason}
            _LOG.warning(event("read_fault", sensor=self.name, **fields))

    def _tell_mended(self, evidence: Iterable[Evidence]) -> None:
        read = {item.device for item in evidence if isinstance(item, _READINGS)}
        for device in self._faulty & read:
            _LOG.info(event("read_again", sensor=self.name, device=device))
        self._faulty -= read

    def _settle(self, state: SensorState, reason: str) -> None:
        """Take on a state; tell it where it is another."""
        self._reason = reason
        if state is self._state:
            return
        before, self._state = self._state, state
        level = logging.INFO
        if state is SensorState.FAILING or state is SensorState.DENIED:
            level = logging.WARNING
        fields = {"reason": reason} if reason else {}
        if before is not SensorState.STARTING:
            fields["was"] = before.value
        _LOG.log(level, event(f"sensor_{state.value}", sensor=self.name, **fields))
