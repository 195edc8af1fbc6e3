"""The daemon's notebook: self-metrics, learned idle power, and a version-1 file that gets one."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.memory_store import MemoryNotebook
from fakes.pages import CPU0, GPU0, T0_NS, steady_page
from wattledger.errors import InputError, UnreachableError
from wattledger.records import NS_PER_S, Device, DeviceKind, SelfMetric, StaticBasis
from wattledger.store import sqlite_write
from wattledger.store.names import Names
from wattledger.store.protocol import JournalEntry, Notebook, Retention
from wattledger.store.schema import _VERSION_1, APPLICATION_ID, SCHEMA_VERSION
from wattledger.store.sqlite import SqliteLedger

HOUR_NS = 3600 * NS_PER_S
DAY_NS = 24 * HOUR_NS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def metric(t_ns: int, value: float = 1.0, part: str = "nvml", name: str = "read_s") -> SelfMetric:
    return SelfMetric(t_ns, part, name, value)


def idle(static_w: float | None, model: str | None = "NVIDIA H200", device: str = "gpu0") -> Device:
    basis = StaticBasis.UNKNOWN if static_w is None else StaticBasis.LEARNED
    return Device(device, DeviceKind.GPU, model, static_w, basis)


def test_metrics_come_back_by_time_part_and_name_and_are_replaced(path: Path) -> None:
    said = [
        metric(9),
        metric(5, name="z"),
        metric(5, part="a\n'\""),
        metric(5),
        metric(5, value=7.5, name="z"),
    ]
    with SqliteLedger(path, create=True) as ledger:
        ledger.note(said)
        ledger.note([metric(10, inf), metric(10, nan), metric(20)])
        assert ledger.noted(5, 20) == [said[2], said[3], said[4], said[0]]
        assert ledger.noted(20, 21) == [metric(20)]
        assert ledger.noted(0, 5) == []


def test_a_metric_beyond_64_bits_is_refused_and_nothing_of_its_batch_kept(path: Path) -> None:
    with SqliteLedger(path, create=True) as ledger:
        with pytest.raises(InputError, match="exceeds 64 bits"):
            ledger.note([metric(5), metric(2**63)])
        assert ledger.noted(0, 2**62) == []


def test_learned_idle_power_is_told_apart_by_host_slot_and_model(path: Path) -> None:
    with SqliteLedger(path, create=True) as ledger:
        ledger.learn("h1", [idle(70.0), idle(60.0, "A40"), idle(5.0, None, "gpu1")], 1)
        ledger.learn("h2", [idle(99.0)], 1)
        ledger.learn("h1", [idle(65.0), idle(4.0, None, "gpu1")], 2)
        assert ledger.learned("h1") == [idle(60.0, "A40"), idle(65.0), idle(4.0, None, "gpu1")]
        ledger.learn("h1", [idle(None)], 3)
        assert ledger.learned("h1") == [idle(60.0, "A40"), idle(4.0, None, "gpu1")]
    with SqliteLedger(path) as ledger:
        assert ledger.learned("h2") == [idle(99.0)]
        assert ledger.learned("h3") == []


METRICS = st.lists(
    st.builds(
        SelfMetric,
        st.integers(0, 5),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["x_s", "y"]),
        st.floats(),
    ),
    max_size=8,
)
LEARNED = st.tuples(
    st.sampled_from(["h1", "h2"]),
    st.builds(
        idle,
        st.none() | st.floats(0, 1e6),
        st.sampled_from([None, "A", "B"]),
        st.sampled_from(["gpu0", "gpu1"]),
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(METRICS, max_size=4), st.lists(LEARNED, max_size=8))
def test_both_notebooks_agree(
    told: list[list[SelfMetric]], lessons: list[tuple[str, Device]]
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        SqliteLedger(Path(folder) / "ledger.db", create=True) as ledger,
    ):
        assert _answers(ledger, told, lessons) == _answers(MemoryNotebook(), told, lessons)


def _answers(
    book: Notebook, told: Iterable[list[SelfMetric]], lessons: Iterable[tuple[str, Device]]
) -> tuple[object, ...]:
    for metrics in told:
        book.note(metrics)
    for at, (host, device) in enumerate(lessons):
        book.learn(host, [device], at)
    return book.noted(1, 5), book.learned("h1"), book.learned("h2")


def test_metrics_are_kept_as_long_as_raw_windows(path: Path) -> None:
    now_ns = T0_NS + 10 * DAY_NS
    with SqliteLedger(path, create=True) as ledger:
        ledger.note([metric(T0_NS + hour * HOUR_NS) for hour in range(240)])
        ledger.learn("h1", [idle(70.0)], T0_NS)
        bites = [1]
        while bites[-1]:
            bites.append(ledger.prune(Retention(raw_days=7.0), now_ns, limit=50))
        kept = ledger.noted(0, now_ns)
        assert [m.t_ns for m in kept] == [T0_NS + hour * HOUR_NS for hour in range(72, 240)]
        assert max(bites) <= 50
        assert ledger.learned("h1") == [idle(70.0)]
        assert ledger.check() == []


def version_1(path: Path) -> None:
    """A ledger as version 1 made it, with a page, a setting and a journal in it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        for statement in _VERSION_1:
            conn.execute(statement)
        conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        conn.execute("PRAGMA user_version = 1")
        conn.execute("BEGIN")
        sqlite_write.book(conn, Names(conn), steady_page(T0_NS))
        conn.execute("INSERT INTO meta VALUES ('k', 'v')")
        conn.execute("INSERT INTO journal_boot VALUES (1, 'b')")
        conn.execute("INSERT INTO journal VALUES (1, 1, 5, 'trace', 0, x'00')")
        conn.execute("COMMIT")


def test_a_version_1_ledger_keeps_all_it_holds_and_gets_a_notebook(path: Path) -> None:
    version_1(path)
    with pytest.raises(UnreachableError, match=r"schema 1, not 3.*let wattledgerd open it once"):
        SqliteLedger(path)
    fresh = path.with_name("fresh.db")
    with SqliteLedger(fresh, create=True) as ledger:
        ledger.book(steady_page(T0_NS))
        expected = ledger.slices([T0_NS, T0_NS + HOUR_NS])
        tables = ledger._conn.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
    with SqliteLedger(path, writable=True) as ledger:
        assert ledger.slices([T0_NS, T0_NS + HOUR_NS]) == expected
        assert ledger.book(steady_page(T0_NS)) is False
        assert ledger.devices() == [("h1", CPU0), ("h1", GPU0)]
        assert (ledger.get_meta("k"), ledger.boots()) == ("v", ["b"])
        assert ledger.entries("b") == [JournalEntry("trace", bytes(1), 5)]
        ledger.note([metric(5)])
        ledger.learn("h1", [replace(idle(70.0), wrap_uj=5)], T0_NS)
        assert ledger.check() == []
        migrated = ledger._conn.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
        assert migrated == tables
    with SqliteLedger(path) as ledger:
        assert ledger.noted(0, 9) == [metric(5)]
        assert ledger.learned("h1") == [idle(70.0)]
        assert SCHEMA_VERSION == 3


def test_a_migration_that_fails_leaves_version_1_as_it_was(path: Path) -> None:
    version_1(path)
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE learned (somebody TEXT)")
    with pytest.raises(UnreachableError, match="already exists"):
        SqliteLedger(path, writable=True)
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA user_version").fetchone() == (1,)
        names = {row[0] for row in conn.execute("SELECT name FROM sqlite_master")}
        assert "self_metric" not in names
        conn.execute("DROP TABLE learned")
    with SqliteLedger(path, writable=True) as ledger:
        assert ledger.get_meta("k") == "v"
