"""The whole node's meter held against the sum of its parts: what of it nobody meters.

Both are compared only where both are known, second by second of the UTC grid, so that windows add
up: there the node's meter and every part fill the second. A second that an edge of the window cuts
is judged whole, then shared out. A part is one that was metered in that UTC hour: one that falls
silent takes the rest of the hour out of the comparison, instead of seeming unmetered. Of two meters
of one node Redfish's (`node1`) is taken where it is there, and never both. Nothing is clamped: a
node below its parts is told as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from wattledger.apportion import between
from wattledger.records import NS_PER_S, UJ_PER_J, DeviceKind
from wattledger.statement.query import UsageQuery
from wattledger.store.protocol import Books, Filters, MeteredSlice, MeterSeries, Store, glob_match
from wattledger.timespan import Window

_FINER_NS = (60 * NS_PER_S, 5 * NS_PER_S, NS_PER_S, None)
_HOUR_NS = 3600 * NS_PER_S

Stretch = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Meter:
    """What one device's meter saw of a stretch."""

    energy_uj: int
    device_ns: int
    is_node: bool


_SILENT = _Meter(0, 0, is_node=False)
Told = dict[tuple[Stretch, str], dict[str, _Meter]]


@dataclass(frozen=True, slots=True)
class HostNode:
    """One host's node against its parts, over the `known_ns` in which both are known."""

    host: str
    energy_uj: int = 0
    parts_uj: int = 0
    known_ns: int = 0

    @property
    def unmetered_uj(self) -> int:
        """What the parts do not explain, negative where they tell more than the node."""
        return self.energy_uj - self.parts_uj


@dataclass(frozen=True, slots=True)
class NodeBalance:
    """All hosts that have a meter of the whole node; figures are sums over them."""

    window: Window
    hosts: tuple[HostNode, ...]

    @property
    def energy_uj(self) -> int:
        """The nodes' energy, microjoules."""
        return sum(host.energy_uj for host in self.hosts)

    @property
    def parts_uj(self) -> int:
        """The parts' energy in the same time, microjoules."""
        return sum(host.parts_uj for host in self.hosts)

    @property
    def unmetered_uj(self) -> int:
        """The difference, microjoules."""
        return self.energy_uj - self.parts_uj

    @property
    def coverage_time(self) -> float:
        """The share of these hosts' time in which node and parts are both known."""
        known_ns = sum(host.known_ns for host in self.hosts)
        return known_ns / (len(self.hosts) * self.window.length_ns)

    def to_json(self) -> dict[str, object]:
        """The statement's `node`, energy in J."""
        return {
            "energy_j": self.energy_uj / UJ_PER_J,
            "parts_j": self.parts_uj / UJ_PER_J,
            "unmetered_j": self.unmetered_uj / UJ_PER_J,
            "coverage_time": self.coverage_time,
            "hosts": [host.host for host in self.hosts],
        }

    def notices(self) -> list[str]:
        """What a reader must know of it, one line each."""
        if not any(host.known_ns for host in self.hosts):
            return ["the node's meter and its parts are never both known: nothing is compared"]
        return [
            f"the parts of {host.host} tell {-host.unmetered_uj / UJ_PER_J:.4g} J more than its "
            "node's meter: it averages, is wrong, or an estimate among the parts is too high"
            for host in self.hosts
            if host.unmetered_uj < 0
        ]


def node_balance(store: Store, query: UsageQuery, books: Books) -> NodeBalance | None:
    """The comparison over a query's window; None where no node is metered in it.

    A filter narrower than a host has none either: a node's remainder is nobody's. `books` are
    those of the window.
    """
    if query.filters != Filters(host=query.filters.host):
        return None
    hosts = _with_node(books, query)
    # A sliver of a second may round to no metered time, and belongs to that second all the same.
    nearby = hosts.union(
        *(_with_node(store.books(*second), query) for second in _cut_seconds(query.window))
    )
    if not nearby:
        return None
    found = _Comparison(store, query.window, nearby).run()
    told = [found[host] for host in sorted(nearby) if host in hosts or found[host].known_ns]
    return NodeBalance(query.window, tuple(told)) if told else None


def _with_node(books: Books, query: UsageQuery) -> set[str]:
    """Hosts asked for whose node's meter has data in these books."""
    return {
        book.host
        for book in books.devices
        if book.device.kind is DeviceKind.NODE
        and book.metered_ns
        and glob_match(query.filters.host, book.host)
    }


def _cut_seconds(window: Window) -> set[Stretch]:
    """The seconds of the grid that an edge of the window goes through."""
    edges_ns = (window.start_ns, window.end_ns)
    starts_ns = {_floor(edge, NS_PER_S) for edge in edges_ns if edge % NS_PER_S}
    return {(start_ns, start_ns + NS_PER_S) for start_ns in starts_ns}


class _Comparison:
    """Hours first, then the minutes of hours that are not plain, then seconds of such minutes."""

    def __init__(self, store: Store, window: Window, hosts: set[str]) -> None:
        self._store = store
        self._window = window
        self._found = {host: HostNode(host) for host in hosts}
        # By host and start of the hour: the parts that were metered in it.
        self._expected: dict[tuple[str, int], set[str]] = {}

    def run(self) -> Mapping[str, HostNode]:
        """Every host's comparison."""
        wanted = self._hours()
        for finer_ns in _FINER_NS:
            told = self._ask(wanted)
            mixed: dict[Stretch, set[str]] = {}
            for stretch, hosts in wanted.items():
                for host in hosts:
                    meters = told.get((stretch, host), {})
                    if not self._settled(host, stretch, meters) and finer_ns is not None:
                        for part in _cut(stretch, finer_ns):
                            mixed.setdefault(part, set()).add(host)
            wanted = mixed
        return self._found

    def _hours(self) -> dict[Stretch, set[str]]:
        """The window's hours, and the seconds that it cuts, whole.

        What is to be expected is told by whole hours.
        """
        start_ns, end_ns = self._window.start_ns, self._window.end_ns
        hours = _cut((_floor(start_ns, _HOUR_NS), -_floor(-end_ns, _HOUR_NS)), _HOUR_NS)
        told = self._ask({hour: set(self._found) for hour in hours})
        for (hour, host), meters in told.items():
            parts = {name for name, meter in meters.items() if not meter.is_node}
            self._expected[host, hour[0]] = parts
        edges_ns = {edge for edge, _ in hours if start_ns < edge < end_ns}
        for edge in (start_ns, end_ns):
            edges_ns |= {_floor(edge, NS_PER_S), -_floor(-edge, NS_PER_S)}
        return {stretch: set(self._found) for stretch in pairwise(sorted(edges_ns))}

    def _settled(self, host: str, stretch: Stretch, meters: Mapping[str, _Meter]) -> bool:
        """Count a stretch that is plain; False where a finer look may find more."""
        length_ns = stretch[1] - stretch[0]
        nodes = sorted((name for name, meter in meters.items() if meter.is_node), reverse=True)
        expected = self._expected.get((host, _floor(stretch[0], _HOUR_NS)), set())
        parts = [meters.get(name, _SILENT) for name in expected]
        if not nodes or not parts or not all(part.device_ns for part in parts):
            return True
        full = [name for name in nodes if meters[name].device_ns >= length_ns]
        known = bool(full) and all(part.device_ns >= length_ns for part in parts)
        if known and (full[0] == nodes[0] or length_ns <= NS_PER_S):
            self._add(host, stretch, meters[full[0]], parts)
            return True
        return length_ns <= NS_PER_S

    def _add(self, host: str, stretch: Stretch, node: _Meter, parts: Iterable[_Meter]) -> None:
        known = self._found[host]
        start_ns = max(stretch[0], self._window.start_ns)
        end_ns = min(stretch[1], self._window.end_ns)
        parts_uj = sum(part.energy_uj for part in parts)
        self._found[host] = replace(
            known,
            energy_uj=known.energy_uj + between(node.energy_uj, *stretch, start_ns, end_ns),
            parts_uj=known.parts_uj + between(parts_uj, *stretch, start_ns, end_ns),
            known_ns=known.known_ns + end_ns - start_ns,
        )

    def _ask(self, wanted: Mapping[Stretch, set[str]]) -> Told:
        """What every meter of these hosts saw in these stretches."""
        told: Told = {}
        for piece in self._pieces(sorted(wanted)):
            stretch = (piece.start_ns, piece.end_ns)
            if piece.device_ns and piece.host in wanted.get(stretch, ()):
                meters = told.setdefault((stretch, piece.host), {})
                name = piece.device.device
                before = meters.get(name, _SILENT)
                # A device whose description changed is told twice.
                meters[name] = _Meter(
                    before.energy_uj + piece.energy_uj,
                    before.device_ns + piece.device_ns,
                    piece.device.kind is DeviceKind.NODE,
                )
        return told

    def _pieces(self, stretches: Sequence[Stretch]) -> Iterable[MeteredSlice]:
        if isinstance(self._store, MeterSeries):
            edges_ns = sorted({edge for stretch in stretches for edge in stretch})
            return self._store.metered(edges_ns) if edges_ns else ()
        return (
            MeteredSlice(*stretch, book.host, book.device, book.metered_uj, book.metered_ns)
            for stretch in stretches
            for book in self._store.books(*stretch).devices
        )


def _floor(t_ns: int, unit_ns: int) -> int:
    return t_ns - t_ns % unit_ns


def _cut(stretch: Stretch, unit_ns: int) -> list[Stretch]:
    """A stretch cut at multiples of `unit_ns`."""
    start_ns, end_ns = stretch
    first_ns = start_ns + -start_ns % unit_ns
    edges_ns = {start_ns, end_ns, *range(first_ns, end_ns, unit_ns)}
    return list(pairwise(sorted(edges_ns)))
