"""Drives each sensor on a thread of its own, and survives whatever a sensor does.

This is one of the two borders where a broad `except` stands: a sensor that raises is counted,
told when its state changes, and tried again later and later. A sensor that blocks delays
nobody but itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from wattledger.records import NS_PER_S, CounterReading, Device, Evidence, PowerReading
from wattledger_collectors.sensors.protocol import Absent, Denied, ReadFault, Sensor, UseSensor
from wattledger_daemon.logs import event

_LOG = logging.getLogger(__name__)
_BACKOFF_S = 1.0
_BACKOFF_LONGEST_S = 60.0
_WAKE_S = 0.5

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

    `open` and `poll` may raise `Absent`, `Denied` or anything. With `last_word` it is polled once
    more when it is stopped: what it tells reaches back to the poll before.
    """

    name: str
    period_s: float
    open: Callable[[], tuple[Device, ...]]
    poll: Callable[[], Polled]
    close: Callable[[], None]
    last_word: bool = False

    @classmethod
    def of(cls, sensor: Sensor) -> Source:
        """An energy sensor as a source."""
        return cls(sensor.name, sensor.period_s, sensor.open, sensor.read, sensor.close)

    @classmethod
    def of_use(cls, sensor: UseSensor, poll: Callable[[], Polled]) -> Source:
        """A use sensor as a source, its `sample` wrapped by `poll`; it has nothing to open."""
        return cls(sensor.name, sensor.period_s, tuple, poll, sensor.close, last_word=True)


@dataclass(frozen=True, slots=True)
class SensorHealth:
    """How a sensor is doing; `reason` says why it does not run, and the mend."""

    name: str
    state: SensorState
    reason: str
    reads: int
    failures: int
    last_duration_s: float


class SensorRunner:
    """One sensor's thread. What it reads goes to `emit`, which never blocks; False: refused."""

    def __init__(
        self,
        source: Source,
        emit: Emit,
        *,
        wanted: Callable[[], bool | None] = lambda: True,
        dress: Callable[[Device], Device] = lambda device: device,
        clock: Callable[[], int] = time.monotonic_ns,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        """Prepare to drive `source`.

        `wanted` says whether to open at all, None while that is not known yet; `dress` adds
        to a found device what the site's config knows of it. `wait` sleeps that many seconds
        and says whether to stop.
        """
        self.name = source.name
        self._devices: tuple[Device, ...] = ()
        self._known: frozenset[str] = frozenset()
        self._source = source
        self._emit = emit
        self._wanted = wanted
        self._dress = dress
        self._clock = clock
        self._stop = threading.Event()
        self._wait = wait or self._pause
        self._thread = threading.Thread(target=self.run, name=f"sensor-{source.name}", daemon=True)
        self._state = SensorState.STARTING
        self._reason = ""
        self._reads = 0
        self._failures = 0
        self._last_duration_s = 0.0
        self._faulty: set[str] = set()
        self._opened = False

    @property
    def health(self) -> SensorHealth:
        """How the sensor is doing now."""
        return SensorHealth(
            self.name,
            self._state,
            self._reason,
            self._reads,
            self._failures,
            self._last_duration_s,
        )

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices found, as the site's config knows them now; empty until it is open."""
        return tuple(map(self._dress, self._devices))

    @property
    def settled(self) -> bool:
        """Whether the sensor has said what it can do here."""
        return self._state in (SensorState.RUNNING, SensorState.ABSENT, SensorState.DENIED)

    def start(self) -> None:
        """Begin to read, on the runner's own thread."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Have the thread end after what it is doing."""
        self._stop.set()

    def join(self, timeout_s: float) -> None:
        """Wait so long for the thread to end; a blocked one is left behind."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def run(self) -> None:
        """Read on absolute deadlines until stopped, or until the sensor proves not to be here.

        Ticks missed by a slow read are skipped, never made up for in a burst.
        """
        period_ns = int(self._source.period_s * NS_PER_S)
        wait_s = 0.0
        next_ns = self._clock()
        while not self._wait(wait_s):
            worked = self.tick()
            if self._state in (SensorState.ABSENT, SensorState.DENIED):
                return
            now_ns = self._clock()
            if worked:
                next_ns += max(1, -((next_ns - now_ns) // period_ns)) * period_ns
                wait_s = max(0.0, (next_ns - now_ns) / NS_PER_S)
            else:
                wait_s = min(max(2 * wait_s, _BACKOFF_S), _BACKOFF_LONGEST_S)
                next_ns = now_ns + int(wait_s * NS_PER_S)
        if self._source.last_word and self._state is SensorState.RUNNING:
            self.tick()
        self.close()

    def _pause(self, seconds: float) -> bool:
        """Sleep; whether to stop. An event that can be woken costs twice a bare sleep."""
        if seconds > _WAKE_S:
            return self._stop.wait(seconds)
        time.sleep(seconds)
        return self._stop.is_set()

    def close(self) -> None:
        """Release what the sensor holds."""
        self._source.close()

    def tick(self) -> bool:
        """Open where that is still to be done, then poll once; whether it worked."""
        start_ns = self._clock()
        try:
            if not self._opened and not self._open():
                return False
            self._hand_over(self._source.poll())
        except Absent as absent:
            self._settle(SensorState.ABSENT, absent.reason)
            return False
        except Denied as denied:
            self._settle(SensorState.DENIED, str(denied))
            return False
        except Exception as error:  # noqa: BLE001 - the border: no sensor may end the daemon
            self._failures += 1
            self._opened = False
            self._settle(SensorState.FAILING, f"{type(error).__name__}: {error}")
            return False
        self._last_duration_s = (self._clock() - start_ns) / NS_PER_S
        self._reads += 1
        self._settle(SensorState.RUNNING, "")
        return True

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
