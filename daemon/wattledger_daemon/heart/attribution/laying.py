"""A window's energy laid out: under which use record it was spent, how much static and dynamic."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from wattledger.records import NS_PER_S, Device, Quality, UseRecord
from wattledger_daemon.heart.attribution.steps import Quantities
from wattledger_daemon.heart.metering import EnergyInterval

_CARRIED_NS = 10 * NS_PER_S


@dataclass(frozen=True, slots=True)
class DeviceWindow:
    """What is known of one device in a window: its energy, and who used it when.

    `intervals` ascend and are cut at the edges of `uses`; so each lies within one use record
    or none. Where records overlap, the one that began last holds.
    """

    device: Device
    intervals: Sequence[EnergyInterval]
    uses: Sequence[UseRecord]


def carried_on(seen: DeviceWindow, last: UseRecord | None, end_ns: int) -> DeviceWindow:
    """The window as if who used the device last did so up to its end; not where that is old."""
    if last is None or not 0 < end_ns - last.end_ns <= _CARRIED_NS:
        return seen
    return replace(seen, uses=[*seen.uses, replace(last, start_ns=last.end_ns, end_ns=end_ns)])


@dataclass(slots=True)
class Stretch:
    """Energy of one quality in [start_ns, end_ns), and what of it lies above idle power."""

    start_ns: int
    end_ns: int
    length_ns: int
    energy_uj: int
    excess_uj: float
    quality: Quality


Laid = Sequence[tuple[Stretch, Quantities]]
Stretches = Mapping[UseRecord | None, Sequence[Stretch]]


def stretches_by_use(window: DeviceWindow, *, whole: bool) -> Stretches:
    """The window's energy by the use record that holds it, in order of time.

    `whole` makes one stretch of what lies side by side and has one quality.
    """
    idle_uj_per_ns = (window.device.static_w or 0.0) / 1000
    holders = _Holders(window.uses)
    found: dict[UseRecord | None, list[Stretch]] = {}
    last: Stretch | None = None
    group: list[Stretch] = []
    for start_ns, end_ns, energy_uj, quality in window.intervals:
        if holders.move_to(start_ns, end_ns):
            group, last = found.setdefault(holders.use, []), None
        length_ns = end_ns - start_ns
        excess_uj = max(energy_uj - idle_uj_per_ns * length_ns, 0.0)
        if whole and last is not None and last.quality is quality:
            last.end_ns = end_ns
            last.length_ns += length_ns
            last.energy_uj += energy_uj
            last.excess_uj += excess_uj
        else:
            last = Stretch(start_ns, end_ns, length_ns, energy_uj, excess_uj, quality)
            group.append(last)
    return found


def lay(
    stretches: Stretches, static_uj: int, dynamic_uj: int, length_ns: int
) -> Iterator[tuple[UseRecord | None, Laid]]:
    """Static energy over the stretches by time, dynamic by each one's excess over idle power."""
    excess_uj = sum(item.excess_uj for group in stretches.values() for item in group)
    # No excess and yet dynamic energy: a microjoule that rounding left over.
    per_excess = dynamic_uj / excess_uj if excess_uj else 0.0
    for use, group in stretches.items():
        yield (
            use,
            [
                (
                    item,
                    Quantities(
                        static_uj * item.length_ns / length_ns,
                        item.excess_uj * per_excess,
                        float(item.length_ns),
                    ),
                )
                for item in group
            ],
        )


class _Holders:
    """Finds the use record that holds an interval; `use` None: no record does."""

    def __init__(self, uses: Sequence[UseRecord]) -> None:
        self._uses = sorted(uses, key=lambda use: (use.start_ns, use.end_ns))
        self._starts_ns = [use.start_ns for use in self._uses]
        self.use: UseRecord | None = None
        self._index = -2
        self._until_ns = -1
        self._next_ns = -1

    def move_to(self, start_ns: int, end_ns: int) -> bool:
        """Go on to an interval that starts no earlier than the last; whether `use` is another."""
        if end_ns <= self._until_ns and start_ns < self._next_ns:
            return False
        after = bisect_right(self._starts_ns, start_ns)
        index = after - 1
        while index >= 0 and self._uses[index].end_ns < end_ns:
            index -= 1
        moved, self._index = index != self._index, index
        self.use = self._uses[index] if index >= 0 else None
        self._until_ns = self.use.end_ns if self.use is not None else -1
        self._next_ns = self._starts_ns[after] if after < len(self._starts_ns) else 1 << 63
        return moved
