"""What a daemon has booked, read from its ledger as a statement would."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wattledger.records import Amounts, FinishedRequest
from wattledger.store import open_ledger
from wattledger.store.sqlite import SqliteLedger

FOREVER_NS = 1 << 62


@dataclass(frozen=True, slots=True)
class Booked:
    """Tokens of all postings."""

    prefill_tokens: int
    cached_tokens: int
    decode_tokens: int


def finishes(ledger: Path) -> list[FinishedRequest]:
    """Every request that was told as finished."""
    with SqliteLedger(ledger, writable=False, create=False) as store:
        return [energy.finish for energy in store.requests(0, FOREVER_NS)]


def posted_tokens(ledger: Path) -> Booked:
    """Sums over every posting."""
    amounts = posted(ledger)
    return Booked(
        prefill_tokens=sum(a.prefill_tokens for a in amounts),
        cached_tokens=sum(a.cached_tokens for a in amounts),
        decode_tokens=sum(a.decode_tokens for a in amounts),
    )


def posted_requests(ledger: Path) -> int:
    """Requests that ended, those of nobody in particular too."""
    return sum(amounts.requests for amounts in posted(ledger))


def posted(ledger: Path) -> list[Amounts]:
    """What each account was given."""
    store = open_ledger(f"sqlite:{ledger}")
    try:
        return [piece.amounts for piece in store.slices([0, FOREVER_NS]).slices]
    finally:
        store.close()


def assert_balanced(ledger: Path, dropped_events: int = 0) -> None:
    """Metered equals posted for each device, and so many events are told as dropped."""
    with SqliteLedger(ledger, writable=False, create=False) as store:
        assert store.check() == []
        books = store.books(0, FOREVER_NS)
    assert books.devices
    assert [(b.metered_uj, b.metered_ns) for b in books.devices] == [
        (b.posted_uj, b.posted_ns) for b in books.devices
    ]
    assert books.dropped == dropped_events
