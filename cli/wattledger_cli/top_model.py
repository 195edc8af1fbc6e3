"""What `wattledger top` shows, as the daemon told it; None where nobody knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from wattledger_proto.v1.node_pb2 import DeviceStatus, EngineStatus, GroupStatus, Status

NODE = "node"
ESTIMATED = "estimated"


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device's power over the last second or so."""

    device: str
    kind: str
    model: str | None
    power_w: float | None
    quality: str
    static_w: float | None
    counter_ratio: float | None
    gaps: int
    resets: int


@dataclass(frozen=True, slots=True)
class EngineRow:
    """An engine's means over the booked stretch; `silent_s` since it last reported."""

    engine: str
    kind: str
    model: str | None
    workload: str | None
    job: str | None
    running_requests: int | None
    power_w: float | None
    estimated_w: float | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    j_per_prefill_token: float | None
    j_per_decode_token: float | None
    j_per_token: float | None
    requests_per_s: float | None
    silent_s: float
    coarse: bool = False


@dataclass(frozen=True, slots=True)
class WorkloadRow:
    """A workload's means over the booked stretch, or those of what is `nobody`'s."""

    workload: str | None
    job: str | None
    nobody: str | None
    power_w: float
    estimated_w: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    requests_per_s: float
    j_per_token: float | None

    @property
    def name(self) -> str:
        """What stands in the table: the workload, or why there is none."""
        return self.workload or (f"({self.nobody})" if self.nobody else "(unknown)")


@dataclass(frozen=True, slots=True)
class Booked:
    """The stretch that engines' and workloads' figures speak of."""

    span_s: float
    age_s: float


@dataclass(frozen=True, slots=True)
class Picture:
    """One answer of the daemon."""

    host: str
    software: str
    uptime_s: float
    booked: Booked | None
    devices: tuple[DeviceRow, ...]
    engines: tuple[EngineRow, ...]
    workloads: tuple[WorkloadRow, ...]
    trouble: tuple[str, ...] = ()

    @property
    def power_w(self) -> float | None:
        """Of all devices but whole-node meters; None where that of any is unknown."""
        powers = [device.power_w for device in self.devices if device.kind != NODE]
        known = [power_w for power_w in powers if power_w is not None]
        return sum(known) if known and len(known) == len(powers) else None

    def to_json(self) -> dict[str, object]:
        """The document of `top --format json`."""
        document: dict[str, object] = {"schema": "wattledger.top/1"}
        document |= {"host": self.host, "software": self.software, "uptime_s": self.uptime_s}
        document["power_w"] = self.power_w
        document["booked"] = None if self.booked is None else asdict(self.booked)
        document["devices"] = [asdict(row) for row in self.devices]
        document["engines"] = [asdict(row) for row in self.engines]
        document["workloads"] = [asdict(row) for row in self.workloads]
        return document

    def records(self) -> list[dict[str, object]]:
        """Every row by itself, for CSV."""
        parts = (("device", self.devices), ("engine", self.engines), ("workload", self.workloads))
        return [{"part": part, **asdict(row)} for part, rows in parts for row in rows]


class Sort(StrEnum):
    """What rows are ordered by, the most first; names and unknown ones last."""

    POWER = "power"
    TOKENS = "tokens/s"
    ENERGY = "J/token"
    NAME = "name"


Row = TypeVar("Row", DeviceRow, EngineRow, WorkloadRow)


def ordered(rows: Iterable[Row], by: Sort) -> list[Row]:
    """Rows in order; what has none of it comes last, equal ones as the daemon had them."""
    if by is Sort.NAME:
        return sorted(rows, key=_name)
    value = _VALUES[by]
    return sorted(rows, key=lambda row: -_or_least(value(row)))


def _name(row: DeviceRow | EngineRow | WorkloadRow) -> str:
    match row:
        case DeviceRow():
            return row.device
        case EngineRow():
            return row.engine
        case WorkloadRow():
            return row.name


def _tokens(row: DeviceRow | EngineRow | WorkloadRow) -> float | None:
    if isinstance(row, DeviceRow) or row.prefill_tokens_per_s is None:
        return None
    return row.prefill_tokens_per_s + (row.decode_tokens_per_s or 0.0)


def _per_token(row: DeviceRow | EngineRow | WorkloadRow) -> float | None:
    return None if isinstance(row, DeviceRow) else row.j_per_token


def _or_least(value: float | None) -> float:
    return float("-inf") if value is None else value


_VALUES: dict[Sort, Callable[[DeviceRow | EngineRow | WorkloadRow], float | None]] = {
    Sort.POWER: lambda row: row.power_w,
    Sort.TOKENS: _tokens,
    Sort.ENERGY: _per_token,
}


_TROUBLE = ("failing", "stuck")


def picture(status: Status) -> Picture:
    """A daemon's answer; one that is older than a field leaves it unknown."""
    booked = None
    if status.HasField("booked"):
        booked = Booked(status.booked.span_s, status.booked.age_s)
    return Picture(
        status.host,
        status.software,
        status.uptime_s,
        booked,
        tuple(map(_device, status.devices)),
        tuple(map(_engine, status.engines)),
        tuple(map(_workload, status.groups)),
        tuple(
            f"{sensor.sensor} is {sensor.state}: {sensor.reason}"
            for sensor in status.sensors
            if sensor.state in _TROUBLE
        ),
    )


def _maybe(message: Message, name: str) -> float | None:
    return float(getattr(message, name)) if message.HasField(name) else None


def _device(status: DeviceStatus) -> DeviceRow:
    return DeviceRow(
        status.device,
        status.kind,
        status.model or None,
        _maybe(status, "power_w"),
        status.quality,
        _maybe(status, "static_w"),
        _maybe(status, "counter_ratio"),
        status.gaps,
        status.resets,
    )


def _engine(status: EngineStatus) -> EngineRow:
    return EngineRow(
        status.engine,
        status.kind,
        status.model or None,
        status.workload or None,
        status.job or None,
        status.running_requests if status.HasField("running_requests") else None,
        _maybe(status, "power_w"),
        _maybe(status, "estimated_w"),
        _maybe(status, "prefill_tokens_per_s"),
        _maybe(status, "decode_tokens_per_s"),
        _maybe(status, "j_per_prefill_token"),
        _maybe(status, "j_per_decode_token"),
        _maybe(status, "j_per_token"),
        _maybe(status, "requests_per_s"),
        status.silent_s,
        status.coarse,
    )


def _workload(status: GroupStatus) -> WorkloadRow:
    return WorkloadRow(
        status.workload or None,
        status.job or None,
        status.nobody or None,
        status.power_w,
        status.estimated_w,
        status.prefill_tokens_per_s,
        status.decode_tokens_per_s,
        status.requests_per_s,
        _maybe(status, "j_per_token"),
    )
