"""The node against its parts: both only where both are known, and windows add up."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.cli import Cli
from fakes.memory_store import MemoryStore
from fakes.pages import CLOCK, CPU0, GPU0, NODE0, T0_NS, account, posting
from wattledger.carbon.intensity import ConstantIntensity
from wattledger.records import (
    NS_PER_S,
    Amounts,
    CounterReading,
    Device,
    DeviceKind,
    Metered,
    Page,
    PowerReading,
)
from wattledger.statement.carbon import carbon_statement
from wattledger.statement.node import NodeBalance
from wattledger.statement.query import EVERYTHING, CarbonQuery, UsageQuery, View
from wattledger.statement.usage import usage_statement
from wattledger.store import open_ledger
from wattledger.store.protocol import Filters, MeterSeries, Store
from wattledger.store.sqlite import SqliteLedger
from wattledger.timespan import Window, format_instant
from wattledger_daemon.heart.accountant import Accountant, AccountantSettings

NODE1 = Device("node1", DeviceKind.NODE)
DEVICES = (GPU0, CPU0, NODE0, NODE1)
W_NS = 5 * NS_PER_S
PAGES = 24  # two minutes around an hour's edge
FIRST_NS = T0_NS - PAGES // 2 * W_NS

Cell = Mapping[str, tuple[int, int]]
"""Energy in uJ and metered time in ns by device, of one window."""


def page(start_ns: int, cell: Cell, host: str = "h1") -> Page:
    devices = tuple(device for device in DEVICES if device.device in cell)
    end_ns = start_ns + W_NS
    return Page(
        replace(CLOCK, host=host),
        start_ns,
        end_ns,
        devices,
        tuple(Metered(name, start_ns, end_ns, *told) for name, told in cell.items()),
        tuple(
            posting(start_ns, end_ns, Amounts(0, uj, ns), device=name, to=account(job="j"))
            for name, (uj, ns) in cell.items()
        ),
    )


def full(**joules: float) -> Cell:
    return {name: (round(joule * 1e6), W_NS) for name, joule in joules.items()}


@contextmanager
def ledger(pages: list[Page]) -> Iterator[SqliteLedger]:
    with tempfile.TemporaryDirectory() as folder:
        store = open_ledger(f"sqlite:{folder}/ledger.db", writable=True, create=True)
        try:
            store.book_all(pages)
            yield store
        finally:
            store.close()


def balance(
    store: Store, first: int = 0, last: int = PAGES, filters: Filters = EVERYTHING
) -> NodeBalance | None:
    window = Window(FIRST_NS + first * W_NS, FIRST_NS + last * W_NS)
    return usage_statement(store, UsageQuery(window=window, filters=filters)).node


def figures(told: NodeBalance | None) -> tuple[int, int, int, int]:
    if told is None:
        return 0, 0, 0, 0
    known_ns = sum(host.known_ns for host in told.hosts)
    return told.energy_uj, told.parts_uj, told.unmetered_uj, known_ns


def series(cells: list[Cell], host: str = "h1") -> list[Page]:
    return [page(FIRST_NS + at * W_NS, cell, host) for at, cell in enumerate(cells) if cell]


def test_what_no_part_meters_is_shown_beside_the_total() -> None:
    store = MemoryStore(series([full(gpu0=500, cpu0=200, node0=900)] * PAGES))
    told = balance(store)
    assert told is not None
    assert told.to_json() == {
        "energy_j": 21_600.0,
        "parts_j": 16_800.0,
        "unmetered_j": 4_800.0,
        "coverage_time": 1.0,
        "hosts": ["h1"],
    }
    assert told.notices() == []


@pytest.mark.parametrize("view", list(View))
def test_the_total_holds_nothing_of_it_in_any_view_and_carbon_shows_it_too(view: View) -> None:
    store = MemoryStore(series([full(gpu0=500, node0=900)] * PAGES))
    query = CarbonQuery(
        window=Window(FIRST_NS, FIRST_NS + PAGES * W_NS),
        intensity=ConstantIntensity(100.0),
        view=view,
    )
    statement = carbon_statement(store, query)
    assert statement.total.amounts.energy_uj == PAGES * 500_000_000
    assert statement.boundary == ("gpu",)
    node = statement.to_json()["node"]
    assert isinstance(node, dict)
    assert node["unmetered_j"] == PAGES * 400.0


def test_without_a_node_meter_there_is_no_block() -> None:
    store = MemoryStore(series([full(gpu0=500, cpu0=200)] * PAGES))
    query = UsageQuery(window=Window(FIRST_NS, FIRST_NS + PAGES * W_NS))
    assert "node" not in usage_statement(store, query).to_json()


@pytest.mark.parametrize("name", ["job", "workload", "engine", "model", "request", "activity"])
def test_a_filter_narrower_than_a_host_has_no_block(name: str) -> None:
    store = MemoryStore(series([full(gpu0=500, node0=900)] * PAGES))
    assert balance(store, filters=Filters(**{name: ("*",)})) is None
    assert balance(store, filters=Filters(host=("h*",))) is not None
    assert balance(store, filters=Filters(host=("other",))) is None


def test_a_node_below_its_parts_is_told_as_it_is() -> None:
    store = MemoryStore(series([full(gpu0=500, node0=450)] * PAGES))
    query = UsageQuery(window=Window(FIRST_NS, FIRST_NS + PAGES * W_NS))
    statement = usage_statement(store, query)
    assert statement.node is not None
    assert statement.node.to_json()["unmetered_j"] == -1200.0
    assert any("the parts of h1 tell 1200 J more" in text for text in statement.warnings)


def test_one_host_above_its_parts_does_not_hide_one_below() -> None:
    pages = series([full(gpu0=500, node0=900)] * PAGES)
    pages += series([full(gpu0=500, node0=450)] * PAGES, host="h2")
    told = balance(MemoryStore(pages))
    assert told is not None
    assert [host.unmetered_uj for host in told.hosts] == [9_600_000_000, -1_200_000_000]
    assert told.unmetered_uj == 8_400_000_000
    assert len(told.notices()) == 1


def test_two_meters_of_a_node_are_never_added() -> None:
    both = full(gpu0=500, node0=900, node1=910)
    gone = full(gpu0=500, node0=900)
    with ledger(series([both] * 12 + [gone] * 12)) as store:
        told = balance(store)
    assert told is not None
    assert told.energy_uj == 12 * 910_000_000 + 12 * 900_000_000
    assert told.coverage_time == 1.0


def test_a_gap_of_the_node_is_no_unmetered_energy() -> None:
    late = {**full(gpu0=500), "node0": (300_000_000, 2 * NS_PER_S)}
    cells = [full(gpu0=500, node0=900)] * 10 + [late] + [full(gpu0=500)] * 13
    with ledger(series(cells)) as store:
        told = balance(store)
    assert told is not None
    assert figures(told) == (9_000_000_000, 5_000_000_000, 4_000_000_000, 10 * W_NS)
    assert told.coverage_time == pytest.approx(10 / 24)


def test_a_part_that_falls_silent_is_no_unmetered_energy_in_its_hour() -> None:
    lost = full(cpu0=100, node0=900)
    whole = full(gpu0=500, cpu0=100, node0=900)
    # Lost half a minute before the hour's edge; in the next hour nobody expects it.
    with ledger(series([whole] * 6 + [lost] * 18)) as store:
        told = balance(store)
    assert told is not None
    assert told.energy_uj == 18 * 900_000_000
    assert told.parts_uj == 6 * 600_000_000 + 12 * 100_000_000


def test_a_node_that_is_never_known_with_its_parts_says_so() -> None:
    with ledger(series([full(gpu0=500)] * 6 + [full(node0=900)] * 6)) as store:
        told = balance(store)
    assert told is not None
    assert figures(told) == (0, 0, 0, 0)
    assert told.coverage_time == 0.0
    assert "never both known" in told.notices()[0]


def test_a_controller_read_every_four_seconds_fills_its_windows() -> None:
    accountant = Accountant(replace(CLOCK, epoch_ns=FIRST_NS), AccountantSettings(window_ns=W_NS))
    evidence: list[Device | CounterReading | PowerReading] = [GPU0, NODE0]
    for tick in range(240):
        evidence.append(CounterReading("gpu0", tick * NS_PER_S // 2, tick * 250_000_000))
    for tick in range(30):
        late_ns = tick * 7 % 5 * NS_PER_S // 6
        evidence.append(PowerReading("node0", tick * 4 * NS_PER_S + late_ns, 900_000_000))
    for item in evidence:
        accountant.observe(item)
    with ledger(list(accountant.flush(118 * NS_PER_S))) as store:
        told = balance(store, 1, 23)
    assert told is not None
    assert told.coverage_time == 1.0
    assert figures(told)[:2] == (22 * 4_500_000_000, 22 * 2_500_000_000)


METERED = st.one_of(
    st.just(W_NS), st.just(W_NS), st.integers(0, W_NS), st.integers(W_NS - 3, W_NS - 1)
)
CELLS = st.dictionaries(
    st.sampled_from(["gpu0", "cpu0", "node0", "node1"]),
    st.tuples(st.integers(0, 10**10), METERED),
)
PLAIN = st.tuples(st.integers(0, 10**10), st.just(W_NS))
WHOLE = st.fixed_dictionaries({"gpu0": PLAIN, "cpu0": PLAIN, "node0": PLAIN, "node1": PLAIN})
LEDGERS = st.lists(st.one_of(WHOLE, WHOLE, CELLS), min_size=PAGES, max_size=PAGES)


def expected(cells: list[Cell], first: int, last: int) -> tuple[int, int, int, int]:
    """The same, window by window and plainly."""
    energy_uj = parts_uj = known_ns = 0
    for at in range(first, last):
        hour = range(PAGES // 2) if at < PAGES // 2 else range(PAGES // 2, PAGES)
        wanted = {
            name
            for other in hour
            for name, (_, ns) in cells[other].items()
            if ns and not name.startswith("node")
        }
        cell = {name: told for name, told in cells[at].items() if told[1] == W_NS}
        node = cell.get("node1", cell.get("node0"))
        if node is not None and wanted and wanted <= cell.keys():
            energy_uj += node[0]
            parts_uj += sum(cell[name][0] for name in wanted)
            known_ns += W_NS
    return energy_uj, parts_uj, energy_uj - parts_uj, known_ns


class PlainStore(MemoryStore):
    """A ledger that knows no series: it is asked for books."""


@settings(max_examples=40, deadline=None)
@given(LEDGERS, st.integers(0, PAGES), st.integers(0, PAGES), st.integers(0, PAGES))
def test_windows_add_up_and_say_what_a_plain_count_says(
    cells: list[Cell], one: int, two: int, three: int
) -> None:
    cells = [
        {name: (uj, ns if ns == W_NS else min(ns, W_NS - NS_PER_S)) for name, (uj, ns) in c.items()}
        for c in cells
    ]
    first, split, last = sorted((one, two, three))
    with ledger(series(cells)) as store:
        assert isinstance(store, MeterSeries)
        told = [
            figures(balance(store, *part)) if part[0] < part[1] else (0, 0, 0, 0)
            for part in ((first, last), (first, split), (split, last))
        ]
    assert told[0] == tuple(a + b for a, b in zip(told[1], told[2], strict=True))
    assert told[0] == expected(cells, first, last)


@settings(max_examples=30, deadline=None)
@given(LEDGERS, st.integers(1, PAGES * 5 - 1))
def test_windows_add_up_at_any_second_whatever_was_metered(cells: list[Cell], second: int) -> None:
    start_ns, end_ns = FIRST_NS, FIRST_NS + PAGES * W_NS
    middle_ns = start_ns + second * NS_PER_S
    with ledger(series(cells)) as store:
        told = [
            figures(usage_statement(store, UsageQuery(window=Window(*edges))).node)
            for edges in ((start_ns, end_ns), (start_ns, middle_ns), (middle_ns, end_ns))
        ]
    assert told[0] == tuple(a + b for a, b in zip(told[1], told[2], strict=True))


SPAN_NS = PAGES * W_NS
EDGE = st.one_of(
    st.integers(0, SPAN_NS),
    st.builds(
        lambda second, off_ns: min(max(second * NS_PER_S + off_ns, 0), SPAN_NS),
        st.integers(0, PAGES * 5),
        st.integers(-2, 2),
    ),
)


@settings(max_examples=60, deadline=None)
@given(
    LEDGERS,
    st.lists(EDGE, min_size=3, max_size=5, unique=True),
    st.sampled_from([0, 1, 370_000_000, NS_PER_S - 1]),
)
def test_windows_add_up_at_any_nanosecond(
    cells: list[Cell], edges: list[int], off_grid_ns: int
) -> None:
    edges_ns = [FIRST_NS + edge for edge in sorted(edges)]
    pages = [page(FIRST_NS + off_grid_ns + at * W_NS, cell) for at, cell in enumerate(cells)]
    with ledger(pages) as store:
        whole, *parts = (
            figures(usage_statement(store, UsageQuery(window=Window(*stretch))).node)
            for stretch in ((edges_ns[0], edges_ns[-1]), *pairwise(edges_ns))
        )
    assert whole == tuple(map(sum, zip(*parts, strict=True)))


def test_a_sliver_of_a_second_is_judged_by_the_whole_second() -> None:
    # Three accounts share the node's time: of a nanosecond each has none, and the meter has it.
    shared = replace(
        page(FIRST_NS, full(gpu0=500, node0=900)),
        postings=tuple(
            posting(FIRST_NS, FIRST_NS + W_NS, amounts, device=name, to=account(job=job))
            for name, energy_uj in (("gpu0", 500_000_000), ("node0", 900_000_000))
            for job, amounts in (
                ("a", Amounts(0, energy_uj, W_NS // 4)),
                ("b", Amounts(0, 0, W_NS // 4)),
                ("c", Amounts(0, 0, W_NS // 4)),
                ("d", Amounts(0, 0, W_NS // 4)),
            )
        ),
    )
    edges_ns = [FIRST_NS + offset for offset in (0, 1, 10**9 + 1, 10**9 + 2, W_NS)]
    with ledger([shared]) as store:
        parts = [
            figures(usage_statement(store, UsageQuery(window=Window(*stretch))).node)
            for stretch in pairwise(edges_ns)
        ]
    assert [part[3] for part in parts] == [1, 10**9, 1, W_NS - 10**9 - 2]
    assert tuple(map(sum, zip(*parts, strict=True))) == (
        900_000_000,
        500_000_000,
        400_000_000,
        W_NS,
    )


@settings(max_examples=5, deadline=None)
@given(LEDGERS)
def test_a_ledger_without_series_says_the_same(cells: list[Cell]) -> None:
    plain = PlainStore(series(cells))
    assert not isinstance(plain, MeterSeries)
    with ledger(series(cells)) as store:
        assert figures(balance(store)) == figures(balance(plain))


def test_the_table_and_the_json_show_it(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/ledger.db"
    store = open_ledger(url, writable=True, create=True)
    store.book_all(series([full(gpu0=500, node0=900)] * 10 + [full(gpu0=500)] * 14))
    store.close()
    edges = [format_instant(at) for at in (FIRST_NS, FIRST_NS + PAGES * W_NS)]
    asked = ("--from", edges[0], "--to", edges[1], "--ledger", url)
    cli = Cli(tmp_path)
    line = " unmetered  4,000 J: node 9,000 J less parts 5,000 J, both known"
    for command in (("usage",), ("carbon", "--intensity", "100")):
        ran = cli.run(*command, *asked)
        assert line in ran.out
        assert "both known 41.7 % of the time" in " ".join(ran.out.split())
        assert max(map(len, ran.out.splitlines())) <= 80
        document = json.loads(cli.run(*command, *asked, "--format", "json").out)
        assert document["node"]["unmetered_j"] == 4000.0
        assert list(document)[-2:] == ["node", "warnings"]
        narrow = cli.run(*command, *asked, "--job", "j")
        assert "unmetered" not in narrow.out
