"""Level 1: a device's static energy, dynamic energy and time among its holders.

Static goes by reservation, dynamic by use. Source: accounting.md section 2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import NamedTuple

from wattledger.records import DeviceKind, GroupUse, ProcessUse, UseRecord


class Nobody(Enum):
    """Holders that are not a process that somebody reported."""

    IDLE = "idle"
    UNATTRIBUTED = "unattributed"
    SYSTEM = "system"


class Owner(NamedTuple):
    """Whose a part is that no reported process used: children that died, memory of no process."""

    workload: str | None
    job: str | None


Holder = int | Owner | Nobody
"""A pid, a group's own part, or one of `Nobody`."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Weights per holder, each mapping summing to 1; `method` names the rule for dynamic.

    `basis` is that of the use record where dynamic leans on it, else empty.
    """

    static: Mapping[Holder, float]
    dynamic: Mapping[Holder, float]
    time: Mapping[Holder, float]
    method: str
    basis: str = ""


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
    return _cpu(record) if kind is DeviceKind.CPU else _gpu(record.processes, record.basis)


def _gpu(owners: Sequence[ProcessUse], basis: str) -> Shares:
    if not owners:
        return _FREE
    held = _normalized(_summed((p.pid, p.memory_bytes) for p in owners))
    if len({p.pid for p in owners}) == 1:
        return Shares(held, held, held, _under("sole-owner", basis), basis)
    busy = _summed((p.pid, p.sm_percent) for p in owners)
    if any(busy.values()):
        return Shares(held, _normalized(busy), held, basis or "sm-share", basis)
    return Shares(held, held, held, _under("memory-share", basis), basis)


def _under(rule: str, basis: str) -> str:
    """The rule, and what the source had to assume, e.g. `sole-owner/hidden-owners`."""
    return f"{rule}/{basis}" if basis else rule


def _cpu(record: UseRecord) -> Shares:
    ticks = _summed((p.pid, p.ticks) for p in record.processes)
    for group in record.groups:
        inside = _inside(group, ticks)
        rest = max(_amount(group.ticks) - sum(ticks[pid] for pid in inside), 0.0)
        ticks[_rest_of(group, Nobody.SYSTEM)] += rest
    ticks[Nobody.SYSTEM] += max(_amount(record.total) - sum(ticks.values()), 0.0)
    if not any(ticks.values()):
        return _FREE
    busy = _normalized(ticks)
    return Shares({Nobody.IDLE: 1.0}, busy, busy, record.basis or "cpu-time", record.basis)


def _dram(record: UseRecord) -> Shares:
    resident = _summed((p.pid, p.memory_bytes) for p in record.processes)
    for group in record.groups:
        inside = _inside(group, resident)
        known = sum(resident[pid] for pid in inside)
        if group.memory_bytes is None:
            continue
        # What processes share is in the resident memory of each, and in the group's once.
        for pid in inside if known > _amount(group.memory_bytes) else ():
            resident[pid] *= _amount(group.memory_bytes) / known
        rest = max(_amount(group.memory_bytes) - known, 0.0)
        resident[_rest_of(group, Nobody.UNATTRIBUTED)] += rest
    resident[Nobody.IDLE] += max(_amount(record.total) - sum(resident.values()), 0.0)
    if not any(resident.values()):
        return _FREE_MEMORY
    held = _normalized(resident)
    return Shares(held, held, held, record.basis or "resident-memory", record.basis)


def _inside(group: GroupUse, used: Mapping[Holder, float]) -> list[int]:
    """The group's processes that the record names, each once."""
    return [pid for pid in dict.fromkeys(group.pids) if pid in used]


def _rest_of(group: GroupUse, nameless: Nobody) -> Holder:
    if group.workload is None and group.job is None:
        return nameless
    return Owner(group.workload, group.job)


def _amount(value: float | None) -> float:
    """What a record says, 0 where it says nothing that could be an amount (NaN, below 0)."""
    return float(value) if value is not None and 0 < value < inf else 0.0


def _summed(used: Iterable[tuple[int, float | None]]) -> dict[Holder, float]:
    """Amounts per pid; one that stands twice (in two slices of a GPU) is added up."""
    amounts: dict[Holder, float] = defaultdict(float)
    for pid, value in used:
        amounts[pid] += _amount(value)
    return amounts


def _normalized(weights: Mapping[Holder, float]) -> dict[Holder, float]:
    """Weights that sum to 1, without the zero ones; all zero share equally."""
    total = sum(weights.values())
    if total <= 0.0:
        return {holder: 1.0 / len(weights) for holder in weights}
    return {holder: weight / total for holder, weight in weights.items() if weight > 0.0}
