"""What a ledger must answer, told by a list of rows and `apportion.between` alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from itertools import pairwise
from operator import add

from wattledger.apportion import between
from wattledger.records import Account, Amounts, Page, Posting
from wattledger.store.protocol import ImportedEntry, Slice

Sums = dict[tuple[int, int, str, str, Account], tuple[int, ...]]


@dataclass(slots=True)
class Reference:
    """Postings by (clock or None for imports, host) and their own key."""

    rows: dict[tuple[object, ...], tuple[str, Posting]] = field(default_factory=dict)

    def book(self, page: Page) -> None:
        names = {device.device for device in page.devices}
        self.rows = {
            key: (host, item)
            for key, (host, item) in self.rows.items()
            if key[0] != page.clock
            or item.device not in names
            or not page.start_ns <= item.start_ns < page.end_ns
        }
        for item in page.postings:
            key = (page.clock, item.device, item.account, item.start_ns, item.end_ns)
            self.rows[key] = (page.clock.host, item)

    def post(self, entries: Iterable[ImportedEntry]) -> None:
        for entry in entries:
            item = entry.posting
            key = (None, entry.host, item.device, item.account, item.start_ns, item.end_ns)
            self.rows[key] = (entry.host, item)

    def slices(self, edges_ns: Sequence[int]) -> Sums:
        sums: Sums = {}
        for start_ns, end_ns in pairwise(edges_ns):
            for host, item in self.rows.values():
                cut = tuple(
                    between(value, item.start_ns, item.end_ns, start_ns, end_ns)
                    for value in astuple(item.amounts)
                )
                key = (start_ns, end_ns, host, item.device, item.account)
                sums[key] = tuple(map(add, sums.get(key, (0,) * 7), cut))
        return {key: values for key, values in sums.items() if any(values)}

    def prorated(self, edges_ns: Sequence[int]) -> bool:
        return any(
            item.start_ns < edge_ns < item.end_ns
            for edge_ns in edges_ns
            for _, item in self.rows.values()
            if item.amounts != Amounts()
        )


def sums_of(slices: Iterable[Slice]) -> Sums:
    """A store's answer in the reference's form; a key that comes twice is an error."""
    sums: Sums = {}
    for piece in slices:
        key = (piece.start_ns, piece.end_ns, piece.host, piece.device.device, piece.account)
        assert key not in sums
        sums[key] = astuple(piece.amounts)
    return sums
