"""Drives one sensor, and survives whatever it does; `beats.py` gives it a thread.

This is one of the two borders where a broad `except` stands: a sensor that raises is counted,
told when its state changes, and tried again later and later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
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
from wattledger_daemon.faults import FaultLog
from wattledger_daemon.logs import event

_LOG = logging.getLogger(__name__)
_BACKOFF_S = 1.0
_BACKOFF_LONGEST_S = 60.0
_HAND_OVER_NS = NS_PER_S
_SLOW_NS = NS_PER_S // 4
_STUCK_NS = NS_PER_S
_STUCK_OPENING_NS = 5 * NS_PER_S
_STUCK_LONGEST_NS = 10 * NS_PER_S
_BUSY_SHARE = 0.05
_THROTTLED_S = 30.0
_REMEMBERED = 5

Emit = Callable[[Sequence[Evidence]], bool]
Polled = Sequence[Evidence | ReadFault]
_READINGS = (CounterReading, PowerReading)
MEASURED = "another sensor measures this"


class SensorState(StrEnum):
    """What a sensor is doing; `absent` and `denied` are final until a restart.

    `stuck` is one that is in a call which does not return.
    """

    STARTING = "starting"
    RUNNING = "running"
    ABSENT = "absent"
    DENIED = "denied"
    FAILING = "failing"
    STUCK = "stuck"


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
        wanted: Callable[[], bool | str] = lambda: True,
        found: Callable[[tuple[Device, ...]], None] = lambda _: None,
        dress: Callable[[Device], Device] = lambda device: device,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Prepare to drive `source`.

        `wanted` says whether to open at all, or what it waits for to know that; `found` hears of
        the devices before `emit` does; `dress` adds to one what the site's config knows of it.
        `emit` may raise Absent: then the sensor is wanted no more.
        """
        self.name = source.name
        self.due_ns = clock()
        # Whether somebody waits for what was polled: it is handed over after the next poll.
        self.asked = False
        self.state = SensorState.STARTING
        self._devices: tuple[Device, ...] = ()
        self._known: frozenset[str] = frozenset()
        self._source = source
        self._emit = emit
        self._wanted = wanted
        self._found = found
        self._dress = dress
        self._clock = clock
        self._base_ns = self._period_ns = int(source.period_s * NS_PER_S)
        self._wait_s = 0.0
        # Its own thread settles the state; that it is stuck can only be seen by another.
        self._lock = threading.Lock()
        self._before = self.state
        self._hung_ns = 0
        self._reason = ""
        self._reads = 0
        self._failures = 0
        self._skipped = 0
        self._throttles = 0
        self._last_ns = 0
        self._longest_ns = 0
        self._durations_ns: deque[int] = deque(maxlen=_REMEMBERED)
        self._faults = FaultLog(source.name)
        self._opened = False
        self._pending: list[Evidence | ReadFault] = []
        self._handed_ns = self.due_ns

    @property
    def health(self) -> SensorHealth:
        """How the sensor is doing now; any thread may ask."""
        stuck_ns, reason = self.stuck_ns, self._reason
        if stuck_ns:
            reason = f"in a call since {stuck_ns // NS_PER_S} s"
        return SensorHealth(
            self.name,
            SensorState.STUCK if stuck_ns else self.state,
            reason,
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
        return self.state in (SensorState.RUNNING, SensorState.ABSENT, SensorState.DENIED)

    @property
    def over(self) -> bool:
        """Whether the sensor has proved not to be here, or not to be ours to read."""
        return self.state in (SensorState.ABSENT, SensorState.DENIED)

    @property
    def patience_ns(self) -> int:
        """How long a turn may take while others wait for it."""
        return _STUCK_NS if self._reads else _STUCK_OPENING_NS

    @property
    def stuck_after_ns(self) -> int:
        """How long a turn may take before the sensor counts as stuck: its period, if that is long.

        A management controller that is asked each 4 s, say, may take its time.
        """
        return max(self.patience_ns, min(self._period_ns, _STUCK_LONGEST_NS))

    @property
    def stuck_ns(self) -> int:
        """How long the call has taken that the sensor is stuck in; 0 where it is not."""
        return self._clock() - self._hung_ns if self.state is SensorState.STUCK else 0

    def hang(self, since_ns: int) -> None:
        """Note that the turn begun at `since_ns` does not end; any thread may say so."""
        with self._lock:
            if self.over or self.state is SensorState.STUCK:
                return
            self._hung_ns, self._before = since_ns, self.state
            self.state = SensorState.STUCK
        self._failures += 1
        self._faults.stuck()

    def came_back(self) -> None:
        """Note that a turn has ended; its own thread may say so, whatever came of it."""
        if self.state is SensorState.STUCK:
            self._settle(self._before, self._reason)

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
        self._last_ns = end_ns - start_ns
        if self.asked or end_ns - self._handed_ns >= _HAND_OVER_NS - self._period_ns // 2:
            self.flush()
        if self._source.costly:
            self._throttle()
        beats = max(1, -((self.due_ns - end_ns) // self._period_ns))
        self._skipped += beats - 1
        self.due_ns += beats * self._period_ns
        self._longest_ns = max(self._longest_ns, self._last_ns)
        return self._last_ns > _SLOW_NS and not first

    def tick(self) -> bool:
        """Open where that is still to be done, poll once, hand over; whether it worked."""
        return self._poll() and self.flush()

    def last_word(self) -> None:
        """Poll once more where the time since the last poll would be lost; hand over."""
        if self._source.costly and self.state is SensorState.RUNNING:
            self._poll()
            self.flush()

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
            self.flush()
            self._failed(error)
            return False
        self._reads += 1
        if self.state is not SensorState.RUNNING:
            if not self.flush():
                return False
            self._settle(SensorState.RUNNING, "", tell=not self._faults.failing)
        return True

    def _failed(self, error: Exception) -> None:
        if isinstance(error, Absent | Denied):
            self._devices = ()
            absent = isinstance(error, Absent)
            self._settle(SensorState.ABSENT if absent else SensorState.DENIED, str(error))
        else:
            self._failures += 1
            self._opened = False
            reason = f"{type(error).__name__}: {error}"
            self._settle(SensorState.FAILING, reason, tell=self._faults.failed())

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
        if not wanted:
            raise Absent(MEASURED)
        if isinstance(wanted, str):
            # It looks again each second: this is no failure that should be left alone.
            self._reason, self._wait_s = wanted, 0.0
            return False
        devices = self._source.open()
        self._found(devices)
        # A reading means nothing to the books before its device is known there.
        if not self._emit(tuple(map(self._dress, devices))):
            return False
        self._devices = devices
        self._known = frozenset(device.device for device in devices)
        self._opened = True
        return True

    def _open_anew(self, change: DevicesChanged) -> bool:
        _LOG.info(event("devices_changed", sensor=self.name, what=change))
        self.flush()
        self._opened = False
        return self._open()

    # --------------------------------------------------------------- handing over

    def flush(self) -> bool:
        """Hand over what was polled; False where it is of an unknown device, or not wanted."""
        polled, self._pending = self._pending, []
        self.asked = False
        self._handed_ns = self._clock()
        try:
            self._hand_over(polled)
        except (LookupError, Absent) as error:
            self._failed(error)
            return False
        return True

    def _hand_over(self, polled: Polled) -> None:
        evidence: list[Evidence] = []
        for item in polled:
            if isinstance(item, ReadFault):
                self._failures += 1
                self._faults.device_failed(item)
                continue
            if isinstance(item, _READINGS) and item.device not in self._known:
                raise LookupError(f"a reading of {item.device}, which open() did not name")
            evidence.append(item)
        if evidence:
            self._emit(evidence)
        if (self._faults.open or self._wait_s) and self.state is SensorState.RUNNING:
            # A use sensor may tell nothing of a device that is well.
            read = {item.device for item in evidence if isinstance(item, _READINGS)}
            self._faults.look(self._handed_ns, None if self._source.costly else read)
            if not self._faults.failing:
                self._wait_s = 0.0

    def _settle(self, state: SensorState, reason: str, *, tell: bool = True) -> None:
        """Take on a state; `tell` it where it is another than before it was stuck."""
        with self._lock:
            before, self.state, self._reason = self.state, state, reason
        if before is SensorState.STUCK:
            before = self._before
            self._faults.back(self._clock() - self._hung_ns)
        if state is before or not tell:
            return
        level = logging.INFO
        if state is SensorState.FAILING or state is SensorState.DENIED:
            level = logging.WARNING
        fields = {"reason": reason} if reason else {}
        if before is not SensorState.STARTING:
            fields["was"] = before.value
        _LOG.log(level, event(f"sensor_{state.value}", sensor=self.name, **fields))
