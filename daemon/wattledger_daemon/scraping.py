"""Scrapes the engines that `[scrape]` names: each on a thread of its own, once a period.

What is read becomes batches, and goes the way of a reporter's: journal, duplicates, `top` and
all else hold for it. Imported only where an engine is configured.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from wattledger.errors import InputError
from wattledger.records import NS_PER_S
from wattledger_collectors.scrape.counting import Counting, JumpError, Told
from wattledger_collectors.scrape.fetch import fetch
from wattledger_collectors.scrape.processes import (
    Processes,
    began_ns,
    processes_behind,
    start_ticks,
)
from wattledger_collectors.scrape.protocol import (
    NoAnswerError,
    NoPageError,
    Reading,
    ScrapeError,
    Scraper,
    find_scrapers,
)
from wattledger_collectors.scrape.text import require_parser
from wattledger_daemon.batches import BadBatchError, check_batch
from wattledger_daemon.export.headers import read_headers
from wattledger_daemon.health import EngineHealth
from wattledger_daemon.logs import event
from wattledger_daemon.rivals import is_scrape, reporter_pid
from wattledger_daemon.scrape_batches import EngineLabels, ScrapePress
from wattledger_daemon.scrape_options import ScrapeTarget
from wattledger_daemon.sources import BusyError, Sources
from wattledger_proto.v1 import collect_pb2

_LOG = logging.getLogger(__name__)
_TIMEOUT_S = 2.0
_STOP_S = 0.5
_LOOK_NS = 60 * NS_PER_S
_LOOK_AGAIN_NS = 5 * NS_PER_S
_FRESH_NS = 60 * NS_PER_S
_LONGEST_REST_NS = 10 * NS_PER_S
_REST_SHARE = 10

Fetch = Callable[[str, Mapping[str, str]], bytes]
FindProcesses = Callable[[str, tuple[str, ...]], Processes]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a scrape needs of the host: its boot, its clocks, its network and `/proc`.

    `began` tells when those behind a URL did, `started` the clock ticks at which a process did.
    """

    boot_id: str
    clock: Callable[[], int] = time.monotonic_ns
    fetch: Fetch = field(default=lambda url, headers: fetch(url, headers, _TIMEOUT_S))
    processes: FindProcesses = processes_behind
    began: Callable[[str], int | None] = began_ns
    started: Callable[[int], int] = start_ticks
    utc_ns: Callable[[], int] = time.time_ns


class EngineScrape:
    """One engine: asks it, counts, and hands over; used by one thread.

    A batch that the daemon cannot take now is kept, and the engine is not asked again before it
    was taken: its counters lose nothing meanwhile.
    """

    def __init__(
        self,
        name: str,
        target: ScrapeTarget,
        scraper: Scraper,
        sources: Sources,
        host: Surroundings,
    ) -> None:
        """Prepare; raises InputError for a file of headers that cannot be read."""
        self.name = name
        self._target = target
        self._scraper = scraper
        self._sources = sources
        self._host = host
        file = target.headers_file
        self._headers = read_headers(file, f"scrape.{name}.headers_file") if file else {}
        labels = EngineLabels(name, scraper.kind, target.workload or "", target.job or "")
        self._press = ScrapePress(labels, host.boot_id, host.clock())
        self._counting: Counting | None = None
        self._pending: collect_pb2.Batch | None = None
        self._processes = Processes()
        self._looked_ns: int | None = None
        self._model = ""
        self._failing = False
        self._told_nobody = ""
        self._failed_ns = 0
        self._told: set[str] = set()

    @property
    def rest_s(self) -> float:
        """How long to wait before the next turn: a tenth of an outage, 10 s at most."""
        if not self._failing:
            return self._target.period_s
        out_ns = self._host.clock() - self._failed_ns
        return max(self._target.period_s, min(out_ns // _REST_SHARE, _LONGEST_REST_NS) / NS_PER_S)

    def turn(self) -> None:
        """Ask the engine once, and hand over what it did since it was last asked."""
        if self._pending is not None and not self._hand_over(self._pending):
            return
        before_ns = self._host.clock()
        try:
            reading = self._read()
            # Counted while the page was made, somewhere between the question and the answer.
            t_ns = (before_ns + self._host.clock()) // 2
            self._look(t_ns)
            told = Told() if self._yields(t_ns) else self._count(t_ns, reading)
        except ScrapeError as error:
            if isinstance(error, JumpError):
                self._press.dropped_events += 1
            self._failed(error, before_ns)
            return
        self._works(t_ns)
        self._model = self._target.model or reading.model or self._model
        self._hand_over(self._press.batch(told, self._model[:200], self._processes.pids))

    def _read(self) -> Reading:
        first, *more = self._scraper.pages(self._target.url)
        bodies = (self._host.fetch(first, self._headers), *map(self._beside, more))
        return self._scraper.read(bodies)

    def _beside(self, page: str) -> bytes:
        """A page that an engine may have switched off: it is read without."""
        try:
            return self._host.fetch(page, self._headers)
        except ScrapeError as error:
            self._tell("scrape_page_missing", url=page, reason=str(error))
            return b""

    def _count(self, t_ns: int, reading: Reading) -> Told:
        if self._counting is None:
            self._counting = Counting()
            told = self._counting.take(t_ns, reading)
            note = "what it counted before is not booked"
            self._tell("scrape_begins", logging.INFO, url=self._target.url, note=note)
        else:
            restarts, falls = self._counting.restarts, self._counting.falls
            told = self._counting.take(t_ns, reading, lambda: self._began(t_ns, reading))
            if self._counting.restarts > restarts:
                _LOG.info(event("scrape_restarted", engine=self.name))
            if self._counting.falls > falls:
                self._press.dropped_events += 1
                note = "what its counters show is not booked, and counting goes on from there"
                self._tell("scrape_fell", note=note, mend="name the URL of one process")
        if not self._counting.sees_tokens:
            self._tell("scrape_no_counters", url=self._target.url, mend=self._scraper.mend)
        return told

    def _began(self, t_ns: int, reading: Reading) -> int | None:
        """When the process began that made the page, by its own word or by who listens there."""
        if reading.started_s:
            return t_ns - (self._host.utc_ns() - round(reading.started_s * NS_PER_S))
        return self._host.began(self._target.url)

    def _hand_over(self, batch: collect_pb2.Batch) -> bool:
        """Whether the daemon took a batch, or never will; else it is kept."""
        now_ns = self._host.clock()
        batch.sent_ns = now_ns
        batch.dropped_events = self._press.dropped_events
        try:
            check_batch(batch, boot_id=self._host.boot_id, now_ns=now_ns)
            self._sources.take(batch, now_ns)
        except BusyError:
            self._pending = batch if batch.sequence else None
            return False
        except BadBatchError as error:
            self._sources.refuse(self._press.source, str(error))
            if batch.sequence:
                self._press.refused(batch)
        self._pending = None
        return True

    # --------------------------------------------------------------- its processes

    def _look(self, t_ns: int) -> None:
        """Find the engine's processes now and then, and soon again as long as there are none."""
        age_ns = _LOOK_NS if self._processes.pids else _LOOK_AGAIN_NS
        if self._looked_ns is not None and t_ns - self._looked_ns < age_ns:
            return
        self._looked_ns = t_ns
        found = self._host.processes(self._target.url, self._scraper.launchers)
        if found.pids:
            self._processes, self._told_nobody = found, ""
        elif found.why != self._told_nobody:
            self._processes, self._told_nobody = found, found.why
            note = (
                "its tokens are booked and get no energy; should a hook or wattledger proxy report "
                "them too, they are booked twice"
            )
            fields = {"reason": found.why, "note": note, "mend": found.mend}
            _LOG.warning(event("scrape_no_process", engine=self.name, **fields))

    def _yields(self, t_ns: int) -> bool:
        """Whether the engine reports by itself: then nothing is counted here, lest it be twice."""
        found = (e for name, e in self._sources.reporters() if self._is_rival(name, e, t_ns))
        rival = next(found, None)
        if rival is None:
            self._told.discard("scrape_yields")
            return False
        self._counting = None
        mend = f"take scrape.{self.name} out of the config"
        self._tell("scrape_yields", reported_as=rival.engine, mend=mend)
        return True

    def _is_rival(self, source: str, other: EngineHealth, t_ns: int) -> bool:
        """Whether a source tells of what is scraped here, or is the proxy that is scraped."""
        if is_scrape(source) or t_ns - other.last_ns >= _FRESH_NS:
            return False
        ours = self._processes.pids
        if not set(ours).isdisjoint(other.pids):
            return True
        pid, start = reporter_pid(source)
        # A pid alone may be of another pid namespace.
        return pid in ours and self._host.started(pid) == start

    # ------------------------------------------------------------------- its faults

    def _failed(self, error: ScrapeError, now_ns: int) -> None:
        if not self._failing:
            self._failing, self._failed_ns = True, now_ns
            mend = _mend(error, self._scraper)
            fields = {"url": self._target.url, "reason": error, "mend": mend}
            _LOG.warning(event("scrape_failing", engine=self.name, **fields))
        # It may come back as another process.
        self._looked_ns = None

    def _works(self, now_ns: int) -> None:
        if self._failing:
            after_s = f"{(now_ns - self._failed_ns) / NS_PER_S:.0f}"
            _LOG.warning(event("scrape_works_again", engine=self.name, after_s=after_s))
            self._failing = False

    def _tell(self, what: str, level: int = logging.WARNING, **fields: object) -> None:
        if what not in self._told:
            self._told.add(what)
            _LOG.log(level, event(what, engine=self.name, **fields))


class Scraping:
    """All scraped engines of one run, a thread each."""

    def __init__(
        self, targets: Mapping[str, ScrapeTarget], sources: Sources, host: Surroundings
    ) -> None:
        """Prepare; raises InputError naming the key of what cannot be had."""
        self._stopping = threading.Event()
        self._broken: set[str] = set()
        scrapes = [
            EngineScrape(name, target, scraper, sources, host)
            for (name, target), scraper in zip(targets.items(), _scrapers(targets), strict=True)
        ]
        self._threads = [
            threading.Thread(
                target=self._run,
                args=(scrape,),
                name=f"scrape-{scrape.name}",
                daemon=True,
            )
            for scrape in scrapes
        ]

    def start(self) -> None:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End within half a second; an engine that hangs is left behind."""
        self._stopping.set()
        until_s = time.monotonic() + _STOP_S
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until_s - time.monotonic()))

    def _run(self, scrape: EngineScrape) -> None:
        due_s = time.monotonic()
        while not self._stopping.wait(max(0.0, due_s - time.monotonic())):
            self._turn(scrape)
            due_s = max(due_s + scrape.rest_s, time.monotonic())
        self._turn(scrape)

    def _turn(self, scrape: EngineScrape) -> None:
        try:
            scrape.turn()
        except Exception as error:  # noqa: BLE001 - the border: scrapers are anybody's
            if scrape.name not in self._broken:
                self._broken.add(scrape.name)
                _LOG.exception(event("scrape_broken", engine=scrape.name, reason=error))


def examine(targets: Mapping[str, ScrapeTarget]) -> list[tuple[str, str]]:
    """What each scrape would do here, a line each for `--check`; every engine is asked once."""
    lines: list[tuple[str, str]] = []
    for (name, target), scraper in zip(targets.items(), _scrapers(targets), strict=True):
        file = target.headers_file
        headers = read_headers(file, f"scrape.{name}.headers_file") if file else {}
        lines.append((f"scrape.{name}", _finding(target, scraper, headers)))
    return lines


def _finding(target: ScrapeTarget, scraper: Scraper, headers: Mapping[str, str]) -> str:
    where = f"would read {target.url} every {target.period_s:g} s"
    try:
        pages = scraper.pages(target.url)
        reading = scraper.read(tuple(fetch(page, headers, _TIMEOUT_S) for page in pages))
    except ScrapeError as error:
        return f"{where}, which fails now: {error} ({_mend(error, scraper)})"
    processes = processes_behind(target.url, scraper.launchers)
    whose = f"{len(processes.pids)} processes"
    if not processes.pids:
        whose = (
            f"no process, and so no energy, and whether another reports it too cannot be seen: "
            f"{processes.why} ({processes.mend})"
        )
    counters = "" if reading.tier is not None else f"; no token counter yet ({scraper.mend})"
    return f"{where}: {scraper.kind}, coarse, {whose}{counters}"


def _mend(error: ScrapeError, scraper: Scraper) -> str:
    if isinstance(error, NoAnswerError):
        return "see that it runs there, or mend url"
    if isinstance(error, NoPageError):
        return f"see that url leads to its metrics; {scraper.mend}"
    return "see what answers there"


def _scrapers(targets: Mapping[str, ScrapeTarget]) -> list[Scraper]:
    """A scraper for each; raises InputError for an unknown one and a missing library."""
    found = find_scrapers()
    made: list[Scraper] = []
    for name, target in targets.items():
        if target.engine not in found:
            known = ", ".join(sorted(found))
            raise InputError(f"scrape.{name}.engine: no scraper {target.engine!r}: known: {known}")
        try:
            require_parser()
            made.append(found[target.engine]())
        except ImportError as error:
            raise InputError(f"scrape.{name}: {error}, or take it out of the config") from error
    return made
