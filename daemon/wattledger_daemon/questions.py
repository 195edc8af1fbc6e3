"""Questions about requests on their way to the pipeline thread, which alone owns the books.

Whoever asks waits on a future; a question wakes the pipeline, but not more often than it can
bear: however many ask, they share its turns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from wattledger.errors import WattledgerError
from wattledger.records import NS_PER_S
from wattledger.store.named import NamedRequest
from wattledger_collectors.engines.request_names import Names, names_of

MOST_OPEN = 24
"""Well below what the server takes of all calls: engines report through the same door."""

MOST_WAITING = 16
"""So many of them may await a request's end: room is left for those who ask what is known now."""

PACE_NS = NS_PER_S // 5
_LONGEST_REST_NS = 5 * NS_PER_S
_SHARE = 10


class BusyError(WattledgerError):
    """So many ask already that one more must come again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One request as it is known; `provisional` where some of it is not booked yet."""

    request: NamedRequest
    provisional: bool
    gco2e: float | None = None


@dataclass(slots=True, eq=False)
class Question:
    """What is asked; with `until_ns` (CLOCK_MONOTONIC) the end of the request may be awaited."""

    names: Names
    engine: str
    until_ns: int
    waits: bool = False
    answer: Future[list[Answer]] = field(default_factory=Future)
    looked: bool = False

    def settle(self, answers: list[Answer]) -> None:
        """Hand the answer over, unless nobody waits any more."""
        with suppress(InvalidStateError):
            self.answer.set_result(answers)

    def fail(self, error: Exception) -> None:
        """Tell why there is none."""
        with suppress(InvalidStateError):
            self.answer.set_exception(error)


class Questions:
    """The box: any thread asks, the pipeline's takes. `wake` and `hurry` must not block.

    `wake` ends the pipeline's rest; `hurry` has the sensors hand over what they hold.
    """

    def __init__(
        self,
        clock: Callable[[], int],
        wake: Callable[[], None] = lambda: None,
        hurry: Callable[[], None] = lambda: None,
        most: int = MOST_OPEN,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._clock = clock
        self._wake = wake
        self._hurry = hurry
        self._most = most
        self._most_waiting = most_waiting
        self._lock = threading.Lock()
        self._open: list[Question] = []
        self._waiting: list[Question] = []
        self._next_ns = 0

    def ask(self, request: str, engine: str = "", wait_ns: int = 0) -> Question:
        """Put a question; raises BusyError where too many are open or wait already."""
        question = Question(names_of(request), engine, self._clock() + wait_ns, wait_ns > 0)
        with self._lock:
            self._open = [item for item in self._open if not item.answer.done()]
            self._check_room(question)
            self._waiting = [item for item in self._waiting if not item.answer.done()]
            self._waiting.append(question)
            self._open.append(question)
        self._hurry()
        self._wake()
        return question

    def _check_room(self, question: Question) -> None:
        if len(self._open) >= self._most:
            raise BusyError(f"{self._most} questions are open already: ask again in a second")
        waiting = sum(item.waits for item in self._open)
        if question.waits and waiting >= self._most_waiting:
            raise BusyError(f"{waiting} questions wait already: ask without wait_s, or later")

    @property
    def due_ns(self) -> int | None:
        """When the pipeline shall take a turn for those who wait; None where nobody does."""
        return self._next_ns if self._waiting else None

    def take(self) -> list[Question]:
        """Every question that is still open; those not settled are to be put `back`."""
        with self._lock:
            taken, self._waiting = self._waiting, []
        return [item for item in taken if not item.answer.done()]

    def back(self, questions: list[Question]) -> None:
        """These wait on."""
        if questions:
            with self._lock:
                self._waiting = questions + self._waiting
            self._hurry()

    def answered(self, spent_ns: int) -> None:
        """Rest for as long as that work bids: it shall take a tenth of a core at most."""
        rest_ns = min(max(PACE_NS, _SHARE * spent_ns), _LONGEST_REST_NS)
        self._next_ns = self._clock() + rest_ns
