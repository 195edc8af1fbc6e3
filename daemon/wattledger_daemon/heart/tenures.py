"""Who had a pid when: a host gives the pid of a process that ended to another one."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import NamedTuple

from wattledger.records import Engine, Process

TICK_NS = 10_000_000
"""A clock tick of start times; 100 to the second. Source: proc(5) starttime, time(7)."""


class Tenure(NamedTuple):
    """A process that had its pid until `until_ns`, and the engine it lived in."""

    process: Process
    until_ns: int
    engine: str | None = None


class Tenures:
    """Processes by pid: the one that has it, and those that had it before, oldest first.

    A line about a process bears no time. So a pid changed hands when the later process started,
    or when it was first told where that is earlier: a start counts time that a host slept, too.
    """

    def __init__(self) -> None:
        self._present: dict[int, Process] = {}
        self._former: dict[int, list[Tenure]] = {}
        self._parted: dict[str, list[Tenure]] = defaultdict(list)

    def __iter__(self) -> Iterator[Process]:
        """Every known process, those that had a pid before its present one first."""
        for tenures in self._former.values():
            yield from (tenure.process for tenure in tenures)
        yield from self._present.values()

    # ------------------------------------------------------------------ taking in

    def tell(self, process: Process, latest_ns: int | None) -> bool:
        """Take what is said of a process; True where it has the pid of another one now.

        What is known of a living process is kept; another start time is another process.
        `latest_ns` is the latest moment spoken of: with None, nobody had the pid before.
        """
        pid = process.pid
        known = self._present.get(pid)
        if known is None or known.start == 0 != process.start:
            self._present[pid] = process
        elif process.start in (known.start, 0):
            self._present[pid] = _merged(process, known)
        elif process.start < known.start:
            self._recall(process, known, latest_ns)
        else:
            self._present[pid] = process
            if latest_ns is not None:
                tenure = Tenure(known, _given_ns(process, latest_ns))
                self._former.setdefault(pid, []).append(tenure)
            return True
        return False

    def part(self, pid: int, engine: str) -> None:
        """Note that the process which had the pid last lived in an engine."""
        if pid in self._former:
            tenure = self._former[pid][-1] = self._former[pid][-1]._replace(engine=engine)
            self._parted[engine].append(tenure)

    def _recall(self, process: Process, present: Process, latest_ns: int | None) -> None:
        """Take what is said of a process that is gone: a journal begins somewhere, and says so."""
        if latest_ns is None:
            return
        former = self._former.setdefault(process.pid, [])
        at = bisect_left(former, process.start, key=lambda tenure: tenure.process.start)
        after = former[at].process if at < len(former) else present
        if after.start == process.start:
            former[at] = former[at]._replace(process=_merged(process, after))
            return
        former.insert(at, Tenure(process, _given_ns(after, latest_ns)))
        if at:
            before = former[at - 1]
            until_ns = min(before.until_ns, _given_ns(process, latest_ns))
            former[at - 1] = before._replace(until_ns=until_ns)

    # -------------------------------------------------------------------- answers

    def former(self, pid: int, end_ns: int) -> Tenure | None:
        """Who had a pid at the end of a use record; None where that is who has it now.

        The end, since a record names those who were there when it was made.
        """
        for tenure in self._former.get(pid, ()):
            if end_ns <= tenure.until_ns:
                return tenure
        return None

    def at(self, pid: int, end_ns: int) -> Process | None:
        """The process that a use record with this end means by a pid."""
        former = self.former(pid, end_ns) if pid in self._former else None
        return self._present.get(pid) if former is None else former.process

    def owner_of(self, engine: Engine, since_ns: int) -> tuple[str | None, str | None]:
        """(workload, job) of an engine: that of its first process since then that has either."""
        parted = self._parted.get(engine.engine, ())
        processes = [tenure.process for tenure in parted if tenure.until_ns > since_ns]
        processes += filter(None, map(self._present.get, engine.pids))
        for process in processes:
            if process.workload is not None or process.job is not None:
                return process.workload, process.job
        return None, None

    def has_left(self, engine: str) -> bool:
        """Whether a process that had its pid before lived in an engine."""
        return engine in self._parted

    # ------------------------------------------------------------------ forgetting

    def forget_before(self, t_ns: int) -> None:
        """Forget those that had a pid until `t_ns` at most."""
        self._former = {
            pid: kept
            for pid, tenures in self._former.items()
            if (kept := [tenure for tenure in tenures if tenure.until_ns > t_ns])
        }
        for name, tenures in list(self._parted.items()):
            self._parted[name] = [tenure for tenure in tenures if tenure.until_ns > t_ns]
            if not self._parted[name]:
                del self._parted[name]

    def keep(self, pids: Collection[int]) -> None:
        """Forget the processes that have any other pid now."""
        self._present = {pid: who for pid, who in self._present.items() if pid in pids}


def _given_ns(process: Process, latest_ns: int) -> int:
    """When a process was given its pid."""
    return min(process.start * TICK_NS, latest_ns)


def _merged(process: Process, known: Process) -> Process:
    return Process(
        process.pid,
        known.start,
        process.workload if process.workload is not None else known.workload,
        process.job if process.job is not None else known.job,
    )
