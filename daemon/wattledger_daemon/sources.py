"""Who reports to this daemon, and how far each has come.

Shared by the gRPC threads, which take batches in, and the pipeline thread, which commits them.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from wattledger.records import NS_PER_S, Engine, Evidence, Process
from wattledger_collectors.sensors.procfs import process_ticks
from wattledger_daemon.batches import MAX_AGE_NS, MAX_TEXT, Events, engine_of, events_of
from wattledger_daemon.health import EngineHealth
from wattledger_daemon.intake import Count, Delivery, Intake
from wattledger_daemon.logs import event
from wattledger_daemon.tenants import MOST_A_DAY, OTHERS, TenantRule, Tenants
from wattledger_proto.v1 import collect_pb2

_LOG = logging.getLogger(__name__)
MAX_SOURCES = 1024
MAX_STRANGERS = 256
FORGETTABLE_NS = 600 * NS_PER_S
"""A reporter calls every few seconds as long as its process lives: one silent for so long is gone,
and may give its place to another. Should it come back after all, it goes on where it was, but
what it had dropped before is counted again."""

_OTHERS = "(others)"
_IDLE_NS = 60 * NS_PER_S
_GAP_NS = 10 * NS_PER_S


class Told(NamedTuple):
    """A batch's events, and the message that it came as."""

    events: Events
    message: bytes


class BusyError(Exception):
    """The daemon cannot take a batch now; its source keeps it and tries again."""


@dataclass(slots=True)
class _Source:
    received: int = 0
    committed: int = 0
    dropped_events: int = 0
    dropped_committed: int = 0
    duplicates: int = 0
    refused: int = 0
    gap_since_ns: int | None = None
    last_ns: int = 0
    last_events_ns: int | None = None
    registration: bytes = b""
    processes: dict[int, Process] = field(default_factory=dict)
    health: EngineHealth | None = None


class Sources:
    """Every reporting source of this boot, by name; safe from any thread."""

    def __init__(
        self,
        intake: Intake,
        track: Callable[[Iterable[int]], None],
        proc_root: Path = Path("/proc"),
        tenants: Tenants | None = None,
    ) -> None:
        self._intake = intake
        self._track = track
        self._proc_root = proc_root
        self._tenants = tenants or Tenants()
        self._folding = False
        self._lock = threading.Lock()
        self._sources: dict[str, _Source] = {}
        # Refused batches of those who never sent a good one, by the name they gave.
        self._strangers: dict[str, int] = {}
        self._full = False

    def take(self, batch: collect_pb2.Batch, now_ns: int, told: Told | None = None) -> int:
        """Queue a checked batch unless it was seen before; returns the committed sequence.

        `told` is what it says, where that was read already.
        Sequence 0 asks about progress alone. Raises BusyError where the queue or the number of
        sources is at its bound, or an earlier batch has yet to come.
        """
        with self._lock:
            source = self._source(batch.source, now_ns)
            self._check_gap(source, batch, now_ns)
            introduced = self._introduced(source, batch, now_ns)
            if batch.sequence > source.received:
                told = told or Told(events_of(batch), batch.SerializeToString())
                self._deliver(source, batch, introduced, told, now_ns)
            else:
                self._acknowledge(source, batch, introduced, now_ns)
            self._note(source, batch, now_ns)
            return source.committed

    def refuse(self, name: str, why: str) -> None:
        """Count a malformed batch; told at the first one of each source.

        A name that never sent a good batch takes no place among the sources; beyond so many,
        such names are counted and told as one.
        """
        name = name[:MAX_TEXT]
        with self._lock:
            source = self._sources.get(name)
            if source is not None:
                source.refused += 1
                first = source.refused == 1
            else:
                if name not in self._strangers and len(self._strangers) >= MAX_STRANGERS:
                    name = _OTHERS
                first = name not in self._strangers
                self._strangers[name] = self._strangers.get(name, 0) + 1
        if first:
            _LOG.warning(event("batch_refused", source=name, reason=why))

    def commit(self, deliveries: Iterable[Delivery], counts: Iterable[Count] = ()) -> None:
        """Note that these are on disk: from now on the batches are acknowledged."""
        with self._lock:
            for count in counts:
                source = self._sources.get(count.source)
                if source is not None:
                    source.dropped_committed = max(source.dropped_committed, count.dropped_total)
            for delivery in deliveries:
                source = self._sources.get(delivery.source)
                if source is not None:
                    source.committed = max(source.committed, delivery.sequence)

    def set_tenant_rules(self, rules: Iterable[TenantRule]) -> None:
        """Use other rules for whose requests are, of requests that begin from now on."""
        with self._lock:
            self._tenants.set_rules(rules)

    @property
    def folded(self) -> int:
        """Requests whose tenant was one too many of a day, so that they stand with the others."""
        return self._tenants.folded

    def claim(self, process: Process) -> Process:
        """A process as found on the host, with what its own engine says of it on top."""
        with self._lock:
            for source in self._sources.values():
                told = source.processes.get(process.pid)
                if told is not None and told.start in (0, process.start):
                    return replace(
                        process,
                        workload=told.workload or process.workload,
                        job=told.job or process.job,
                    )
        return process

    def engines(self) -> list[EngineHealth]:
        """Every engine that has reported, by name."""
        with self._lock:
            found = [source.health for source in self._sources.values() if source.health]
        found.sort(key=lambda health: (health.engine, health.last_ns))
        return [_merged(list(told)) for _, told in groupby(found, lambda health: health.engine)]

    def reporters(self) -> list[tuple[str, EngineHealth]]:
        """What each source says of its engine, with the source's name."""
        with self._lock:
            return [(name, s.health) for name, s in self._sources.items() if s.health]

    def forget_silent(self, now_ns: int) -> None:
        """Forget sources silent for so long that all they could still say would be refused."""
        with self._lock:
            for name, source in list(self._sources.items()):
                if source.last_ns < now_ns - MAX_AGE_NS:
                    del self._sources[name]
            self._full = self._full and len(self._sources) >= MAX_SOURCES

    # ------------------------------------------------------------------- recovery

    def dump(self) -> str:
        """What a restarted daemon must know of each source, as one line of JSON."""
        with self._lock:
            return json.dumps(
                {
                    name: [source.committed, source.dropped_committed, source.last_ns]
                    for name, source in self._sources.items()
                    if source.committed or source.dropped_committed
                }
            )

    def load(self, dumped: str) -> None:
        """Fold back what `dump` gave."""
        for name, (committed, dropped_events, last_ns) in json.loads(dumped).items():
            self.restore(name, committed, dropped_events, last_ns)

    def restore(self, name: str, sequence: int, dropped_events: int, last_ns: int) -> None:
        """Note that a source's batches up to `sequence`, and so many drops, are on disk."""
        with self._lock:
            source = self._sources.setdefault(name, _Source())
            source.received = source.committed = max(source.committed, sequence)
            source.dropped_events = max(source.dropped_events, dropped_events)
            source.dropped_committed = source.dropped_events
            source.last_ns = max(source.last_ns, last_ns)

    # -------------------------------------------------------------------- inside

    def _source(self, name: str, now_ns: int) -> _Source:
        source = self._sources.get(name)
        if source is None:
            if len(self._sources) >= MAX_SOURCES:
                self._make_room(now_ns)
            source = self._sources[name] = _Source(refused=self._strangers.pop(name, 0))
        source.last_ns = now_ns
        return source

    def _make_room(self, now_ns: int) -> None:
        """Forget whoever has been silent for longest; raises BusyError where nobody has."""
        name, source = min(self._sources.items(), key=lambda item: item[1].last_ns)
        if source.last_ns > now_ns - FORGETTABLE_NS or source.committed < source.received:
            if not self._full:
                self._full = True
                _LOG.error(event("sources_full", sources=len(self._sources), refused="any other"))
            raise BusyError(f"{MAX_SOURCES} sources report already")
        del self._sources[name]

    def _introduced(
        self, source: _Source, batch: collect_pb2.Batch, now_ns: int
    ) -> tuple[Evidence, ...]:
        """What the registration says, where it is news or the books may have forgotten it."""
        registration = batch.engine.SerializeToString(deterministic=True)
        has_events = bool(batch.steps or batch.finishes)
        idle = source.last_events_ns is None or now_ns - source.last_events_ns > _IDLE_NS
        if registration == source.registration and not (has_events and idle):
            return ()
        engine = engine_of(batch.engine)
        workload, job = batch.engine.workload or None, batch.engine.job or None
        source.processes = {
            pid: Process(pid, self._start_of(pid), workload, job) for pid in engine.pids
        }
        source.registration = registration
        engine = self._united(engine, source, now_ns)
        self._track(engine.pids)
        return (*source.processes.values(), engine)

    def _united(self, engine: Engine, source: _Source, now_ns: int) -> Engine:
        """Several processes may report for one engine (vLLM's API servers), each as it sees it.

        Its processes are all that any of them names, as long as they run and it reports.
        """
        told: dict[int, int] = {}
        for other in self._sources.values():
            name = other.health.engine if other.health else None
            if other is not source and name == engine.engine and now_ns - other.last_ns < _IDLE_NS:
                told |= {process.pid: process.start for process in other.processes.values()}
        more = {pid: start for pid, start in told.items() if start and pid not in engine.pids}
        alive = [pid for pid, start in more.items() if start == self._start_of(pid)]
        return replace(engine, pids=(*engine.pids, *sorted(alive))) if alive else engine

    def _start_of(self, pid: int) -> int:
        """The start time that tells a process from a later one of its pid; 0 for one gone."""
        try:
            return process_ticks((self._proc_root / str(pid) / "stat").read_bytes()).start
        except (OSError, ValueError, IndexError):
            return 0

    def _deliver(
        self,
        source: _Source,
        batch: collect_pb2.Batch,
        introduced: tuple[Evidence, ...],
        told: Told,
        now_ns: int,
    ) -> None:
        events, message = told
        name, names = batch.engine.engine, events.steps.names
        owners = self._tenants.news(
            (name, batch.engine.model),
            names,
            batch.request_tenants,
            now_ns,
            source=batch.source,
            begins=events.begins,
        )
        if self._tenants.folded and not self._folding:
            self._folding = True
            _LOG.warning(event("tenants_folded", most_a_day=MOST_A_DAY, into=OTHERS))
        known = (*introduced, *owners)
        delivery = Delivery(batch.source, batch.sequence, message, events, known)
        if not self._intake.deliver(delivery):
            # What the registration said went down with the batch: say it again next time.
            source.registration = b""
            self._tenants.forget(name, [owner.request for owner in owners])
            raise BusyError("the queue is full")
        for finish in events.finishes:
            self._tenants.ended(name, [finish.request], finish.t_ns)
        source.received = batch.sequence
        if events:
            source.last_events_ns = now_ns

    def _check_gap(self, source: _Source, batch: collect_pb2.Batch, now_ns: int) -> None:
        """Wait a while for the batches that lie before this one.

        A source that found another daemon than it thought sends them when asked again. One that
        no longer has them (a ledger put back from a copy, say) must not be held up for ever.
        """
        if not source.received or batch.sequence <= source.received:
            return
        if batch.sequence == source.received + 1:
            source.gap_since_ns = None
            return
        if source.gap_since_ns is None:
            source.gap_since_ns = now_ns
        if now_ns - source.gap_since_ns < _GAP_NS:
            raise BusyError(f"batch {source.received + 1} of {batch.source} comes first")
        source.gap_since_ns = None
        missing = {"after": source.received, "before": batch.sequence}
        _LOG.warning(event("batches_missing", source=batch.source, **missing))

    def _acknowledge(
        self,
        source: _Source,
        batch: collect_pb2.Batch,
        introduced: tuple[Evidence, ...],
        now_ns: int,
    ) -> None:
        """Take nothing of a question or a duplicate but who is asking."""
        evidence: list[Evidence | Count] = list(introduced)
        events = len(batch.steps) + len(batch.finishes)
        if events:
            source.duplicates += events
            evidence.append(Count(now_ns, duplicates=events))
        if evidence and not self._intake.offer(evidence):
            source.registration = b""

    def _note(self, source: _Source, batch: collect_pb2.Batch, now_ns: int) -> None:
        dropped = batch.dropped_events - source.dropped_events
        if dropped > 0:
            total = batch.dropped_events
            count = Count(now_ns, dropped=dropped, source=batch.source, dropped_total=total)
            if self._intake.offer([count]):
                source.dropped_events = total
        source.health = EngineHealth(
            batch.engine.engine,
            batch.engine.kind,
            batch.engine.model,
            tuple(batch.engine.pids),
            batch.totals.prefill_tokens,
            batch.totals.decode_tokens,
            batch.totals.finishes,
            source.dropped_events,
            source.duplicates,
            source.refused,
            now_ns,
            batch.engine.coarse,
        )


def _merged(told: Sequence[EngineHealth]) -> EngineHealth:
    """One engine of which several processes report (vLLM's API servers), the latest one last."""
    return replace(
        told[-1],
        pids=tuple(sorted({pid for health in told for pid in health.pids})),
        prefill_tokens=sum(health.prefill_tokens for health in told),
        decode_tokens=sum(health.decode_tokens for health in told),
        finishes=sum(health.finishes for health in told),
        dropped_events=sum(health.dropped_events for health in told),
        duplicates=sum(health.duplicates for health in told),
        refused=sum(health.refused for health in told),
        coarse=any(health.coarse for health in told),
    )
