"""A second process on a ledger: `write PATH`, or `read PATH` as a user without rights.

`write` books pages for ever, each once more with a late change, and prints the end of each
page when it is booked. `read` prints the energy of all slices, or the error.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fakes.pages import CLOCK, T0_NS, steady_page
from wattledger.errors import UnreachableError
from wattledger.records import NS_PER_S
from wattledger.store import open_ledger

FAR_NS = T0_NS + 10**6 * NS_PER_S
NOBODY = 65534


def write(path: Path) -> None:
    with open_ledger(f"sqlite:{path}", create=True) as ledger:
        last = ledger.last_page(CLOCK.host)
        start_ns = last[1] if last else T0_NS
        while True:
            ledger.book(steady_page(start_ns, seed=1))
            page = steady_page(start_ns, seed=2)
            ledger.book(page)
            sys.stdout.write(f"{page.end_ns}\n")
            sys.stdout.flush()
            start_ns = page.end_ns


def read(path: Path) -> None:
    if os.geteuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    try:
        with open_ledger(f"sqlite:{path}") as ledger:
            found = ledger.slices([T0_NS, FAR_NS]).slices
    except UnreachableError as error:
        sys.stdout.write(f"{error}\n")
    else:
        sys.stdout.write(f"{sum(piece.amounts.energy_uj for piece in found)}\n")


if __name__ == "__main__":
    # Whatever `read` needs must be loaded while it may still be read.
    import wattledger.store.sqlite  # noqa: F401 - for its side effect, see above

    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
