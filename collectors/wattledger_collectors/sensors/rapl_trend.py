"""Whether a wrapping counter can be believed: it may stand still, jump, or begin anew.

A counter that began anew looks like one that wrapped, up to its whole range too high. The meter
tells a wrap from a gap by the pause alone, so what cannot be a wrap is held back until then.
Source: accounting.md section 1 (range / maximum power); `MAX_POWER_W` is the meter's own.
"""

from __future__ import annotations

from typing import NamedTuple

from wattledger.records import NS_PER_S

MAX_POWER_W = 1000
# The hardware counts in steps, and a peak may stand above the highest power for a moment.
SLACK_NS = NS_PER_S
_STILL_NS = 10 * NS_PER_S
_UJ_PER_WS = 1_000_000
# Beyond the meter's own limit by more than two stamps of one reading can differ.
_MARGIN_NS = NS_PER_S
# After a wrong reading a wrap is believed this long: later a new count would look like one.
_DOUBT_NS = 5 * NS_PER_S
MOST_OWED_UJ = 3 * MAX_POWER_W * _UJ_PER_WS


class _Point(NamedTuple):
    """A reading, and when it was asked for: no later than it was taken."""

    energy_uj: int
    asked_ns: int


class Trend:
    """What one counter has said so far; `range_uj` is where it wraps, None for 64 bits.

    A single reading that is too high by less than can be told stands among what was believed.
    What was told cannot be taken back, so it is owed: the count that is told stands still until
    the counter has caught up with it.
    """

    __slots__ = (
        "_before",
        "_blind_ns",
        "_broken",
        "_changed_ns",
        "_doubted",
        "_last",
        "_owed_uj",
        "_range_uj",
        "_refused",
        "_told_ns",
    )

    def __init__(self, range_uj: int | None) -> None:
        self._range_uj = range_uj
        self._blind_ns: int | None = None
        if range_uj is not None:
            self._blind_ns = range_uj * NS_PER_S // (MAX_POWER_W * _UJ_PER_WS) + _MARGIN_NS
        self._last: _Point | None = None
        self._before: _Point | None = None
        self._refused: _Point | None = None
        self._told_ns = self._changed_ns = 0
        self._owed_uj = 0
        self._broken = self._doubted = False

    def broken(self) -> None:
        """Note that the source was lost: a decrease from here on is no wrap."""
        self._broken = True

    def doubted(self) -> None:
        """Note a reading that was no number: a decrease long after it is no wrap."""
        self._doubted = True

    def checked(self, energy_uj: int, now_ns: int, late_ns: int = 0) -> int:
        """What to tell for `energy_uj`, had by `now_ns` and asked for `late_ns` before.

        Raises ValueError where it cannot be believed.
        """
        here, last = _Point(energy_uj, now_ns - late_ns), self._last
        if last is None or self._is_gap(now_ns):
            self._owed_uj = 0
            return self._believed(here, None, now_ns)
        if energy_uj == last.energy_uj:
            if now_ns - self._changed_ns > _STILL_NS:
                raise ValueError(f"stands still at {energy_uj}")
            self._told_ns = now_ns
            return self._told(energy_uj)
        if not self._possible(last, energy_uj, now_ns):
            raise self._disbelieved(here, last, now_ns)
        if energy_uj < last.energy_uj and self._range_uj is not None and self._anew(here, now_ns):
            raise ValueError(f"began anew: {energy_uj} after {last.energy_uj}")
        if self._owed_uj:
            self._owed_uj = max(self._owed_uj - self._rise_uj(last, energy_uj), 0)
        return self._believed(here, last, now_ns)

    def _rise_uj(self, since: _Point, energy_uj: int) -> int:
        """The rise, through a wrap where there is one; of 64 bits a fall stays one."""
        rise_uj = energy_uj - since.energy_uj
        return rise_uj if self._range_uj is None else rise_uj % self._range_uj

    def _possible(self, since: _Point, energy_uj: int, now_ns: int) -> bool:
        """Whether no more was counted than the highest power makes of the time."""
        most_uj = MAX_POWER_W * _UJ_PER_WS * (now_ns - since.asked_ns + SLACK_NS) // NS_PER_S
        return self._rise_uj(since, energy_uj) <= most_uj

    def _anew(self, here: _Point, now_ns: int) -> bool:
        """Whether a fall that could be a wrap may be another count instead."""
        assert self._last is not None
        late = now_ns - self._last.asked_ns > _DOUBT_NS
        return self._broken or self._goes_on(here, now_ns) or (self._doubted and late)

    def _goes_on(self, here: _Point, now_ns: int) -> bool:
        """Whether a reading goes on from the one refused last: two say the same."""
        refused = self._refused
        return (
            refused is not None
            and here.energy_uj >= refused.energy_uj
            and self._possible(refused, here.energy_uj, now_ns)
        )

    def _disbelieved(self, here: _Point, last: _Point, now_ns: int) -> ValueError:
        """What is wrong with a reading that does not go on from the last."""
        if self._catches_up(here, last, now_ns):
            return ValueError(
                f"fell from {last.energy_uj} to {here.energy_uj}: one of the two is wrong"
            )
        self._broken = self._broken or self._goes_on(here, now_ns)
        self._doubted = True
        self._refused = here
        return ValueError(
            f"went from {last.energy_uj} to {here.energy_uj}: more than {MAX_POWER_W} W, "
            "so it began anew or is wrong"
        )

    def _catches_up(self, here: _Point, last: _Point, now_ns: int) -> bool:
        """Go on from a reading that fits what came before the last, and owe the difference."""
        if self._range_uj is None or self._before is None or self._broken:
            return False
        owed_uj = self._owed_uj + self._rise_uj(here, last.energy_uj)
        if owed_uj > MOST_OWED_UJ or not self._possible(self._before, here.energy_uj, now_ns):
            return False
        self._last, self._owed_uj, self._changed_ns = here, owed_uj, now_ns
        return True

    def _is_gap(self, now_ns: int) -> bool:
        """Whether the meter will take the next reading for the end of a gap, whatever it says."""
        return self._blind_ns is not None and now_ns - self._told_ns > self._blind_ns

    def _believed(self, here: _Point, before: _Point | None, now_ns: int) -> int:
        self._last, self._before, self._refused = here, before, None
        self._told_ns = self._changed_ns = now_ns
        self._broken = self._doubted = False
        return self._told(here.energy_uj)

    def _told(self, energy_uj: int) -> int:
        told_uj = energy_uj + self._owed_uj
        return told_uj if self._range_uj is None else told_uj % self._range_uj
