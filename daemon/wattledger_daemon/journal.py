"""What the daemon writes into its journal, and how it reads it back.

clock    the clock from here on, JSON; the first entry of every run
trace    evidence, one line of the trace format each
batch    an engine's batch as it came, a serialized `collect.Batch`
count    engine events seen twice or dropped, JSON, with their source's total
booked   a page is on disk, `Accountant.booked`
sources  how far each source has come, `Sources.dump`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from wattledger.records import Clock, Evidence
from wattledger.store.protocol import JournalEntry
from wattledger.trace import encode
from wattledger_daemon.intake import Count, Delivery


class Kind(StrEnum):
    """What an entry's body holds."""

    CLOCK = "clock"
    TRACE = "trace"
    BATCH = "batch"
    COUNT = "count"
    BOOKED = "booked"
    SOURCES = "sources"


@dataclass(frozen=True, slots=True)
class ClockEntry:
    """The clock that holds from `since_ns` on, and the one before it.

    The predecessor lets the evidence of a trimmed journal be read under the clock it came by.
    """

    clock: Clock
    since_ns: int
    previous: Clock

    def clock_at(self, t_ns: int) -> Clock:
        """The clock that held at `t_ns`."""
        return self.clock if t_ns >= self.since_ns else self.previous


def clock_entry(entry: ClockEntry, t_ns: int) -> JournalEntry:
    """A clock for the journal."""
    return JournalEntry(Kind.CLOCK, json.dumps(asdict(entry)).encode(), t_ns)


def read_clock(body: bytes) -> ClockEntry:
    """A clock from the journal; raises ValueError, LookupError or TypeError where it is none."""
    line = json.loads(body)
    return ClockEntry(Clock(**line["clock"]), line["since_ns"], Clock(**line["previous"]))


def trace_entry(lines: Sequence[str], t_ns: int) -> JournalEntry:
    """Lines of the trace format for the journal."""
    return JournalEntry(Kind.TRACE, "\n".join(lines).encode(), t_ns)


def batch_entry(delivery: Delivery, t_ns: int) -> JournalEntry:
    """An engine's batch for the journal."""
    return JournalEntry(Kind.BATCH, delivery.raw, t_ns, delivery.sequence)


def count_entry(count: Count, t_ns: int) -> JournalEntry:
    """Counted events for the journal."""
    return JournalEntry(Kind.COUNT, json.dumps(asdict(count)).encode(), t_ns)


def read_count(body: bytes) -> Count:
    """Counted events from the journal; raises as `read_clock`."""
    return Count(**json.loads(body))


def text_entry(kind: Kind, text: str, t_ns: int) -> JournalEntry:
    """A line of text for the journal."""
    return JournalEntry(kind, text.encode(), t_ns)


def lines_of(evidence: Sequence[Evidence]) -> list[str]:
    """Evidence in the trace format."""
    return [encode(item) for item in evidence]
