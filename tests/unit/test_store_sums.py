"""Sums beyond 64 bits are exact where they are read, and refused where they would be kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.pages import GPU0, T0_NS, account, balanced_page, posting
from wattledger.errors import InputError
from wattledger.records import NS_PER_S, Amounts, Page, Posting
from wattledger.store.protocol import ImportedEntry
from wattledger.store.sqlite import SqliteLedger

MOST = 2**63 - 1
HOUR_NS = 3600 * NS_PER_S
WINDOW = (T0_NS, T0_NS + 24 * HOUR_NS)


def hourly(hour: int, energy_uj: int) -> ImportedEntry:
    """Another meter's hour, of a size that only a whole site has."""
    start_ns = T0_NS + hour * HOUR_NS
    amounts = Amounts(static_uj=0, dynamic_uj=energy_uj, device_ns=HOUR_NS)
    return ImportedEntry(
        "h1", GPU0, Posting("gpu0", account(), start_ns, start_ns + HOUR_NS, amounts)
    )


def test_an_account_of_more_than_64_bits_is_summed_exactly(tmp_path: Path) -> None:
    parts = [MOST, MOST - 7, 3, MOST // 2, 0, 1]
    with SqliteLedger(tmp_path / "ledger.db", create=True) as ledger:
        ledger.post(hourly(hour, part) for hour, part in enumerate(parts))
        (piece,) = ledger.slices(WINDOW).slices
        assert piece.amounts.energy_uj == sum(parts) > MOST
        (book,) = ledger.books(*WINDOW).devices
        assert (book.metered_uj, book.posted_uj) == (sum(parts), sum(parts))
        assert book.metered_ns == len(parts) * HOUR_NS
        assert ledger.check() == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**62, MOST]), min_size=1, max_size=8))
def test_any_sum_is_the_sum_of_its_windows(parts: list[int]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        SqliteLedger(Path(folder) / "ledger.db", create=True) as ledger,
    ):
        ledger.post(hourly(hour, part) for hour, part in enumerate(parts))
        found = ledger.slices(WINDOW).slices
        assert sum(piece.amounts.energy_uj for piece in found) == sum(parts)


def test_a_sum_that_a_rollup_cannot_hold_is_refused_whole(tmp_path: Path) -> None:
    def page(second: int, energy_uj: int) -> Page:
        start_ns = T0_NS + second * NS_PER_S
        end_ns = start_ns + NS_PER_S
        return balanced_page(
            start_ns, end_ns, [posting(start_ns, end_ns, Amounts(dynamic_uj=energy_uj))]
        )

    with SqliteLedger(tmp_path / "ledger.db", create=True) as ledger:
        ledger.book(page(0, MOST))
        with pytest.raises(InputError, match="a sum or a time exceeds 64 bits"):
            ledger.book(page(1, 1))
        assert ledger.book(page(2, 0))
        (piece,) = ledger.slices(WINDOW).slices
        assert piece.amounts.energy_uj == MOST
        assert ledger.check() == []
