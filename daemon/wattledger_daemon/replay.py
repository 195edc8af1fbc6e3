"""A recorded trace through the daemon's own heart into a ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wattledger.records import (
    NS_PER_S,
    Clock,
    CounterReading,
    Device,
    Engine,
    Evidence,
    Finish,
    Page,
    PinnedCost,
    PowerReading,
    Process,
    RequestOwner,
    Step,
    UseRecord,
)
from wattledger.store import book_into
from wattledger.trace import Trace, encode, read_trace
from wattledger_daemon.heart.accountant import Accountant, AccountantSettings


@dataclass(frozen=True, slots=True)
class ReplaySummary:
    """What a replay did; `changed` counts pages that said something new to the ledger."""

    lines: int
    pages: int
    changed: int
    start_ns: int | None
    end_ns: int | None


def replay_file(path: Path, ledger_url: str, window_s: int = 5) -> ReplaySummary:
    """Book a trace file into a ledger, whole or not at all; a second time changes nothing.

    Raises InputError for a bad trace before the ledger is touched, UnreachableError for a
    ledger that cannot be written.
    """
    trace = read_trace(path)
    pages = replay(trace, window_s)
    with book_into(ledger_url) as store:
        changed = store.book_all(pages)
    return ReplaySummary(
        lines=trace.lines,
        pages=len(pages),
        changed=changed,
        start_ns=pages[0].start_ns if pages else None,
        end_ns=pages[-1].end_ns if pages else None,
    )


def replay(trace: Trace, window_s: int = 5) -> list[Page]:
    """The pages of a trace: all evidence in order of time first, then every window."""
    header = trace.header
    clock = Clock(header.host, header.boot_id, header.epoch_ns)
    settings = AccountantSettings(window_ns=window_s * NS_PER_S, horizon_ns=None)
    accountant = Accountant(clock, settings)
    for record in sorted(trace.evidence, key=_order):
        accountant.observe(record)
    if accountant.latest_ns is None:
        return []
    return accountant.flush(accountant.latest_ns)


def _order(record: Evidence) -> tuple[int, int, int, str]:
    """Who and what first, then by time; a power reading before a counter it may help to mend.

    Ties go by what the lines say, so that their order in the file never matters.
    """
    match record:
        case CounterReading(t_ns=t_ns, energy_uj=energy_uj):
            return 2, t_ns, 1, f"{energy_uj:020}"
        case PowerReading(t_ns=t_ns, power_uw=power_uw):
            return 2, t_ns, 0, f"{power_uw:020}"
        case Process(start=start):
            return 0, start, 0, encode(record)
        case Device():
            return 0, 0, 0, encode(record)
        case Engine() | PinnedCost() | RequestOwner():
            return 1, 0, 0, encode(record)
        case Finish(t_ns=t_ns):
            return 2, t_ns, 2, encode(record)
        case Step(start_ns=start_ns) | UseRecord(start_ns=start_ns):
            return 2, start_ns, 2, encode(record)
