"""The daemon's signals, taken by a thread of its own.

They stay blocked in every other thread, so that none ever interrupts a write.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from wattledger_daemon.logs import event

_LOG = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Hands signals over between turns; one that asks to stop ends a start at once.

    A start may take long: a journal to fold, a driver that does not answer. The journal makes
    an end in the midst of it as harmless as a crash.
    """

    def __init__(self, end: Callable[[int], None] = os._exit) -> None:
        """Block the signals in this thread and those it starts; `end` ends the process."""
        self._end = end
        self._taken: SimpleQueue[signal.Signals | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._starting = True
        self._clean: Callable[[], None] = lambda: None
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def start(self) -> None:
        """Begin to wait for signals."""
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    def before_end(self, clean: Callable[[], None]) -> None:
        """Have this done before a start is ended; it must not block."""
        with self._lock:
            self._clean = clean

    def ready(self) -> None:
        """The start is over: from now on every signal is for `next`."""
        with self._lock:
            self._starting = False

    def next(self, timeout_s: float) -> signal.Signals | None:
        """The next signal, None where none comes in time, or `poke` ends the wait."""
        try:
            return self._taken.get(timeout=timeout_s)
        except Empty:
            return None

    def poke(self) -> None:
        """End the wait of `next`; any thread may, as often as it likes."""
        if self._taken.empty():
            self._taken.put(None)

    def take(self, number: signal.Signals) -> None:
        """Take a signal; one that asks to stop never returns during the start."""
        with self._lock:
            if self._starting and number is not signal.SIGHUP:
                _LOG.info(event("stopped", signal=number.name, was="starting"))
                self._clean()
                self._end(0)
            self._taken.put(number)

    def _wait(self) -> None:
        """Wait without a timeout.

        `signal.sigtimedwait` that is interrupted (by a stop and a SIGCONT) when its time is up
        returns what happens to lie in memory.
        """
        while True:
            self.take(signal.Signals(signal.sigwait(_SIGNALS)))
