"""A stretch of good quality becomes a lesson: what an engine computed, and the energy it took.

Good: every device of the engine metered throughout by a sensor, no GPU of it held by anybody
else, nothing reset, no gap, no event dropped. Anything else is no row: the model would be
bent to explain what is not the engine's. Source: accounting.md section 3.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from wattledger.fits import FitKey, in_words
from wattledger.records import NS_PER_S, UJ_PER_J, Device, DeviceKind, Engine, Quality
from wattledger_daemon.heart.attribution.laying import DeviceWindow, stretches_by_use
from wattledger_daemon.heart.attribution.shares import shares_of
from wattledger_daemon.heart.calibration.gram import LAGS_NS, NO_LAG
from wattledger_daemon.heart.calibration.sums import StepSums, step_sums
from wattledger_daemon.heart.metering import EnergyInterval
from wattledger_daemon.heart.step_sums import StepSum

ROW_NS = 5 * NS_PER_S
BEFORE_NS, AFTER_NS = -LAGS_NS[0], LAGS_NS[-1]
_METERED_WELL = frozenset({Quality.MEASURED, Quality.INTEGRATED})
_MARGIN_NS = NS_PER_S // 2
_STILL_NS = NS_PER_S * 3 // 2
_WHOLE = 1.0 - 1e-9

Intervals = Callable[[str, int, int, Sequence[int]], Sequence[EnergyInterval]]
"""A device's metered energy in a stretch, cut at some moments, as `Meter.intervals`."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one engine computed in [start_ns, end_ns), and what it drew at each of `LAGS_NS`.

    `static_w` is the idle power that is known of its devices and in `energies_j`; None where one
    of them has none. `still_w` is the power while nothing was computed, for `still_s` seconds in
    one piece; 0 where there was no such piece.
    """

    key: FitKey
    engine: str
    start_ns: int
    end_ns: int
    did: StepSums
    energies_j: tuple[float, ...]
    static_w: float | None
    still_s: float = 0.0
    still_w: float = 0.0

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end_ns - self.start_ns) / NS_PER_S


@dataclass(frozen=True, slots=True)
class _Part:
    """An engine's part of one device over a stretch."""

    device: Device
    energies_j: tuple[float, ...]
    still_j: float
    static_w: float | None


def lesson_of(
    engine: Engine,
    seen: Sequence[DeviceWindow],
    steps: Sequence[StepSum],
    intervals: Intervals,
    span: tuple[int, int],
) -> Lesson | None:
    """The lesson of a stretch in which the devices were as `seen`; None where it is not good.

    `steps` ascend, and are those that touch it or its neighbourhood as far as lags reach.
    """
    did = step_sums(steps, *span)
    still = _still(steps, *span)
    # Of a step without breakdown it is not known what its energy bought.
    unknown = any(not (step.prefill_tokens or step.decode_tokens) for step in steps)
    if engine.coarse or unknown or not (did.steps or still):
        return None
    parts = []
    for item in _devices_of(engine, seen):
        part = _part(engine, item, intervals, (*span, *(still or span)))
        if part is None:
            return None
        parts.append(part)
    energies_j = tuple(map(sum, zip(*(part.energies_j for part in parts), strict=True)))
    if not parts or (did.steps and min(energies_j) <= 0.0):
        return None
    known = [part.static_w for part in parts if part.static_w is not None]
    key = FitKey(engine.kind, engine.model, in_words([part.device for part in parts]))
    static_w = sum(known) if len(known) == len(parts) else None
    still_s = (still[1] - still[0]) / NS_PER_S if still else 0.0
    still_w = sum(part.still_j for part in parts) / still_s if still else 0.0
    return Lesson(key, engine.engine, *span, did, energies_j, static_w, still_s, still_w)


def _still(steps: Sequence[StepSum], start_ns: int, end_ns: int) -> tuple[int, int] | None:
    """The longest stretch without a step, and well away from any; None where it is short."""
    reached_ns, found = start_ns, (start_ns, start_ns)
    for step in (*steps, None):
        low_ns = end_ns if step is None else min(step.start_ns - _MARGIN_NS, end_ns)
        if low_ns - reached_ns > found[1] - found[0]:
            found = (reached_ns, low_ns)
        if step is not None:
            reached_ns = max(reached_ns, step.end_ns + _MARGIN_NS)
    return found if found[1] - found[0] >= _STILL_NS else None


def _devices_of(engine: Engine, seen: Sequence[DeviceWindow]) -> list[DeviceWindow]:
    """The GPUs that the engine's processes hold, else whatever else they hold."""
    pids = frozenset(engine.pids)
    held = [
        item
        for item in seen
        if any(process.pid in pids for use in item.uses for process in use.processes)
    ]
    gpus = [item for item in held if item.device.kind is DeviceKind.GPU]
    return gpus or [item for item in held if item.device.kind is not DeviceKind.NODE]


def _part(
    engine: Engine, item: DeviceWindow, intervals: Intervals, span: tuple[int, int, int, int]
) -> _Part | None:
    shares = _shares(engine, item)
    if shares is None:
        return None
    mine_uj, static_ratio = shares
    metered_uj = _metered_uj(item.device, intervals, *span)
    if metered_uj is None:
        return None
    # At another lag the engine's part is taken to be the same: it is all of it on a GPU.
    mine = mine_uj / metered_uj[NO_LAG] / UJ_PER_J if metered_uj[NO_LAG] else 0.0
    static_w = item.device.static_w
    *moved_j, still_j = [mine * energy_uj for energy_uj in metered_uj]
    return _Part(
        item.device,
        tuple(moved_j),
        still_j,
        None if static_w is None else static_w * static_ratio,
    )


def _shares(engine: Engine, item: DeviceWindow) -> tuple[float, float] | None:
    """The engine's energy of a device, and its part of static; None where it is not telling."""
    idle_uj_per_ns = (item.device.static_w or 0.0) / 1000
    length_ns = static_ns = 0.0
    mine_uj = 0.0
    for use, stretches in stretches_by_use(item, whole=True).items():
        if use is None or use.basis:
            return None
        shares = shares_of(item.device.kind, use)
        static, dynamic = (
            sum(held.get(pid, 0.0) for pid in engine.pids)
            for held in (shares.static, shares.dynamic)
        )
        if item.device.kind is DeviceKind.GPU and min(static, dynamic) < _WHOLE:
            return None
        for stretch in stretches:
            still_uj = min(idle_uj_per_ns * stretch.length_ns, stretch.energy_uj)
            mine_uj += static * still_uj + dynamic * (stretch.energy_uj - still_uj)
            length_ns += stretch.length_ns
            static_ns += static * stretch.length_ns
    return (mine_uj, static_ns / length_ns) if length_ns else None


def _metered_uj(
    device: Device, intervals: Intervals, start_ns: int, end_ns: int, *still_ns: int
) -> list[int] | None:
    """The device's energy moved by each lag, then while still; None where any is not good."""
    low_ns, high_ns = start_ns - BEFORE_NS, end_ns + AFTER_NS
    cuts_ns = sorted({edge + lag for edge in (start_ns, end_ns) for lag in LAGS_NS} | {*still_ns})
    found = intervals(device.device, low_ns, high_ns, cuts_ns)
    if any(piece.quality not in _METERED_WELL for piece in found):
        return None
    if sum(piece.length_ns for piece in found) != high_ns - low_ns:
        return None
    ends_ns = [piece.end_ns for piece in found]
    until_uj = [0, *accumulate(piece.energy_uj for piece in found)]
    at_uj = {cut: until_uj[bisect_left(ends_ns, cut) + 1] for cut in cuts_ns if cut > low_ns}
    at_uj[low_ns] = 0
    moved_uj = [at_uj[end_ns + lag] - at_uj[start_ns + lag] for lag in LAGS_NS]
    return [*moved_uj, at_uj[still_ns[1]] - at_uj[still_ns[0]]]
