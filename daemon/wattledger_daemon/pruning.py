"""When to forget, and as of what day: what a wrong wall clock says must not cost the history."""

from __future__ import annotations

from wattledger.records import NS_PER_S, Clock

_PERIOD_NS = 3600 * NS_PER_S
_TRUSTED_NS = 7 * 86_400 * NS_PER_S
_STEP_NS = 3600 * NS_PER_S


class Pruning:
    """Prunes once an hour, for the first time an hour after the start or a wall-clock step.

    Until the wall clock has gone a week without a step, today is no later than the ledger's
    last page from before this run, or the time before the step, and what has passed since on
    the monotonic clock. A ledger without such a page has nothing to lose.
    """

    def __init__(self, now_ns: int, last: tuple[Clock, int] | None) -> None:
        """Begin at `now_ns`, CLOCK_MONOTONIC; `last` is the last page's clock and end, UTC."""
        self.due_ns = now_ns + _PERIOD_NS
        self._steady_ns = now_ns
        self._epoch_ns = None if last is None else last[1] - now_ns

    def today_ns(self, now_ns: int, wall_ns: int) -> int:
        """The time, UTC, that retention counts back from."""
        if self._trusts(now_ns) or self._epoch_ns is None:
            return wall_ns
        return min(wall_ns, self._epoch_ns + now_ns)

    def pruned(self, now_ns: int) -> None:
        """Note that nothing is left to forget for now."""
        self.due_ns = now_ns + _PERIOD_NS

    def stepped(self, now_ns: int, before_epoch_ns: int, epoch_ns: int) -> None:
        """Note a step of the wall clock; one of less than an hour hardly moves today."""
        if abs(epoch_ns - before_epoch_ns) < _STEP_NS:
            return
        if self._trusts(now_ns) or self._epoch_ns is None:
            self._epoch_ns = before_epoch_ns
        self._steady_ns = now_ns
        self.due_ns = now_ns + _PERIOD_NS

    def _trusts(self, now_ns: int) -> bool:
        return now_ns - self._steady_ns >= _TRUSTED_NS
