"""A stretch of good quality becomes a lesson: what an engine computed, and the energy it took.

Good: every device of the engine metered throughout by a sensor, no GPU of it held by anybody
else, nothing reset, no gap, no event dropped. Anything else is no row: the model would be
bent to explain what is not the engine's. Source: accounting.md section 3.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

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
SURE_NS = 120 * NS_PER_S
"""A prefill is told when it is done: what has no step by then is taken to have had none."""
_MARGIN_NS = NS_PER_S // 2
_STILL_NS = NS_PER_S * 3 // 2
_WHOLE = 1.0 - 1e-9

Intervals = Callable[[str, int, int, Sequence[int]], Sequence[EnergyInterval]]
"""A device's metered energy in a stretch, cut at some moments, as `Meter.intervals`."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one engine computed in [start_ns, end_ns), and what it drew at each of `LAGS_NS`.

    `static_w` is the idle power that is known of its devices and in `energies_j`; None where one
    of them has none. `longest_s` is the longest step of any that touch it. `still_w` is the power
    while nothing was computed, for `still_s` seconds in one piece, `SURE_NS` earlier: whatever
    was under way then is told by now; 0 where there was no such piece.
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
    longest_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end_ns - self.start_ns) / NS_PER_S


class Span(NamedTuple):
    """A stretch of time."""

    start_ns: int
    end_ns: int


class _Drawn(NamedTuple):
    """An engine's part of its devices: at each lag in a stretch, and in the piece asked for."""

    key: FitKey
    energies_j: tuple[float, ...]
    piece_j: float
    static_w: float | None


@dataclass(frozen=True, slots=True)
class _Part:
    """An engine's part of one device over a stretch."""

    device: Device
    energies_j: tuple[float, ...]
    piece_j: float
    static_w: float | None


def lesson_of(
    engine: Engine,
    seen: Sequence[DeviceWindow],
    steps: Sequence[StepSum],
    intervals: Intervals,
    span: Span,
) -> Lesson | None:
    """The lesson of a stretch in which the devices were as `seen`; None where it is not good.

    `steps` ascend, and are those that touch it or its neighbourhood as far as lags reach.
    """
    did = step_sums(steps, *span)
    if not did.steps or not _is_plain(engine, steps):
        return None
    drawn = _drawn(engine, seen, intervals, span, span)
    if drawn is None or min(drawn.energies_j) <= 0.0:
        return None
    longest_s = max(step.end_ns - step.start_ns for step in steps) / NS_PER_S
    return Lesson(
        drawn.key,
        engine.engine,
        *span,
        did,
        drawn.energies_j,
        drawn.static_w,
        longest_s=longest_s,
    )


def with_stillness(
    lesson: Lesson | None,
    engine: Engine,
    *,
    look: Callable[[Span], Sequence[DeviceWindow]],
    steps: Sequence[StepSum],
    intervals: Intervals,
    span: Span,
) -> Lesson | None:
    """The lesson of `span`, None where there is none, and what idle power was `SURE_NS` earlier.

    `steps` are those near that earlier stretch, as far as they are told by now; `look` tells how
    devices were in one.
    """
    earlier = Span(span.start_ns - SURE_NS, span.end_ns - SURE_NS)
    piece = _still(steps, *earlier)
    if piece is None or not _is_plain(engine, steps):
        return lesson
    drawn = _drawn(engine, look(earlier), intervals, earlier, piece)
    if drawn is None or (lesson is not None and lesson.key != drawn.key):
        return lesson
    still_s = (piece.end_ns - piece.start_ns) / NS_PER_S
    still_w = drawn.piece_j / still_s
    if lesson is not None:
        return replace(lesson, still_s=still_s, still_w=still_w)
    nothing = (0.0,) * len(LAGS_NS)
    return Lesson(
        drawn.key, engine.engine, *span, StepSums(), nothing, drawn.static_w, still_s, still_w
    )


def _is_plain(engine: Engine, steps: Sequence[StepSum]) -> bool:
    # Of a step without breakdown it is not known what its energy bought.
    return not engine.coarse and all(step.prefill_tokens or step.decode_tokens for step in steps)


def _drawn(
    engine: Engine, seen: Sequence[DeviceWindow], intervals: Intervals, span: Span, piece: Span
) -> _Drawn | None:
    """What an engine drew; None where any of its devices is not good."""
    parts = []
    for item in _devices_of(engine, seen):
        part = _part(engine, item, intervals, (*span, *piece))
        if part is None:
            return None
        parts.append(part)
    if not parts:
        return None
    energies_j = tuple(map(sum, zip(*(part.energies_j for part in parts), strict=True)))
    known = [part.static_w for part in parts if part.static_w is not None]
    return _Drawn(
        FitKey(engine.kind, engine.model, in_words([part.device for part in parts])),
        energies_j,
        sum(part.piece_j for part in parts),
        sum(known) if len(known) == len(parts) else None,
    )


def _still(steps: Sequence[StepSum], start_ns: int, end_ns: int) -> Span | None:
    """The longest stretch without a step, and well away from any; None where it is short."""
    reached_ns, found = start_ns, Span(start_ns, start_ns)
    for step in (*steps, None):
        low_ns = end_ns if step is None else min(step.start_ns - _MARGIN_NS, end_ns)
        if low_ns - reached_ns > found[1] - found[0]:
            found = Span(reached_ns, low_ns)
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
    *moved_j, piece_j = [mine * energy_uj for energy_uj in metered_uj]
    return _Part(
        item.device,
        tuple(moved_j),
        piece_j,
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
    device: Device, intervals: Intervals, start_ns: int, end_ns: int, *piece_ns: int
) -> list[int] | None:
    """The device's energy moved by each lag, then of a piece; None where any is not good."""
    low_ns, high_ns = start_ns - BEFORE_NS, end_ns + AFTER_NS
    cuts_ns = sorted({edge + lag for edge in (start_ns, end_ns) for lag in LAGS_NS} | {*piece_ns})
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
    return [*moved_uj, at_uj[piece_ns[1]] - at_uj[piece_ns[0]]]
