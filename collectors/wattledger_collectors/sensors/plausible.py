"""Counters that jump: what no hardware can have drawn is not believed."""

from __future__ import annotations

from typing import NamedTuple

from wattledger.records import NS_PER_S

MAX_POWER_UW = 2_000_000_000
_AGREEING = 10


class _Point(NamedTuple):
    t_ns: int
    energy_uj: int


class PlausibleCounter:
    """Passes a GPU's counter on, and refuses a step that means more than 2 kW on average.

    A counter that stays where it jumped to, for ten readings more, is followed again from there:
    it then rises from what was told last, and the energy of the refused stretch is lost. A fall
    is a reset where the new value can have been drawn since the last change. Source: Intel's
    Level Zero counter once fell from 22 MJ to 200 J, and rose again (compute-runtime#938).
    """

    __slots__ = ("_agreeing", "_changed", "_offset_uj", "_suspect")

    def __init__(self) -> None:
        self._changed: _Point | None = None
        self._suspect: _Point | None = None
        self._agreeing = 0
        self._offset_uj = 0

    def take(self, t_ns: int, energy_uj: int) -> int | None:
        """What to tell of a counter that shows `energy_uj`; None for what cannot be."""
        now, changed = _Point(t_ns, energy_uj), self._changed
        if changed is None or _fits(changed, now):
            self._suspect = None
            return self._follow(now)
        suspect, self._suspect = self._suspect, now
        self._agreeing = self._agreeing + 1 if suspect and _fits(suspect, now) else 0
        if self._agreeing < _AGREEING:
            return None
        self._offset_uj += changed.energy_uj - now.energy_uj
        self._suspect, self._agreeing, self._changed = None, 0, now
        return energy_uj + self._offset_uj

    def _follow(self, now: _Point) -> int:
        changed = self._changed
        if changed is not None and now.energy_uj < changed.energy_uj:
            self._offset_uj = 0
        # Since the last change, not the last reading: a counter may move seldom, and far.
        if changed is None or now.energy_uj != changed.energy_uj:
            self._changed = now
        return now.energy_uj + self._offset_uj


def _fits(before: _Point, now: _Point) -> bool:
    rise_uj = now.energy_uj - before.energy_uj
    if rise_uj < 0:
        rise_uj = now.energy_uj
    return rise_uj * NS_PER_S <= MAX_POWER_UW * (now.t_ns - before.t_ns)
