"""Counters and gauges become energy: E(t), exact in integers, with its quality.

E(t) is piecewise linear through the readings at which a counter changed, and piecewise
quadratic under a gauge whose power is linear between readings. It is rounded to integer
microjoules where it is cut, so that the parts of any cutting sum to the whole exactly.
Source: accounting.md section 1.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import replace
from enum import Enum
from itertools import chain, pairwise
from typing import NamedTuple

from wattledger.records import NS_PER_S, CounterReading, PowerReading, Quality
from wattledger_daemon.heart.cells import Cell, Cells

MAX_GAP_NS = 5 * NS_PER_S
MAX_POWER_W = 1000.0
MOST_POWER_W = 10_000.0
"""More than any one device draws: what it would take is another counter, not energy."""


class EnergyInterval(NamedTuple):
    """Energy metered in [start_ns, end_ns) of the host's monotonic clock.

    A tuple, as is a cell of E(t): a host with 8 GPUs makes 80 of each a second.
    """

    start_ns: int
    end_ns: int
    energy_uj: int
    quality: Quality

    @property
    def length_ns(self) -> int:
        """Length of the stretch, nanoseconds."""
        return self.end_ns - self.start_ns


class Incident(Enum):
    """What can befall a meter; counted in the stretch that ends at the reading that showed it."""

    GAP = "gap"
    RESET = "reset"
    WRAP = "wrap"


class Meter:
    """One device's E(t), fed with its readings in order of time.

    A device that was ever read by a counter is metered by it alone: its power readings then
    serve resets only. Nothing is metered before the first reading and after the last.
    """

    def __init__(
        self,
        *,
        wrap_uj: int | None = None,
        estimated: bool = False,
        max_gap_ns: int = MAX_GAP_NS,
        max_power_w: float = MAX_POWER_W,
        live: bool = False,
    ) -> None:
        self._live = live
        self._max_gap_ns = max_gap_ns
        self._max_power_w = max_power_w
        self._read_by(wrap_uj, estimated=estimated)
        self._cells = Cells()
        self._incidents: list[tuple[int, Incident]] = []
        self._counter: CounterReading | None = None
        self._power: PowerReading | None = None
        self._changed_ns = 0
        self._changed = False
        self._tip_ns: int | None = None
        self._carried = 0
        self._seen_ns: int | None = None
        self._hole = False
        self._owed_uj = 0

    def _read_by(self, wrap_uj: int | None, *, estimated: bool) -> None:
        self._wrap_uj = wrap_uj
        self._gauge_quality = Quality.ESTIMATED if estimated else Quality.INTEGRATED
        self._max_pause_ns = (
            None if wrap_uj is None else round(wrap_uj / (self._max_power_w * 1e6) * NS_PER_S)
        )

    def change_source(self, wrap_uj: int | None, *, estimated: bool) -> None:
        """Go on by another sensor: RAPL in the place of an estimate, say.

        What was metered stays; from the last reading to the new sensor's first nothing is known.
        """
        if self._counter is not None and self._seen_ns is not None:
            self._close(self._seen_ns, 0, Quality.MEASURED)
        self._counter = self._power = None
        self._owed_uj, self._hole = 0, False
        self._changed = self._seen_ns is not None
        self._read_by(wrap_uj, estimated=estimated)

    @property
    def tip_ns(self) -> int | None:
        """How far E(t) is settled; None before the first reading."""
        return self._tip_ns

    @property
    def first_ns(self) -> int | None:
        """Where E(t) begins, None before the first reading."""
        return self._cells.first_ns if self._cells else self._tip_ns

    @property
    def last_ns(self) -> int | None:
        """The latest reading, None before the first."""
        return self._seen_ns

    def standing(self, device: str) -> list[CounterReading | PowerReading]:
        """Readings from which another meter goes on as this one will, for a recording.

        A counter stood at its value since E(t) last bent, or was booked up to there.
        """
        readings: list[CounterReading | PowerReading] = []
        counter, power, tip_ns = self._counter, self._power, self._tip_ns
        if power is not None and counter is not None:
            readings.append(power)
        elif power is not None:
            readings.append(replace(power, carried_half_fj=self._carried))
        if counter is not None:
            if tip_ns is not None and tip_ns < counter.t_ns:
                stood_uj = counter.energy_uj - self._owed_uj
                readings.append(CounterReading(device, tip_ns, stood_uj))
            if not self._owed_uj:
                readings.append(counter)
        return readings

    # ------------------------------------------------------------------ readings

    def read_counter(self, reading: CounterReading) -> None:
        """Take a counter reading; one not later than the last is ignored."""
        previous = self._counter
        if previous is None:
            self._restart(reading.t_ns)
        elif reading.t_ns <= previous.t_ns:
            return
        else:
            self._advance_counter(previous, reading)
        self._counter = reading
        self._seen_ns = reading.t_ns

    def read_power(self, reading: PowerReading) -> None:
        """Take a power reading; beside a counter it is kept for resets only."""
        previous = self._power
        if previous is not None and reading.t_ns <= previous.t_ns:
            return
        self._power = reading
        if self._counter is not None:
            return
        if previous is None:
            self._restart(reading.t_ns)
            self._carried = reading.carried_half_fj
        else:
            self._advance_gauge(previous, reading)
        self._seen_ns = reading.t_ns

    def _restart(self, t_ns: int) -> None:
        """Begin E(t) here. What a gauge said before the first counter reading is forgotten."""
        if self._changed and self._seen_ns is not None:
            if t_ns - self._seen_ns > self._max_gap_ns:
                self._note_gap(self._seen_ns)
            self._close(t_ns, 0, None)
            self._changed_ns, self._changed = t_ns, False
            return
        self._cells.clear()
        self._incidents.clear()
        self._tip_ns = self._changed_ns = t_ns
        self._carried = 0

    def _advance_counter(self, previous: CounterReading, reading: CounterReading) -> None:
        pause_ns = reading.t_ns - previous.t_ns
        if self._max_pause_ns is not None and pause_ns > self._max_pause_ns:
            self._close(previous.t_ns, 0, Quality.MEASURED)
            self._note_gap(previous.t_ns)
            self._close(reading.t_ns, 0, None)
            self._changed_ns = reading.t_ns
            return
        if pause_ns > self._max_gap_ns:
            self._hole = True
            self._note_gap(previous.t_ns)
        if reading.energy_uj == previous.energy_uj:
            return
        quality = Quality.SPREAD if self._hole else Quality.MEASURED
        rise_uj = reading.energy_uj - previous.energy_uj
        if rise_uj < 0 and self._wrap_uj is not None:
            rise_uj += self._wrap_uj
            self._note(reading.t_ns, Incident.WRAP)
        if rise_uj < 0:
            rise_uj, quality = self._lost_in_reset(reading), Quality.RESET
            self._note(reading.t_ns, Incident.RESET)
        self._close(reading.t_ns, rise_uj, quality)
        self._changed_ns = reading.t_ns

    def _lost_in_reset(self, reading: CounterReading) -> int:
        """max(counter, P * dt): P the last power reading, else the last cell's mean power.

        A counter that fell to more than any device could have drawn since did not begin at 0: it
        is another one (GPUs numbered anew, say), and P * dt alone is known.
        """
        since_ns = reading.t_ns - self._changed_ns
        if self._power is not None:
            estimate_uj = self._power.power_uw * since_ns // NS_PER_S
        elif last := next((c for c in self._cells.newest_first() if c.rise_uj), None):
            estimate_uj = last.rise_uj * since_ns // (last.end_ns - last.start_ns)
        else:
            estimate_uj = 0
        most_uj = round(MOST_POWER_W * 1e6) * max(since_ns, NS_PER_S) // NS_PER_S
        return estimate_uj if reading.energy_uj > most_uj else max(reading.energy_uj, estimate_uj)

    def _advance_gauge(self, previous: PowerReading, reading: PowerReading) -> None:
        if reading.t_ns - previous.t_ns > self._max_gap_ns:
            self._note_gap(previous.t_ns)
            self._close(reading.t_ns, 0, None)
            return
        tip_ns = self._tip_ns if self._tip_ns is not None else previous.t_ns
        first_uw = previous.power_uw
        if tip_ns > previous.t_ns:  # a pin cut this stretch: begin at the pin
            rise_uw = (reading.power_uw - previous.power_uw) * (tip_ns - previous.t_ns)
            first_uw += rise_uw // (reading.t_ns - previous.t_ns)
        self._close(reading.t_ns, 0, self._gauge_quality, first_uw, reading.power_uw)

    def _close(
        self,
        end_ns: int,
        rise_uj: int,
        quality: Quality | None,
        first_uw: int = 0,
        last_uw: int = 0,
    ) -> None:
        """Append the cell from the tip to `end_ns`."""
        start_ns = self._tip_ns
        if start_ns is None or end_ns <= start_ns:
            # A reading from before a pin came after it: its energy goes to the next stretch.
            self._owed_uj += rise_uj
            return
        if quality is not None and self._owed_uj:
            rise_uj, self._owed_uj = rise_uj + self._owed_uj, 0
        cell = Cell(start_ns, end_ns, self._carried, rise_uj, first_uw, last_uw, quality)
        self._cells.append(cell)
        self._tip_ns, self._carried = end_ns, cell.carries
        self._hole = False

    def _note(self, t_ns: int, incident: Incident) -> None:
        """Note what a reading at `t_ns` showed, at the last moment of the stretch it ended.

        So it is counted in the window that holds that stretch, even where both end together.
        """
        self._incidents.append((t_ns - 1, incident))

    def _note_gap(self, last_ns: int) -> None:
        """Note that nothing followed the reading at `last_ns` for so long that it is a gap.

        At the moment it became one, so that it is the same gap before and after it is over.
        """
        self._incidents.append((self._gap_ns(last_ns), Incident.GAP))

    def _gap_ns(self, last_ns: int) -> int:
        return last_ns + min(self._max_gap_ns, self._max_pause_ns or self._max_gap_ns)

    # -------------------------------------------------------------------- answers

    def pin(self, t_ns: int) -> None:
        """Fix E(t_ns) at what it is now: the window that ends here can be booked no more.

        Later readings add energy after the pin only, so that windows telescope.
        """
        if self._tip_ns is None or self._seen_ns is None or t_ns <= self._tip_ns:
            return
        hole = self._hole
        if self._counter is not None:
            self._close(min(t_ns, self._seen_ns), 0, Quality.MEASURED)
        self._close(t_ns, 0, None)
        self._hole = hole

    def intervals(
        self, start_ns: int, end_ns: int, cuts_ns: Iterable[int] = ()
    ) -> list[EnergyInterval]:
        """What was metered in [start_ns, end_ns), cut at cells and at `cuts_ns`, in order.

        Unmetered stretches are left out. A counter's tail, from its last change to its last
        reading, is metered time with 0 J.
        """
        cuts = sorted({cut for cut in cuts_ns if start_ns < cut < end_ns})
        cuts.append(end_ns)
        ahead = 0
        tail = self._tail()
        tails = [tail] if tail is not None and tail.start_ns < end_ns else []
        found: list[EnergyInterval] = []
        for cell in chain(self._cells.touching(start_ns, end_ns), tails):
            low_ns, high_ns, _, rise_uj, first_uw, last_uw, quality = cell
            if quality is None:
                continue
            while cuts[ahead] <= low_ns:
                ahead += 1
            if start_ns <= low_ns and high_ns <= cuts[ahead] and not first_uw and not last_uw:
                # Rounding moves with whole microjoules: a whole rise needs none.
                found.append(EnergyInterval(low_ns, high_ns, rise_uj, quality))
                continue
            low_ns, high_ns = max(low_ns, start_ns), min(high_ns, end_ns)
            inside = cuts[bisect_right(cuts, low_ns) : bisect_left(cuts, high_ns)]
            found.extend(_pieces(cell, [low_ns, *inside, high_ns]))
        return found

    def _tail(self) -> Cell | None:
        if self._counter is None or self._tip_ns is None or self._counter.t_ns <= self._tip_ns:
            return None
        return Cell(self._tip_ns, self._counter.t_ns, self._carried, 0, 0, 0, Quality.MEASURED)

    def incidents(self, start_ns: int, end_ns: int, incident: Incident) -> int:
        """How often `incident` was noted in [start_ns, end_ns).

        A live meter's present silence is a gap as soon as it has lasted for so long.
        """
        found = [t_ns for t_ns, kind in self._incidents if kind is incident]
        if self._live and incident is Incident.GAP and self._seen_ns is not None:
            found.append(self._gap_ns(self._seen_ns))
        return sum(start_ns <= t_ns < end_ns for t_ns in found)

    def forget_before(self, t_ns: int) -> None:
        """Drop cells that end by `t_ns`; E(t) after it is unchanged."""
        if self._cells.forget_before(t_ns):
            self._incidents = [entry for entry in self._incidents if entry[0] >= t_ns]


def _pieces(cell: Cell, points_ns: list[int]) -> list[EnergyInterval]:
    """The stretches between ascending points of one metered cell."""
    assert cell.quality is not None
    quality = cell.quality
    points = [(t_ns, cell.energy_uj_at(t_ns)) for t_ns in points_ns]
    return [
        EnergyInterval(start_ns, end_ns, after_uj - before_uj, quality)
        for (start_ns, before_uj), (end_ns, after_uj) in pairwise(points)
        if start_ns < end_ns
    ]
