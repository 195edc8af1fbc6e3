"""Whether a wrapping counter can be believed: it may stand still, jump, or begin anew.

A counter that began anew looks like one that wrapped, up to its whole range too high. The meter
tells a wrap from a gap by the pause alone, so what cannot be a wrap is held back until then.
Source: accounting.md section 1 (range / maximum power); `MAX_POWER_W` is the meter's own.
"""

from __future__ import annotations

from wattledger.records import NS_PER_S

MAX_POWER_W = 1000
# A stall between a read and its stamp makes the next rise look fast.
_SLACK_NS = 10 * NS_PER_S
_STILL_NS = 10 * NS_PER_S
_UJ_PER_WS = 1_000_000
# Beyond the meter's own limit by more than two stamps of one reading can differ.
_MARGIN_NS = NS_PER_S


class Trend:
    """What one counter has said so far; `range_uj` is where it wraps, None for 64 bits."""

    __slots__ = ("_blind_ns", "_broken", "_changed_ns", "_last_ns", "_last_uj", "_range_uj")

    def __init__(self, range_uj: int | None) -> None:
        self._range_uj = range_uj
        self._blind_ns: int | None = None
        if range_uj is not None:
            self._blind_ns = range_uj * NS_PER_S // (MAX_POWER_W * _UJ_PER_WS) + _MARGIN_NS
        self._last_uj: int | None = None
        self._last_ns = 0
        self._changed_ns = 0
        self._broken = False

    def broken(self) -> None:
        """Note that the source was lost or disbelieved: a decrease from here on is no wrap."""
        self._broken = True

    def checked(self, energy_uj: int, now_ns: int) -> int:
        """`energy_uj` as it was read at `now_ns`; ValueError where it cannot be believed."""
        if self._last_uj is None or self._is_gap(now_ns):
            return self._believed(energy_uj, now_ns)
        rise_uj = energy_uj - self._last_uj
        if rise_uj == 0:
            if now_ns - self._changed_ns > _STILL_NS:
                raise ValueError(f"stands still at {energy_uj}")
            self._last_ns = now_ns
            return energy_uj
        if rise_uj < 0 and self._range_uj is not None:
            rise_uj += self._range_uj
            if self._broken:
                raise ValueError(f"began anew: {energy_uj} after {self._last_uj}")
        if rise_uj * NS_PER_S > MAX_POWER_W * _UJ_PER_WS * (now_ns - self._last_ns + _SLACK_NS):
            raise ValueError(
                f"went from {self._last_uj} to {energy_uj}: more than {MAX_POWER_W} W, "
                "so it began anew or is wrong"
            )
        return self._believed(energy_uj, now_ns)

    def _is_gap(self, now_ns: int) -> bool:
        """Whether the meter will take the next reading for the end of a gap, whatever it says."""
        return self._blind_ns is not None and now_ns - self._last_ns > self._blind_ns

    def _believed(self, energy_uj: int, now_ns: int) -> int:
        self._last_uj = energy_uj
        self._last_ns = self._changed_ns = now_ns
        self._broken = False
        return energy_uj
