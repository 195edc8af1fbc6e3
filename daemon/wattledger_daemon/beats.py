"""The threads that sensors are driven by: few, since waking is what a meter pays for most.

A beat drives several sensors one after the other. One that was slow gets a beat of its own, and
one that is stuck keeps its thread to itself, while the others go on in a new one: a sensor that
blocks delays nobody but itself, save once and by a second or so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from operator import attrgetter

from wattledger.records import NS_PER_S
from wattledger_daemon.logs import event
from wattledger_daemon.sampling import SensorRunner, SensorState

_LOG = logging.getLogger(__name__)
_WAKE_S = 0.5
_DUE_NS = attrgetter("due_ns")


class Beat:
    """One thread and the sensors that are its own; `wait` sleeps and says whether to stop."""

    def __init__(
        self,
        name: str,
        runners: Iterable[SensorRunner],
        spawn: Callable[[tuple[SensorRunner, ...]], None],
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        """Prepare the thread; `spawn` starts another beat for runners that leave this one."""
        self._runners = tuple(runners)
        self._spawn = spawn
        self._clock = clock
        self._stop = threading.Event()
        self._stopping = False
        self._wait = wait or self._pause
        self._lock = threading.Lock()
        self._busy: SensorRunner | None = None
        self._since_ns = 0
        self._thread = threading.Thread(target=self.run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Have the thread end after what it is doing."""
        self._stopping = True
        self._stop.set()

    def join(self, timeout_s: float) -> None:
        """Wait so long for the thread to end; a blocked one is left behind."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def run(self) -> None:
        """Drive the sensors until stopped, or until none is left."""
        while self._runners and not self._wait(self._rest_s()):
            now_ns = self._clock()
            for runner in self._runners:
                if runner.due_ns <= now_ns and self._claim(runner):
                    self._after(runner, slow=runner.turn())
        # All of one before any of the next: what hangs shall cost the others nothing.
        runners = self._runners
        for runner in runners:
            runner.flush()
        for runner in runners:
            runner.last_word()
        for runner in runners:
            runner.close()

    def watch(self) -> None:
        """Leave a sensor that is stuck to this thread, and the others to a new one; any thread."""
        with self._lock:
            late = self._busy
            if late is None:
                return
            busy_ns = self._clock() - self._since_ns
            if busy_ns < late.patience_ns:
                return
            others: tuple[SensorRunner, ...] = ()
            if not self._stop.is_set():
                others = tuple(runner for runner in self._runners if runner is not late)
                self._runners = (late,)
            stuck = busy_ns >= late.stuck_after_ns
            if stuck:
                # Once a turn: from here on nobody waits for its end.
                self._busy = None
                late.hang(self._since_ns)
        if others:
            if not stuck:
                mend = "it has its thread to itself"
                _LOG.info(event("sensor_slow", sensor=late.name, mend=mend))
            self._spawn(others)

    def _rest_s(self) -> float:
        due_ns: int = min(map(_DUE_NS, self._runners))
        return max(0.0, (due_ns - self._clock()) / NS_PER_S)

    def _claim(self, runner: SensorRunner) -> bool:
        """Whether this thread may drive it: while another turn took long it may have left."""
        with self._lock:
            if runner not in self._runners:
                return False
            self._busy, self._since_ns = runner, self._clock()
            return True

    def _after(self, runner: SensorRunner, *, slow: bool) -> None:
        with self._lock:
            self._busy = None
            if runner.state is SensorState.RUNNING and not slow:
                return
            runner.came_back()
            crowded = len(self._runners) > 1 and not self._stop.is_set()
            leaves = runner.over or (slow and crowded)
            if leaves:
                self._runners = tuple(other for other in self._runners if other is not runner)
        if runner.over:
            runner.close()
        elif leaves:
            _LOG.info(event("sensor_slow", sensor=runner.name, mend="it gets a thread of its own"))
            self._spawn((runner,))

    def _pause(self, seconds: float) -> bool:
        """Sleep; whether to stop. An event that can be woken costs twice a bare sleep."""
        if seconds > _WAKE_S:
            return self._stop.wait(seconds)
        time.sleep(seconds)
        return self._stopping
