"""Answering `books`: what was metered against what was posted."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from operator import sub

from wattledger.apportion import between
from wattledger.store.names import Lookup
from wattledger.store.protocol import Books, DeviceBook, MeteredSlice
from wattledger.store.restate import read_kept
from wattledger.store.sqlite_read import Tally, rows_of, sums_of, tally_of
from wattledger.store.tiers import (
    CHARGED,
    METERED,
    POSTING,
    Plan,
    Values,
    clusters,
    plan,
    runs,
    spread,
)

_NOTHING: Values = (0, 0, 0, 0, 0)


def books(conn: sqlite3.Connection, start_ns: int, end_ns: int) -> Books:
    """As `Store.books`, ordered by host and device; `node` meters are among them.

    Posted is cut as slices are; metered is posted plus the difference between the two, cut
    where it was stored. So an edge never makes an imbalance, and a real one never hides.
    """
    laid = plan([start_ns, end_ns], read_kept(conn))
    posted: dict[int, tuple[int, int]] = {}
    for (_, ids), values in tally_of(conn, POSTING, laid, lambda _: True).sums.items():
        energy_uj, device_ns = posted.get(ids[0], (0, 0))
        posted[ids[0]] = (energy_uj + values[0] + values[1], device_ns + values[2])
    excess = _excess(conn, laid)
    names = Lookup(conn)
    found = []
    for at in posted.keys() | excess.keys():
        energy_uj, device_ns = posted.get(at, (0, 0))
        more = excess.get(at, _NOTHING)
        host, device = names.device(at)
        found.append(
            DeviceBook(
                host,
                device,
                metered_uj=energy_uj + more[0],
                posted_uj=energy_uj,
                metered_ns=device_ns + more[1],
                posted_ns=device_ns,
                gaps=more[2],
                resets=more[3],
                wraps=more[4],
            )
        )
    found.sort(key=lambda book: (book.host, book.device.device, book.device.model or ""))
    return Books(tuple(found), *_events(conn, start_ns, end_ns))


def metered(conn: sqlite3.Connection, edges_ns: Sequence[int]) -> list[MeteredSlice]:
    """As `MeterSeries.metered`."""
    tally = tally_of(conn, METERED, plan(edges_ns, read_kept(conn)), lambda _: True)
    names = Lookup(conn)
    found: list[MeteredSlice] = []
    for (at, ids), (energy_uj, device_ns, *_) in sorted(tally.sums.items()):
        host, device = names.device(ids[0])
        found.append(
            MeteredSlice(edges_ns[at], edges_ns[at + 1], host, device, energy_uj, device_ns)
        )
    return found


def _excess(conn: sqlite3.Connection, laid: Plan) -> dict[int, Values]:
    """Metered less posted per device: energy_uj, device_ns; and gaps, resets, wraps."""
    tally = Tally()
    for parts, text in laid.sums():
        for part in parts:
            for device, *values in sums_of(conn, METERED, text, part):
                tally.add(0, (device,), tuple(values))
            for device, *values in sums_of(conn, CHARGED, text, part):
                tally.add(0, (device,), tuple(map(sub, _NOTHING, values)))
    for source in laid.sources():
        for start_ns, end_ns, parts in runs(source.parts, source.unit_ns):
            rows = [
                row._replace(values=tuple(map(sub, _NOTHING, row.values)))
                for row in rows_of(conn, CHARGED, source, start_ns, end_ns)
            ]
            rows += rows_of(conn, METERED, source, start_ns, end_ns)
            tally.add_pieces(spread(clusters(rows), parts), lambda _: True)
    return {ids[0]: values for (_, ids), values in tally.sums.items()}


def _events(conn: sqlite3.Connection, start_ns: int, end_ns: int) -> tuple[int, int, int]:
    late = duplicates = dropped = 0
    rows = conn.execute(
        """SELECT start_ns, end_ns, late, duplicates, dropped FROM event
        WHERE start_ns < ? AND end_ns > ?""",
        (end_ns, start_ns),
    )
    for first_ns, last_ns, *counts in rows:
        cut = [between(count, first_ns, last_ns, start_ns, end_ns) for count in counts]
        late, duplicates, dropped = late + cut[0], duplicates + cut[1], dropped + cut[2]
    return late, duplicates, dropped
