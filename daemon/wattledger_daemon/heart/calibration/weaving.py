"""Calibration as the accountant weaves it in: tried as pages are made, kept as they are booked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wattledger.fits import Calibrated
from wattledger_daemon.heart.attribution.laying import DeviceWindow
from wattledger_daemon.heart.calibration.book import CostBook, Saving
from wattledger_daemon.heart.calibration.rows import SURE_NS
from wattledger_daemon.heart.calibration.teaching import lessons_of
from wattledger_daemon.heart.evidence import EvidenceBook
from wattledger_daemon.heart.paging import Window

_LOST_NS = 2 * SURE_NS
"""For so long it is known that events were lost: longer than any lesson looks back."""


class Costs:
    """The book of costs and what windows not yet booked would make of it.

    A window stands under what those before it taught, so that it does not matter how many are
    closed at once. `learning` False: nothing is calibrated, and every call is idle.
    """

    def __init__(self, evidence: EvidenceBook, *, learning: bool) -> None:
        self._evidence = evidence
        self._learning = learning
        self._book = CostBook()
        self._tried: dict[Window, CostBook] = {}
        self._saving = Saving()
        self._lost_ns: list[int] = []

    def lose(self, t_ns: int) -> None:
        """Note that events were lost at a moment, before its window is tried."""
        if self._learning:
            self._lost_ns.append(t_ns)

    def try_anew(self) -> None:
        """Forget what was tried before: pages are made from what is booked."""
        self._tried = {}

    def stand(self) -> None:
        """Let the models of what is booked be in force, not those tried."""
        self._evidence.calibrate(self._book.costs())

    def try_window(self, window: Window, seen: Sequence[DeviceWindow]) -> None:
        """Let the next window's page stand under what this one teaches."""
        if self._learning:
            before = next(reversed(self._tried.values()), self._book)
            after = self._tried[window] = self._after(before, window, seen)
            if after is not before:
                self._evidence.calibrate(after.costs())

    def _after(self, book: CostBook, window: Window, seen: Sequence[DeviceWindow]) -> CostBook:
        span = (window.start_ns, window.end_ns)
        lessons = lessons_of(self._evidence, window.clock.epoch_ns, span, seen, self._lost_ns)
        return book.learn(lessons, window.clock) if lessons else book

    def knows(self, window: Window) -> bool:
        """Whether `book` needs not see the window again."""
        return not self._learning or window in self._tried

    def book(self, window: Window, seen: Sequence[DeviceWindow]) -> None:
        """Keep what a booked window taught; a new fit alone restates none booked before."""
        if not self._learning:
            return
        after = self._tried.pop(window, None) or self._after(self._book, window, seen)
        self._saving.moved(self._book, after)
        self._book = after
        self._lost_ns = [t_ns for t_ns in self._lost_ns if t_ns >= window.end_ns - _LOST_NS]
        self._evidence.calibrate(after.costs())

    def remember(self, states: Iterable[str]) -> None:
        """Take the calibrations that were kept, before any evidence."""
        if self._learning:
            self._book = self._book.remember(states)
            self._evidence.calibrate(self._book.costs())

    def take(self, taught_ns: int, *, every: bool = False) -> list[Calibrated]:
        """Calibrations to keep now, `taught_ns` UTC; with `every` all that have moved."""
        return self._saving.take(self._book, taught_ns, every=every)
