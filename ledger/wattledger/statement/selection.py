"""What a query selects of a ledger, under its view."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wattledger.statement.lines import Line, priced_lines, tally
from wattledger.statement.loading import loaded, loaded_claims
from wattledger.statement.query import UsageQuery, View
from wattledger.statement.terms import EmbodiedTerms
from wattledger.statement.timeline import Timeline
from wattledger.statement.totals import Totals, decode_uj, total_of
from wattledger.store.protocol import Filters, Store


@dataclass(frozen=True, slots=True)
class Selection:
    """The lines of a view and their total; `prorated` tells that a stored window was cut."""

    lines: tuple[Line, ...]
    total: Totals
    prorated: bool


def select(store: Store, query: UsageQuery, timeline: Timeline, terms: EmbodiedTerms) -> Selection:
    """Ask the ledger, price the answer and apply the view."""
    if query.view is View.LOADED:
        return _select_loaded(store, query, timeline, terms)
    answer = store.slices(timeline.edges_ns, query.filters)
    sums = tally(answer.slices, timeline, query.by, terms)
    lines = priced_lines(sums, query.view, terms)
    return Selection(tuple(lines), total_of(lines), answer.prorated)


def _select_loaded(
    store: Store, query: UsageQuery, timeline: Timeline, terms: EmbodiedTerms
) -> Selection:
    """Spread idle over everybody first, then filter: a share does not grow by not looking."""
    filters = query.filters
    answer = store.slices(timeline.edges_ns, Filters(host=filters.host))
    sums = tally(answer.slices, timeline, query.by, terms, filters)
    everybody = priced_lines(sums, query.view, terms)
    if filters.request:
        copies = store.slices(timeline.edges_ns, filters)
        claims = priced_lines(tally(copies.slices, timeline, query.by, terms), query.view, terms)
        lines = loaded_claims(everybody, claims, query.by)
        return Selection(tuple(lines), total_of(lines), copies.prorated)
    lines = [line for line in loaded(everybody, query.by) if line.key.selected]
    total = total_of(lines)
    if all(line.key.selected for line in everybody):
        # Spreading moves energy between lines and makes none: the direct total, to the last bit.
        total = replace(total_of(everybody), decode_uj=decode_uj(lines))
    return Selection(tuple(lines), total, answer.prorated)
