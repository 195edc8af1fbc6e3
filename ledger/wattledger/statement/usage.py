"""The usage statement: energy and tokens of a window."""

from __future__ import annotations

from dataclasses import dataclass

from wattledger import __version__
from wattledger.statement.coverage import Coverage, booked_ns, coverage_of, device_books
from wattledger.statement.node import NodeBalance, node_balance
from wattledger.statement.notices import usage_notices
from wattledger.statement.query import UsageQuery, View
from wattledger.statement.selection import select
from wattledger.statement.terms import EmbodiedTerms
from wattledger.statement.timeline import free_timeline
from wattledger.statement.totals import Group, Totals, groups_of
from wattledger.store.protocol import Store
from wattledger.timespan import Window

SCHEMA = "wattledger.usage/1"


@dataclass(frozen=True, slots=True)
class UsageStatement:
    """Energy and tokens of a selection; `boundary` holds the kinds of device in it."""

    window: Window
    view: View
    boundary: tuple[str, ...]
    total: Totals
    groups: tuple[Group, ...]
    coverage: Coverage
    warnings: tuple[str, ...]
    node: NodeBalance | None = None

    def to_json(self) -> dict[str, object]:
        """The contract's `wattledger.usage/1`, energy in J and time in s."""
        return {
            "schema": SCHEMA,
            "software": __version__,
            "window": self.window.to_json(),
            "view": self.view.value,
            "boundary": list(self.boundary),
            "total": self.total.usage_json(),
            "groups": [{"by": group.by, **group.total.usage_json()} for group in self.groups],
            "coverage": self.coverage.usage_json(),
            **({"node": self.node.to_json()} if self.node else {}),
            "warnings": list(self.warnings),
        }


def usage_statement(store: Store, query: UsageQuery) -> UsageStatement:
    """The usage of a window; zeros where the ledger has nothing."""
    terms = EmbodiedTerms()
    chosen = select(store, query, free_timeline(query), terms)
    window = query.window
    books = store.books(window.start_ns, window.end_ns)
    booked = booked_ns(device_books(books, query.filters.host))
    node = node_balance(store, query, books)
    notices = usage_notices(chosen.lines, booked, window, prorated=chosen.prorated)
    return UsageStatement(
        window=window,
        view=query.view,
        boundary=tuple(sorted({line.key.kind.value for line in chosen.lines})),
        total=chosen.total,
        groups=groups_of(chosen.lines, query.by),
        coverage=coverage_of(chosen.lines, booked, window, terms),
        warnings=(*notices, *(node.notices() if node else ())),
        node=node,
    )
