"""Level 1: a device's static energy, dynamic energy and time among its holders.

Static goes by reservation, dynamic by use. Source: accounting.md section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from wattledger.records import DeviceKind, ProcessUse, UseRecord


class Nobody(Enum):
    """Holders that are not a process that somebody reported."""

    IDLE = "idle"
    UNATTRIBUTED = "unattributed"
    SYSTEM = "system"


Holder = int | Nobody
"""A pid, or one of `Nobody`."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Weights per holder, each mapping summing to 1; `method` names the rule for dynamic."""

    static: Mapping[Holder, float]
    dynamic: Mapping[Holder, float]
    time: Mapping[Holder, float]
    method: str


_FREE = Shares({Nobody.IDLE: 1.0}, {Nobody.UNATTRIBUTED: 1.0}, {Nobody.IDLE: 1.0}, "no-owner")
_FREE_MEMORY = Shares({Nobody.IDLE: 1.0}, {Nobody.IDLE: 1.0}, {Nobody.IDLE: 1.0}, "no-owner")
_WHOLE_NODE = Shares(
    {Nobody.UNATTRIBUTED: 1.0}, {Nobody.UNATTRIBUTED: 1.0}, {Nobody.UNATTRIBUTED: 1.0}, "node"
)


def shares_of(kind: DeviceKind, record: UseRecord | None) -> Shares:
    """The shares that hold while `record` does; None means that nobody is known to hold it."""
    if kind is DeviceKind.NODE:
        return _WHOLE_NODE
    if kind is DeviceKind.DRAM:
        return _dram(record) if record else _FREE_MEMORY
    if record is None:
        return _FREE
    return _cpu(record) if kind is DeviceKind.CPU else _gpu(record.processes)


def _gpu(owners: tuple[ProcessUse, ...]) -> Shares:
    if not owners:
        return _FREE
    held = _normalized({p.pid: float(p.memory_bytes or 0) for p in owners})
    if len(owners) == 1:
        return Shares(held, held, held, "sole-owner")
    busy = {p.pid: float(p.sm_percent or 0.0) for p in owners}
    if any(busy.values()):
        return Shares(held, _normalized(busy), held, "sm-share")
    return Shares(held, held, held, "memory-share")


def _cpu(record: UseRecord) -> Shares:
    ticks: dict[Holder, float] = {p.pid: float(p.ticks or 0) for p in record.processes}
    known = sum(ticks.values())
    ticks[Nobody.SYSTEM] = max(float(record.total or 0) - known, 0.0)
    if not any(ticks.values()):
        return _FREE
    busy = _normalized(ticks)
    return Shares({Nobody.IDLE: 1.0}, busy, busy, "cpu-time")


def _dram(record: UseRecord) -> Shares:
    resident: dict[Holder, float] = {p.pid: float(p.memory_bytes or 0) for p in record.processes}
    known = sum(resident.values())
    resident[Nobody.IDLE] = max(float(record.total or 0) - known, 0.0)
    if not any(resident.values()):
        return _FREE_MEMORY
    held = _normalized(resident)
    return Shares(held, held, held, "resident-memory")


def _normalized(weights: Mapping[Holder, float] | Mapping[int, float]) -> dict[Holder, float]:
    """Weights that sum to 1, without the zero ones; all zero share equally."""
    total = sum(weights.values())
    if total <= 0.0:
        return {holder: 1.0 / len(weights) for holder in weights}
    return {holder: weight / total for holder, weight in weights.items() if weight > 0.0}
