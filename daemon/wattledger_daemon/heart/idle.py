"""Idle power learned from what is booked: the lowest sustained minute in which nobody worked.

A device's minute counts only where it is known that nobody held it. A restart under load
therefore learns nothing wrong, and a host without use records learns nothing at all.
Source: accounting.md section 2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import floor

from wattledger.records import NS_PER_S, Device, DeviceKind, Quality, StaticBasis, UseRecord
from wattledger_daemon.heart.attribution.laying import DeviceWindow

SUSTAINED_NS = 60 * NS_PER_S
CPU_BUSY_MOST_RATIO = 0.05
GPU_LEAST_W = 0.5
"""Below it a GPU is off, or its counter stands still."""

_METERED_WELL = frozenset({Quality.MEASURED, Quality.INTEGRATED})
_LEARNABLE = frozenset({StaticBasis.UNKNOWN, StaticBasis.LEARNED})


@dataclass(frozen=True, slots=True)
class Lesson:
    """One device in one booked window; `energy_uj` is None where somebody may have worked."""

    device: Device
    start_ns: int
    end_ns: int
    energy_uj: int | None


def lesson_of(seen: DeviceWindow, start_ns: int, end_ns: int, *, stepped: bool) -> Lesson | None:
    """What a window teaches of a device; None where its idle power is not for learning.

    `stepped` tells that an engine of this host worked in the window, on whatever device.
    """
    device = seen.device
    if device.static_basis not in _LEARNABLE:
        return None
    quiet = _nobody_worked(device.kind, seen.uses, start_ns, end_ns)
    if quiet is None:
        return None
    metered_ns = sum(interval.length_ns for interval in seen.intervals)
    # A counter that stood still may yet tell of this window: its energy is not known now.
    well = all(i.quality in _METERED_WELL and i.energy_uj for i in seen.intervals)
    if stepped or not quiet or not well or metered_ns != end_ns - start_ns:
        return Lesson(device, start_ns, end_ns, None)
    return Lesson(device, start_ns, end_ns, sum(i.energy_uj for i in seen.intervals))


def _nobody_worked(
    kind: DeviceKind, uses: Sequence[UseRecord], start_ns: int, end_ns: int
) -> bool | None:
    """Whether use records say so of the whole window; None for a kind that is never learned."""
    if kind is DeviceKind.GPU:
        held = any(use.processes or use.groups for use in uses)
        return _cover(uses, start_ns, end_ns) and not held
    if kind is DeviceKind.CPU:
        if not _cover(uses, start_ns, end_ns):
            return False
        known = [(use.total, use.capacity) for use in uses if use.total is not None]
        busy = sum(total for total, _ in known)
        capacity = sum(ticks or 0 for _, ticks in known)
        told = len(known) == len(uses) and all(ticks for _, ticks in known)
        return told and busy <= capacity * CPU_BUSY_MOST_RATIO
    return None


def _cover(uses: Sequence[UseRecord], start_ns: int, end_ns: int) -> bool:
    """Whether the records leave no moment of [start_ns, end_ns) untold."""
    reached_ns = start_ns
    for use in sorted(uses, key=lambda use: use.start_ns):
        if use.start_ns > reached_ns:
            return False
        reached_ns = max(reached_ns, use.end_ns)
    return reached_ns >= end_ns


@dataclass(slots=True)
class IdleBook:
    """The idle power learned so far, and each device's present run of quiet windows.

    A lower minute replaces what is known; a higher one never does, until another model stands
    in the device's place.
    """

    _known: dict[str, Device] = field(default_factory=dict)
    _runs: dict[str, deque[Lesson]] = field(default_factory=dict)

    def copy(self) -> IdleBook:
        """The same book, to try lessons on."""
        return IdleBook(dict(self._known), {name: deque(run) for name, run in self._runs.items()})

    def remember(self, device: Device) -> None:
        """Take what was learned before, as it was last told."""
        self._known[device.device] = device

    def dress(self, device: Device) -> Device:
        """The device with its learned idle power, where nothing better is known of it."""
        known = self._known.get(device.device)
        if device.static_basis not in _LEARNABLE or known is None or not _alike(known, device):
            return device
        return replace(device, static_w=known.static_w, static_basis=StaticBasis.LEARNED)

    def learn(self, lessons: Iterable[Lesson]) -> list[Device]:
        """Take the lessons of one window; returns the devices whose figure is new."""
        found = [self._learn(lesson) for lesson in lessons]
        return [device for device in found if device is not None]

    def _learn(self, lesson: Lesson) -> Device | None:
        device = lesson.device
        run = self._runs.setdefault(device.device, deque())
        if run and not (run[-1].end_ns == lesson.start_ns and _alike(run[-1].device, device)):
            run.clear()
        if lesson.energy_uj is None:
            run.clear()
            return None
        run.append(lesson)
        length_ns = lesson.end_ns - run[0].start_ns
        while length_ns - (run[0].end_ns - run[0].start_ns) >= SUSTAINED_NS:
            run.popleft()
            length_ns = lesson.end_ns - run[0].start_ns
        if length_ns < SUSTAINED_NS:
            return None
        # Rounded down, so that no minute it was learned from lies below it.
        static_w = floor(sum(taken.energy_uj or 0 for taken in run) * 1e6 / length_ns) / 1000
        return self._lower(device, static_w)

    def _lower(self, device: Device, static_w: float) -> Device | None:
        if static_w < (GPU_LEAST_W if device.kind is DeviceKind.GPU else 1e-3):
            return None
        known = self._known.get(device.device)
        if known is not None and _alike(known, device) and (known.static_w or 0.0) <= static_w:
            return None
        learned = replace(device, static_w=static_w, static_basis=StaticBasis.LEARNED)
        self._known[device.device] = learned
        return learned


def _alike(one: Device, other: Device) -> bool:
    return (one.kind, one.model) == (other.kind, other.model)
