"""The one thread that writes: evidence into the journal, closed windows into the ledger.

Once a second it takes what has come, makes it durable, and only then takes it into the books
and acknowledges it. Where the ledger fails nothing is lost or acknowledged: what is taken
stays at hand, what comes stays in the bounded queue, and the next turn tries again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from wattledger.errors import UnreachableError
from wattledger.fits import Calibrated
from wattledger.records import NS_PER_S, Device, Evidence, Page, Process
from wattledger.store.connection import LedgerLostError
from wattledger.store.protocol import JournalEntry, Retention
from wattledger.trace import TraceHeader, encode
from wattledger_daemon import journal
from wattledger_daemon.answering import Answering
from wattledger_daemon.grams import Grams
from wattledger_daemon.health import Health, Snapshot
from wattledger_daemon.hosttime import HostTime, believable, stepped
from wattledger_daemon.intake import Count, Delivery, Intake, Item
from wattledger_daemon.journal import ClockEntry, Kind, lines_of
from wattledger_daemon.listening import Listener, Listeners
from wattledger_daemon.logs import event
from wattledger_daemon.pruning import Pruning
from wattledger_daemon.questions import Questions
from wattledger_daemon.recording import Recorder
from wattledger_daemon.recovery import DaemonLedger, Recovered, Scribe
from wattledger_daemon.rivals import Rivals
from wattledger_daemon.sampling import SensorHealth
from wattledger_daemon.selfmetrics import Notes, own_cost, self_metrics
from wattledger_daemon.sources import Sources

_LOG = logging.getLogger(__name__)
_TURN_S = 1.0
_QUIET_TURN_S = 5.0
_QUIET_NS = 30 * NS_PER_S
_WATCHED_NS = 10 * NS_PER_S
_TRIM_NS = 60 * NS_PER_S
_SLACK_NS = 180 * NS_PER_S
"""Kept in the journal beyond the accountant's horizon: a window, its watermark, a trim."""


@dataclass(slots=True)
class _Haul:
    """What one turn took from the queue, sorted by how it is journalled."""

    evidence: list[Evidence]
    deliveries: list[Delivery]
    counts: list[Count]


class Pipeline:
    """Sole writer of ledger and journal; every method belongs to its one thread but `snapshot`."""

    def __init__(
        self,
        ledger: DaemonLedger,
        recovered: Recovered,
        intake: Intake,
        sources: Sources,
        *,
        recorder: Recorder,
        time: HostTime,
        retention: Retention,
        horizon_ns: int,
        sensors: Callable[[], Sequence[SensorHealth]],
        zone: str | None = None,
        pue: float | None = None,
        listeners: Sequence[Listener] = (),
        questions: Questions | None = None,
    ) -> None:
        self.retention = retention
        self._ledger = ledger
        self._scribe = Scribe(ledger)
        self._accountant = recovered.accountant
        self._intake = intake
        self._sources = sources
        self._recorder = recorder
        self._notes = Notes(time.monotonic_ns())
        self._time = time
        self._kept_ns = horizon_ns + _SLACK_NS
        self._sensors = sensors
        self._zone = zone
        self._listeners = Listeners(listeners)
        box = questions or Questions(time.monotonic_ns)
        grams = Grams(zone, pue)
        self._answering = Answering(box, self._accountant, ledger, grams, time.monotonic_ns)
        self._health = Health()
        self._rivals = Rivals()
        self._haul: _Haul | None = None
        self._booked: list[JournalEntry] = []
        self._learned: list[Device] = []
        self._calibrated: list[Calibrated] = []
        self._failing = self._doubting = False
        now_ns = time.monotonic_ns()
        self._heard_ns = self._asked_ns = now_ns
        self._clock_entry = recovered.clock_entry
        self._trim_due_ns = now_ns + _TRIM_NS
        self._pruning = Pruning(now_ns, ledger.last_page(self._accountant.clock.host))
        self._snapshot = Snapshot(now_ns)
        self._health.saw(self._accountant.roster())

    @property
    def snapshot(self) -> Snapshot:
        """The daemon's state as of the last turn; any thread may ask, and is kept up to date."""
        self._asked_ns = self._time.monotonic_ns()
        return self._snapshot

    @property
    def _boot_id(self) -> str:
        return self._accountant.clock.boot_id

    @property
    def pace_s(self) -> float:
        """Seconds from turn to turn: longer where no engine reports and nobody looks."""
        now_ns = self._time.monotonic_ns()
        lively = now_ns - self._heard_ns <= _QUIET_NS or now_ns - self._asked_ns <= _WATCHED_NS
        return _TURN_S if lively or self._recorder.active else _QUIET_TURN_S

    def begin(self) -> None:
        """Open this run in the journal; raises UnreachableError."""
        now_ns = self._time.monotonic_ns()
        self._ledger.append(self._boot_id, [journal.clock_entry(self._clock_entry, now_ns)])

    def turn(self) -> None:
        """Take in, book and tidy; a failing ledger is told once and tried again next time.

        Raises LedgerLostError where the ledger is gone for good: what it had acknowledged is
        lost with it, and no more may be.
        """
        now_ns = self._time.monotonic_ns()
        try:
            self._take_in(now_ns)
            self._follow_wall_clock(now_ns)
            self._book(self._accountant.due(now_ns), now_ns)
            self._tidy(now_ns)
        except UnreachableError as error:
            self._failed(error)
            self._answering.fail(error)
        else:
            self._worked()
            self._answering.turn(now_ns)
        self._health.turned(self._time.monotonic_ns() - now_ns)
        self._health.folded(self._sources.folded)
        self._rivals.look(self._sources.reporters(), now_ns)
        self._snapshot = self._health.snapshot(
            now_ns, self._sources.engines(), self._sensors(), self._intake.depth
        )
        self._listeners.turned(self._snapshot)

    def finish(self) -> None:
        """Take in what is left and book up to now, a last partial window included.

        Raises as `turn`.
        """
        now_ns = self._time.monotonic_ns()
        try:
            self._take_in(now_ns)
            self._book(self._accountant.flush(now_ns), now_ns)
            self._keep_calibrated(now_ns, every=True)
            self._trim(now_ns)
            self._note(now_ns)
        except UnreachableError as error:
            self._failed(error)
            self._tell_unbooked(now_ns, error)
        self._scribe.finish()

    def _tell_unbooked(self, now_ns: int, error: UnreachableError) -> None:
        """Say from when on nothing is booked, and what of it is not even in the journal."""
        haul = self._haul or _Haul([], [], [])
        waiting = len(haul.evidence) + len(haul.deliveries) + len(haul.counts)
        booked_ns = self._accountant.booked_until_ns
        _LOG.error(
            event(
                "last_part_not_booked",
                seconds="all" if booked_ns is None else f"{(now_ns - booked_ns) / NS_PER_S:.1f}",
                not_journalled=waiting + self._intake.depth,
                reason=error,
                mend="start again: that books what is journalled, and counters tell the rest",
            )
        )

    # ------------------------------------------------------------------- taking in

    def _take_in(self, now_ns: int) -> None:
        if self._haul is not None:
            self._settle(self._haul, now_ns)
        self._haul = self._sort(self._intake.drain(), now_ns)
        self._settle(self._haul, now_ns)

    def _settle(self, haul: _Haul, now_ns: int) -> None:
        """Journal a haul, then take it into the books; raises UnreachableError before either."""
        lines = lines_of(haul.evidence)
        entries = [journal.trace_entry(lines, now_ns)] if lines else []
        entries += [journal.batch_entry(delivery, now_ns) for delivery in haul.deliveries]
        entries += [journal.count_entry(count, now_ns) for count in haul.counts]
        if entries:
            self._ledger.append(self._boot_id, entries)
            self._health.journalled(now_ns, sum(len(entry.body) for entry in entries))
        self._haul = None
        if haul.deliveries:
            self._heard_ns = now_ns
        self._absorb(haul)
        self._publish(haul)

    def _sort(self, items: Sequence[Item], now_ns: int) -> _Haul:
        haul = _Haul([], [], [])
        for item in items:
            if isinstance(item, Delivery):
                haul.evidence += item.introduced
                haul.deliveries.append(item)
            elif isinstance(item, Count):
                haul.counts.append(item)
            elif isinstance(item, Process):
                haul.evidence.append(self._sources.claim(item))
            else:
                haul.evidence.append(item)
        if overflowed := self._intake.take_overflowed():
            _LOG.error(event("queue_overflow", dropped=overflowed))
            haul.counts.append(Count(now_ns, dropped=overflowed))
        return haul

    def _absorb(self, haul: _Haul) -> None:
        observe = self._accountant.observe
        for item in haul.evidence:
            observe(item)
        for delivery in haul.deliveries:
            self._accountant.observe_steps(delivery.events.steps)
            for finish in delivery.events.finishes:
                observe(finish)
        self._health.reported([delivery.events for delivery in haul.deliveries])
        for count in haul.counts:
            self._accountant.count(count.t_ns, duplicates=count.duplicates, dropped=count.dropped)
        self._sources.commit(haul.deliveries, haul.counts)
        self._health.saw(haul.evidence)

    def _publish(self, haul: _Haul) -> None:
        if not self._recorder.active:
            return
        known = self._accountant.roster()
        transcript = self._recorder.transcript
        if reason := transcript.changed(known):
            self._recorder.end(reason)
        lines = transcript.lines_of(haul.evidence, known)
        lines += [encode(item) for delivery in haul.deliveries for item in delivery.events]
        self._recorder.publish(lines, lambda: self._preamble(known))

    def _preamble(self, known: Sequence[Evidence]) -> list[str]:
        """A recording's first lines: whose it is, who is known, and where the meters stand."""
        clock = self._accountant.clock
        header = TraceHeader(clock.host, clock.epoch_ns, self._zone, clock.boot_id)
        standing = self._accountant.standing()
        who = self._recorder.transcript.preamble(known)
        return [encode(header), *lines_of([*who, *standing])]

    # --------------------------------------------------------------------- booking

    def _book(self, pages: Sequence[Page], now_ns: int) -> None:
        for page in pages:
            written = self._scribe.write(page)
            line = self._accountant.booked(page)
            self._booked.append(journal.text_entry(Kind.BOOKED, line, now_ns))
            if learned := self._accountant.take_learned():
                self._booked.append(journal.trace_entry(lines_of(learned), now_ns))
                self._learned += learned
            self._health.booked(page)
            if written:
                self._listeners.booked(page)
        if self._booked:
            self._ledger.append(self._boot_id, self._booked)
            self._booked = []
        if self._learned:
            # After the journal: a crash between the two is made good when it is folded.
            clock = self._accountant.clock
            self._ledger.learn(clock.host, self._learned, clock.epoch_ns + now_ns)
            self._learned = []
        self._keep_calibrated(now_ns)

    def _keep_calibrated(self, now_ns: int, *, every: bool = False) -> None:
        """Likewise: a state knows which windows are in it, so that none is learned twice."""
        clock = self._accountant.clock
        self._calibrated += self._accountant.costs.take(clock.epoch_ns + now_ns, every=every)
        if self._calibrated:
            self._ledger.calibrate(clock.host, self._calibrated)
            self._calibrated = []

    def _follow_wall_clock(self, now_ns: int) -> None:
        """Where the wall clock was stepped, close the books under the old clock.

        One that cannot be right is not followed: its pages would be refused, and lost.
        """
        clock, epoch_ns = self._accountant.clock, self._time.epoch_ns()
        if not stepped(clock, epoch_ns):
            self._doubting = False
            return
        step_s = (epoch_ns - clock.epoch_ns) / NS_PER_S
        if not believable(epoch_ns + now_ns, self._ledger.kept_ns()):
            if not self._doubting:
                self._doubting = True
                mend = "set it; the books go on by the clock before. Is it right: a new ledger.path"
                _LOG.error(event("wall_clock_wrong", step_s=f"{step_s:.3f}", mend=mend))
            return
        self._doubting = False
        self._book(self._accountant.flush(now_ns), now_ns)
        entry = ClockEntry(replace(clock, epoch_ns=epoch_ns), now_ns, clock)
        self._ledger.append(self._boot_id, [journal.clock_entry(entry, now_ns)])
        self._accountant.re_anchor(entry.clock, now_ns)
        self._clock_entry = entry
        self._recorder.end("the wall clock was stepped: record again")
        self._pruning.stepped(now_ns, clock.epoch_ns, epoch_ns)
        _LOG.warning(event("wall_clock_stepped", step_s=f"{step_s:.3f}"))

    # ---------------------------------------------------------------------- tidying

    def _tidy(self, now_ns: int) -> None:
        if now_ns >= self._trim_due_ns:
            self._trim(now_ns)
            self._trim_due_ns = now_ns + _TRIM_NS
        # A bite each turn until nothing is left, so that no turn takes long.
        if now_ns >= self._pruning.due_ns:
            today_ns = self._pruning.today_ns(now_ns, self._accountant.clock.epoch_ns + now_ns)
            if not self._ledger.prune(self.retention, today_ns):
                self._pruning.pruned(now_ns)
        if self._notes.due(now_ns):
            self._note(now_ns)

    def _note(self, now_ns: int) -> None:
        """Put into the ledger what the daemon says of itself."""
        t_ns = self._accountant.clock.epoch_ns + now_ns
        self._ledger.note(self._notes.news(self_metrics(t_ns, self._snapshot, own_cost())))

    def _trim(self, now_ns: int) -> None:
        """Forget old entries of the journal, after saying again what they alone told."""
        self._sources.forget_silent(now_ns)
        entries = [
            journal.clock_entry(self._clock_entry, now_ns),
            journal.text_entry(Kind.SOURCES, self._sources.dump(), now_ns),
        ]
        if roster := lines_of(self._accountant.roster()):
            entries.append(journal.trace_entry(roster, now_ns))
        self._ledger.append(self._boot_id, entries)
        self._ledger.trim(self._boot_id, now_ns - self._kept_ns)
        self._health.trimmed(now_ns - self._kept_ns)

    def _failed(self, error: UnreachableError) -> None:
        if isinstance(error, LedgerLostError):
            _LOG.error(event("ledger_lost", reason=error))
            raise error
        if not self._failing:
            self._failing = True
            _LOG.error(event("ledger_failing", reason=error))

    def _worked(self) -> None:
        if self._failing:
            self._failing = False
            _LOG.warning(event("ledger_works_again"))
