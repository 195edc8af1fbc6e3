"""Every key's calibration on a host: lessons in, cost models by engine out.

A value: `learn` returns another book, so that windows can be tried without a promise. The
same lessons in the same order make the same book. Source: accounting.md section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from wattledger.fits import Calibrated, FitKey
from wattledger.records import Clock, CostModel
from wattledger_daemon.heart.calibration.lessons import Calibration
from wattledger_daemon.heart.calibration.rows import Lesson
from wattledger_daemon.heart.calibration.state import dump, load

_KEYS = 64
SAVE_LESSONS = 12
"""A state is worth keeping after so many lessons: what came since is in the journal."""


@dataclass(frozen=True, slots=True)
class CostBook:
    """Calibrations by key, the one taught last at the end."""

    known: Mapping[FitKey, Calibration] = field(default_factory=dict)

    def learn(self, lessons: Iterable[Lesson], clock: Clock) -> CostBook:
        """The book after the lessons of one window."""
        known = dict(self.known)
        for lesson in lessons:
            before = known.pop(lesson.key, None) or Calibration(lesson.key)
            known[lesson.key] = before.learn(lesson, clock.boot_id, clock.epoch_ns)
        while len(known) > _KEYS:
            del known[next(iter(known))]
        return CostBook(known)

    def costs(self) -> dict[str, CostModel]:
        """The model in force by engine; one without has the default weights."""
        found: dict[str, CostModel | None] = {}
        for calibration in self.known.values():
            found.update(dict.fromkeys(calibration.engines, calibration.cost))
        return {engine: cost for engine, cost in found.items() if cost is not None}

    def remember(self, states: Iterable[str]) -> CostBook:
        """The book with what was learned before, as `unsaved` told it; later ones count."""
        known = dict(self.known)
        for state in states:
            calibration = load(state)
            if calibration is not None:
                known.pop(calibration.key, None)
                known[calibration.key] = calibration
        return CostBook(known)


@dataclass(slots=True)
class Saving:
    """Which states have changed since they were told, and which fits are new."""

    _lessons: dict[FitKey, int] = field(default_factory=dict)
    _news: set[FitKey] = field(default_factory=set)

    def moved(self, before: CostBook, after: CostBook) -> None:
        """Note what a window taught."""
        for key, calibration in after.known.items():
            held = before.known.get(key)
            if held is calibration:
                continue
            self._lessons[key] = self._lessons.get(key, 0) + 1
            if calibration.fit is not (held.fit if held is not None else None):
                self._news.add(key)

    def take(self, book: CostBook, taught_ns: int, *, every: bool = False) -> list[Calibrated]:
        """What to keep now, `taught_ns` UTC; with `every` all that has changed at all."""
        due = [
            key
            for key, count in self._lessons.items()
            if key in book.known and (every or count >= SAVE_LESSONS or key in self._news)
        ]
        told = []
        for key in due:
            calibration = book.known[key]
            fit = calibration.fit if key in self._news else None
            told.append(Calibrated(key, taught_ns, dump(calibration), fit))
            del self._lessons[key]
            self._news.discard(key)
        return told
