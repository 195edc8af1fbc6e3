"""Two processes on one ledger, and a writer that is killed in the middle of its work."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fakes.pages import CLOCK, T0_NS
from fakes.store_child import FAR_NS
from wattledger.records import NS_PER_S
from wattledger.store.sqlite import SqliteLedger

KILLS = 20


@contextmanager
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that books for ever; it has booked a page when this yields."""
    with subprocess.Popen(
        [sys.executable, "-m", "fakes.store_child", "write", str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def acknowledged_ns(process: subprocess.Popen[str]) -> int:
    """The end of the last page that a killed writer reported as booked."""
    assert process.stdout is not None
    whole = [line for line in process.stdout.read().split("\n")[:-1] if line]
    return int(whole[-1]) if whole else 0


def test_a_killed_writer_leaves_a_whole_balanced_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    dice = random.Random(1)
    for _ in range(KILLS):
        with writer(path) as process:
            time.sleep(dice.uniform(0.0, 0.03))
            process.kill()
            booked_ns = acknowledged_ns(process)
        with SqliteLedger(path) as ledger:
            assert ledger.check() == []
            last = ledger.last_page(CLOCK.host)
            assert last is not None
            assert last[1] >= booked_ns
            for book in ledger.books(T0_NS, FAR_NS).devices:
                assert book.metered_uj == book.posted_uj
                assert book.posted_ns == (last[1] - T0_NS) // (5 * NS_PER_S) * (
                    5 * NS_PER_S // 3 * 3
                )


def test_a_reader_sees_whole_pages_while_a_writer_writes(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    seen_ns: list[int] = []
    with writer(path), SqliteLedger(path) as ledger:
        while len(set(seen_ns)) < 20:
            books = ledger.books(T0_NS + NS_PER_S, FAR_NS - 1)
            assert all(book.metered_uj == book.posted_uj for book in books.devices)
            assert len({book.posted_ns for book in books.devices}) == 1
            seen_ns.append(books.devices[0].posted_ns)
    assert seen_ns == sorted(seen_ns)
