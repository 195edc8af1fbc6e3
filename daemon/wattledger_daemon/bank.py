"""All sensors of the host: found by entry point, one runner each."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from typing import TypeVar

from wattledger.errors import InputError
from wattledger.records import NS_PER_S, Device, DeviceKind, Evidence, StaticBasis, UseRecord
from wattledger_collectors.sensors.protocol import (
    Absent,
    ProcessTracker,
    Sensor,
    SensorSettings,
    UseSensor,
)
from wattledger_daemon.beats import Beat
from wattledger_daemon.config import DaemonConfig
from wattledger_daemon.logs import event
from wattledger_daemon.sampling import (
    MEASURED,
    Emit,
    Polled,
    SensorHealth,
    SensorRunner,
    SensorState,
    Source,
)

_LOG = logging.getLogger(__name__)
SENSORS = "wattledger.sensors"
USE_SENSORS = "wattledger.use_sensors"
_STOP_S = 1.0
_REQUIRED_S = 10.0
_CPU_METERS = frozenset({"rapl", "hwmon"})
_ESTIMATE = "estimate"
_WAITS_NS = 10 * NS_PER_S

T = TypeVar("T")
Makers = Mapping[str, Callable[[SensorSettings], T]]


def find_sensors() -> Makers[Sensor]:
    """Energy sensors by name; one whose library is missing is told and left out."""
    return _find(SENSORS)


def find_use_sensors() -> Makers[UseSensor]:
    """Use sensors by name; as `find_sensors`."""
    return _find(USE_SENSORS)


def _find(group: str) -> Makers[T]:
    found: dict[str, Callable[[SensorSettings], T]] = {}
    for entry in entry_points(group=group):
        try:
            found[entry.name] = entry.load()
        except (ImportError, AttributeError) as error:
            _LOG.warning(event("sensor_not_loaded", sensor=entry.name, reason=error))
    return found


class SensorBank:
    """The runners of all sensors, and what joins them.

    The estimate stands in where RAPL gives no CPU, and goes as soon as it does: the books never
    hear of a CPU from both. CPU use is told of the devices that are metered, and of the processes
    that hold GPUs.
    """

    def __init__(
        self,
        config: DaemonConfig,
        emit: Emit,
        found: Makers[Sensor],
        users: Makers[UseSensor] | None = None,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._static_w = config.power.static_w
        self._required = config.sensors.named("require")
        self._emit = emit
        self._clock = clock
        self._beats: list[Beat] = []
        self._beats_lock = threading.Lock()
        self._stopped = False
        # Held while anything is told of a CPU that is estimated, and to say that one is measured.
        self._cpu_lock = threading.Lock()
        self._cpu_measured = False
        settings = _settings_of(config)
        off = config.sensors.named("off")
        self._runners = {
            name: self._runner(name, make(settings))
            for name, make in found.items()
            if name not in off
        }
        makers = find_use_sensors() if users is None else users
        use_sensors = [make(settings) for make in makers.values()]
        self._use_sensors = [
            sensor
            for sensor in use_sensors
            if not sensor.beside or not self._runners.keys().isdisjoint(sensor.beside)
        ]
        self._trackers = [s for s in self._use_sensors if isinstance(s, ProcessTracker)]
        self._users = [
            SensorRunner(Source.of_use(sensor, self._sampler(sensor)), emit, clock=clock)
            for sensor in self._use_sensors
        ]

    def _runner(self, name: str, sensor: Sensor) -> SensorRunner:
        estimated, meters_cpu = name == _ESTIMATE, name in _CPU_METERS
        return SensorRunner(
            Source.of(sensor),
            self._emit_estimate if estimated else self._emit,
            wanted=self._estimate_wanted if estimated else lambda: True,
            found=self._claim_cpu if meters_cpu else lambda _: None,
            dress=self._dress,
            clock=self._clock,
        )

    @property
    def runners(self) -> list[SensorRunner]:
        """Every runner, those others depend on first."""
        energy = sorted(self._runners.items(), key=lambda item: item[0] == _ESTIMATE)
        return [*(runner for _, runner in energy), *self._users]

    @property
    def devices(self) -> tuple[Device, ...]:
        """Every device that is metered now."""
        return tuple(
            device
            for name, runner in self._runners.items()
            if not (name == _ESTIMATE and self._cpu_measured)
            for device in runner.devices
        )

    def health(self) -> list[SensorHealth]:
        """How every sensor is doing."""
        return [runner.health for runner in self.runners]

    def require(self, patience_s: float = _REQUIRED_S) -> None:
        """Open what the config requires; raises InputError naming what cannot be had in time."""
        for name in sorted(self._required):
            runner = self._runners.get(name)
            reason, running = "it is not installed", False
            if runner is not None:
                # On a thread of its own, which a driver that hangs may keep.
                opening = threading.Thread(target=runner.tick, name=name, daemon=True)
                opening.start()
                opening.join(patience_s)
                answered = not opening.is_alive()
                reason = runner.health.reason if answered else "it does not answer"
                running = answered and runner.health.state is SensorState.RUNNING
            if not running:
                raise InputError(
                    f'sensors.{name} = "require": {reason}: mend that, or set it to "auto"'
                )

    def start(self) -> None:
        """Begin to read: energy on one thread, use on another, until one proves to be slow."""
        energy = self.runners[: len(self._runners)]
        self._spawn(tuple(energy), name="sensors")
        self._spawn(tuple(self._users), name="use")

    def watch(self) -> None:
        """Free the sensors that wait behind one that is stuck."""
        for beat in list(self._beats):
            beat.watch()

    def hand_over_soon(self) -> None:
        """Have what is metered handed over at each sensor's next poll; any thread may ask."""
        for runner in self._runners.values():
            runner.asked = True

    def stop(self) -> None:
        """Stop every sensor within a second; one that blocks is left behind."""
        with self._beats_lock:
            self._stopped = True
            beats = list(self._beats)
        for beat in beats:
            beat.ask_to_stop()
        until_ns = time.monotonic_ns() + int(_STOP_S * NS_PER_S)
        for beat in beats:
            beat.join(max(0.0, (until_ns - time.monotonic_ns()) / NS_PER_S))

    def _spawn(self, runners: tuple[SensorRunner, ...], name: str = "") -> None:
        with self._beats_lock:
            if not self._stopped:
                name = name or f"sensor-{runners[0].name}"
                beat = Beat(name, runners, self._spawn, clock=self._clock)
                self._beats.append(beat)
                beat.start()
                return
        # Nobody would stop it any more; what was polled is not lost for that.
        for runner in runners:
            runner.flush()

    def close(self) -> None:
        """Release every sensor of a bank that was never started."""
        for runner in self.runners:
            runner.close()

    def track(self, pids: Iterable[int]) -> None:
        """Follow the CPU time of these processes; any thread may ask."""
        known = tuple(pids)
        for tracker in self._trackers:
            tracker.track(known)

    def set_static_w(self, static_w: Mapping[str, float]) -> tuple[Device, ...]:
        """Take another idle power per device; tells and returns every device as it is now."""
        self._static_w = static_w
        with self._cpu_lock:
            devices = self.devices
            self._emit(devices)
        return devices

    def _dress(self, device: Device) -> Device:
        static_w = self._static_w.get(device.device)
        if static_w is None:
            return device
        return replace(device, static_w=static_w, static_basis=StaticBasis.CONFIG)

    def _estimate_wanted(self) -> bool | str:
        """Whether no other sensor meters the CPU, or which of them may yet say that it does."""
        if self._cpu_measured:
            return False
        open_yet = [
            name
            for name, runner in self._runners.items()
            if name in _CPU_METERS and not _spoke(runner)
        ]
        return f"waits for {', '.join(open_yet)}" if open_yet else True

    def _claim_cpu(self, devices: tuple[Device, ...]) -> None:
        """Note that these are measured, before the books hear of them: the estimate is silent."""
        if any(device.kind is DeviceKind.CPU for device in devices):
            with self._cpu_lock:
                self._cpu_measured = True

    def _emit_estimate(self, evidence: Sequence[Evidence]) -> bool:
        with self._cpu_lock:
            if self._cpu_measured:
                raise Absent(MEASURED)
            return self._emit(evidence)

    def _sampler(self, sensor: UseSensor) -> Callable[[], Polled]:
        """`sample`, told first of the devices; the processes that it finds on GPUs are tracked."""

        def sample() -> Polled:
            # Here too, once a second: the thread that writes may be waiting for its disk.
            self.watch()
            sensor.set_devices(self.devices)
            records = sensor.sample()
            if sensor not in self._trackers:
                uses = [record for record in records if isinstance(record, UseRecord)]
                self.track(process.pid for use in uses for process in use.processes)
            return records

        return sample


def _settings_of(config: DaemonConfig) -> SensorSettings:
    return SensorSettings(
        period_s=config.sampling.period_s,
        use_period_s=config.sampling.use_period_s,
        cpu_use_period_s=config.sampling.use_period_s,
        cpu_tdp_w=config.power.cpu_tdp_w,
        rules=tuple(config.rules.values()),
        redfish=config.redfish.access,
    )


def _spoke(runner: SensorRunner) -> bool:
    """Whether a sensor has said what it meters, or has had its time to."""
    if runner.stuck_ns:
        return runner.stuck_ns > _WAITS_NS
    return runner.settled or runner.state is SensorState.FAILING
