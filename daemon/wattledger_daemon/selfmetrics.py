"""What the daemon says of itself, for the ledger: once a minute, from a snapshot of its state.

Counts run from the daemon's start. Parts are `daemon`, `pipeline`, `sensor/NAME`, `device/ID` and
`engine/NAME`. What did not change is said again once an hour: most of it never changes, and would
fill the ledger with what is known.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wattledger.records import NS_PER_S, SelfMetric
from wattledger_daemon.health import DeviceHealth, EngineHealth, Snapshot
from wattledger_daemon.sampling import SensorHealth, SensorState

EVERY_NS = 60 * NS_PER_S
AGAIN_NS = 3600 * NS_PER_S
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_Figure = tuple[str, str, float]


@dataclass(frozen=True, slots=True)
class OwnCost:
    """CPU time of this process since its start, and its resident memory."""

    cpu_s: float
    rss_bytes: int


def own_cost() -> OwnCost:
    """What this process costs; memory is 0 where /proc does not tell.

    Source: getrusage(2); proc(5), the second field of /proc/self/statm, in pages.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    try:
        pages = int(_STATM.read_text().split()[1])
    except (OSError, ValueError, IndexError):
        pages = 0
    return OwnCost(usage.ru_utime + usage.ru_stime, pages * _PAGE_BYTES)


class Notes:
    """Leaves out of each minute's metrics what was said within the hour and still holds."""

    def __init__(self, now_ns: int = 0) -> None:
        self._due_ns = now_ns + EVERY_NS
        self._said: dict[tuple[str, str], SelfMetric] = {}

    def due(self, now_ns: int) -> bool:
        """Whether a minute is over, CLOCK_MONOTONIC; the next one begins then."""
        if now_ns < self._due_ns:
            return False
        self._due_ns = now_ns + EVERY_NS
        return True

    def news(self, metrics: Iterable[SelfMetric]) -> list[SelfMetric]:
        """Those that say something new, or have not been said for an hour."""
        found = [metric for metric in metrics if self._is_news(metric)]
        self._said |= {(metric.part, metric.name): metric for metric in found}
        return found

    def _is_news(self, metric: SelfMetric) -> bool:
        said = self._said.get((metric.part, metric.name))
        return said is None or said.value != metric.value or metric.t_ns - said.t_ns >= AGAIN_NS


def self_metrics(t_ns: int, snapshot: Snapshot, cost: OwnCost) -> list[SelfMetric]:
    """Everything that a snapshot says of the daemon, at `t_ns` UTC."""
    return [
        SelfMetric(t_ns, part, name, float(value)) for part, name, value in _told(snapshot, cost)
    ]


def _told(snapshot: Snapshot, cost: OwnCost) -> Iterator[_Figure]:
    yield "daemon", "cpu_s", cost.cpu_s
    if cost.rss_bytes:
        yield "daemon", "rss_bytes", cost.rss_bytes
    work = snapshot.work
    yield "pipeline", "queue_depth", snapshot.queue_depth
    yield "pipeline", "windows_booked", snapshot.windows_booked
    yield "pipeline", "turn_s", work.turn_s
    yield "pipeline", "longest_turn_s", work.longest_turn_s
    yield "pipeline", "journal_bytes", work.journal_bytes
    yield "pipeline", "late_events", work.late
    yield "pipeline", "duplicate_events", work.duplicates
    yield "pipeline", "dropped_events", work.dropped
    if work.folded:
        yield "pipeline", "folded_requests", work.folded
    for sensor in snapshot.sensors:
        yield from _of_sensor(sensor)
    for device in snapshot.devices:
        yield from _of_device(device)
    for engine in snapshot.engines:
        yield from _of_engine(engine)


def _of_sensor(sensor: SensorHealth) -> Iterator[_Figure]:
    part = f"sensor/{sensor.name}"
    yield part, "running", sensor.state is SensorState.RUNNING
    if sensor.state in (SensorState.ABSENT, SensorState.DENIED):
        return
    yield part, "reads", sensor.reads
    yield part, "failures", sensor.failures
    yield part, "last_duration_s", sensor.last_duration_s
    yield part, "longest_duration_s", sensor.longest_duration_s
    yield part, "skipped", sensor.skipped
    yield part, "throttles", sensor.throttles
    yield part, "period_s", sensor.period_s


def _of_device(health: DeviceHealth) -> Iterator[_Figure]:
    part = f"device/{health.device.device}"
    yield part, "gaps", health.gaps
    yield part, "resets", health.resets
    if health.counter_ratio is not None:
        yield part, "counter_ratio", health.counter_ratio


def _of_engine(engine: EngineHealth) -> Iterator[_Figure]:
    # Names of engines come from outside: only those with something to tell take a place.
    part = f"engine/{engine.engine}"
    counts = (
        ("dropped_events", engine.dropped_events),
        ("duplicate_events", engine.duplicates),
        ("refused", engine.refused),
    )
    for name, count in counts:
        if count:
            yield part, name, count
