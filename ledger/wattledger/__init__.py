"""Measured joules and grams of CO2e per LLM request, phase, job and host.

The library behind the daemon and the command line, and what a notebook uses:

    >>> import wattledger
    >>> ledger = wattledger.open_ledger("sqlite:/var/lib/wattledger/ledger.db")
    >>> day_ns = 86_400 * wattledger.records.NS_PER_S
    >>> end_ns = 1_790_000_000 * wattledger.records.NS_PER_S
    >>> found = ledger.slices([end_ns - day_ns, end_ns], wattledger.Filters(job=("4711",)))
    >>> sum(piece.amounts.energy_uj for piece in found.slices) / wattledger.records.UJ_PER_J

Times are UTC nanoseconds, energies integer microjoules, windows half-open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wattledger import records
    from wattledger.store import open_ledger
    from wattledger.store.protocol import Filters

__version__ = "0.1.0"

__all__ = ["Filters", "__version__", "open_ledger", "records"]

_HOMES = {"Filters": "wattledger.store.protocol", "open_ledger": "wattledger.store"}


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for: engines import this package too."""
    from importlib import import_module

    if name == "records":
        return import_module("wattledger.records")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
