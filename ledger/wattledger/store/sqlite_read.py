"""Answering `slices` from the tiers; the caller holds the read transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import add

from wattledger.records import Account, Amounts, DeviceKind
from wattledger.store.names import Lookup
from wattledger.store.protocol import Filters, Slice, SliceSet, glob_match
from wattledger.store.restate import read_kept
from wattledger.store.tiers import (
    MINUTE_NS,
    POSTING,
    REQUEST,
    Family,
    Ids,
    Part,
    Piece,
    Plan,
    Row,
    Source,
    Values,
    floor_to,
    plan,
    runs,
    spread,
    sql,
)

Keep = Callable[[Ids], bool]


@dataclass(slots=True)
class Tally:
    """Sums per interval and ids; `cut` tells that a row was cut by an edge."""

    sums: dict[tuple[int, Ids], Values] = field(default_factory=dict)
    cut: bool = False

    def add(self, interval: int, ids: Ids, values: Values) -> None:
        """Add to one sum."""
        key = (interval, ids)
        known = self.sums.get(key)
        self.sums[key] = values if known is None else tuple(map(add, known, values))

    def add_pieces(self, pieces: Iterable[Piece], keep: Keep) -> None:
        """Add what `spread` cut."""
        for piece in pieces:
            if keep(piece.ids):
                self.add(piece.interval, piece.ids, piece.values)
                self.cut = self.cut or piece.cut


@dataclass(slots=True)
class Selection:
    """Which device and account ids pass the filters; a `node` meter never does."""

    filters: Filters
    names: Lookup
    _devices: dict[int, bool] = field(default_factory=dict)
    _accounts: dict[int, bool] = field(default_factory=dict)

    def keep(self, ids: Ids) -> bool:
        """Whether a row of (device, account, ...) is asked for."""
        device, account = ids[0], ids[1]
        if device not in self._devices:
            host, found = self.names.device(device)
            self._devices[device] = found.kind is not DeviceKind.NODE and glob_match(
                self.filters.host, host
            )
        if account not in self._accounts:
            self._accounts[account] = self.filters.match_account(self.names.account(account))
        return self._devices[device] and self._accounts[account]


def slices(conn: sqlite3.Connection, edges_ns: Sequence[int], filters: Filters) -> SliceSet:
    """As `Store.slices`; ordered by interval, then by when device and account became known."""
    names = Lookup(conn)
    keep = Selection(filters, names).keep
    if filters.request:
        tally = _tally_requests(conn, edges_ns, filters, names, keep)
    else:
        tally = tally_of(conn, POSTING, plan(edges_ns, read_kept(conn)), keep)
    intervals = list(pairwise(edges_ns))
    found: list[Slice] = []
    for (interval, ids), values in sorted(tally.sums.items()):
        if any(values):
            start_ns, end_ns = intervals[interval]
            host, device = names.device(ids[0])
            account: Account = names.account(ids[1])
            request = names.request(ids[2]) if len(ids) > 2 else None
            found.append(Slice(start_ns, end_ns, host, device, account, Amounts(*values), request))
    return SliceSet(tuple(found), tally.cut)


def tally_of(conn: sqlite3.Connection, family: Family, laid: Plan, keep: Keep) -> Tally:
    """Sum the rows of a family along a plan."""
    tally = Tally()
    width = len(family.dims)
    for parts, text in laid.sums():
        for part in parts:
            for row in sums_of(conn, family, text, part):
                if keep(row[:width]):
                    tally.add(part.interval, row[:width], row[width:])
    for source in laid.sources():
        for start_ns, end_ns, parts in runs(source.parts, source.unit_ns):
            rows = rows_of(conn, family, source, start_ns, end_ns)
            tally.add_pieces(spread(rows, parts), keep)
    return tally


def sums_of(
    conn: sqlite3.Connection, family: Family, text: str, part: Part
) -> list[tuple[int, ...]]:
    """Ids and sums of a part that rollups answer whole; exact beyond 64 bits too.

    SQLite refuses such a sum ("integer overflow"): it is then taken in halves of 32 bits.
    Source: https://www.sqlite.org/lang_aggfunc.html#sumunc
    """
    window = (part.start_ns, part.end_ns)
    try:
        return conn.execute(sql(family, text), window).fetchall()
    except sqlite3.OperationalError as error:
        if "integer overflow" not in str(error):
            raise
    width = len(family.dims)
    halves = conn.execute(sql(family, text.replace("$sums", "$halves")), window)
    return [
        (
            *row[:width],
            *(
                (high << 32) + low
                for high, low in zip(row[width::2], row[width + 1 :: 2], strict=True)
            ),
        )
        for row in halves
    ]


def rows_of(
    conn: sqlite3.Connection, family: Family, source: Source, start_ns: int, end_ns: int
) -> Iterator[Row]:
    """Stored rows of one source between two multiples of its unit."""
    width = 3 + len(family.dims)
    for row in conn.execute(sql(family, source.text), (start_ns, end_ns)):
        yield Row(row[0], row[1], row[2], row[3:width], row[width:])


def _tally_requests(
    conn: sqlite3.Connection, edges_ns: Sequence[int], filters: Filters, names: Lookup, keep: Keep
) -> Tally:
    """Sum the copies of the requests asked for; each request's rows are few, so all are read."""
    parts = [Part(at, *edges) for at, edges in enumerate(pairwise(edges_ns))]
    tally = Tally()
    if not parts:
        return tally
    text = sql(
        REQUEST,
        "SELECT start_ns, end_ns, clock, $dims, $amounts FROM request_raw WHERE request = ?",
    )
    for request in _requests_of(conn, filters.request, names, edges_ns[0], edges_ns[-1]):
        rows = (
            Row(row[0], row[1], row[2], row[3:6], row[6:]) for row in conn.execute(text, (request,))
        )
        tally.add_pieces(spread(rows, parts), keep)
    return tally


def _requests_of(
    conn: sqlite3.Connection, globs: tuple[str, ...], names: Lookup, start_ns: int, end_ns: int
) -> list[int]:
    """Ids of the requests in a window whose own id matches any of `globs`."""
    if not any(set(glob) & set("*?[") for glob in globs):
        found = [
            conn.execute("SELECT id FROM request WHERE request = ?", (glob,)).fetchall()
            for glob in set(globs)
        ]
        return sorted(row[0] for rows in found for row in rows)
    rows = conn.execute(
        """SELECT request FROM request_raw WHERE start_ns >= ? AND start_ns < ?
        UNION SELECT request FROM request_raw WHERE span > 0 AND span = 1 AND end_ns > ?
        UNION SELECT request FROM request_raw WHERE span > 0 AND span = 2 AND end_ns > ?""",
        (floor_to(start_ns, MINUTE_NS), end_ns, start_ns, start_ns),
    ).fetchall()
    return [row[0] for row in rows if glob_match(globs, names.request(row[0]))]
