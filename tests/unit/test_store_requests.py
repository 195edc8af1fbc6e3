"""Requests: their energy is all that their copies say, wherever those lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.memory_store import MemoryStore
from fakes.pages import CLOCK, CPU0, GPU0, T0_NS, account, balanced_page, posting
from wattledger.records import (
    NS_PER_S,
    Activity,
    Amounts,
    FinishedRequest,
    Page,
    Posting,
    Quality,
)
from wattledger.store.protocol import Filters, RequestEnergy
from wattledger.store.sqlite import SqliteLedger

WINDOW_NS = 5 * NS_PER_S
ENGINE = "vllm-a"
ALL = Filters()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    with SqliteLedger(tmp_path / "ledger.db", create=True) as opened:
        yield opened
        assert opened.check() == []


def finish(request: str, at: int, job: str | None = None) -> FinishedRequest:
    finished_ns = T0_NS + at * WINDOW_NS + 1
    return FinishedRequest(request, ENGINE, "llama", "vllm", job, finished_ns, 100, 10, 20)


def share(
    request: str,
    at: int,
    energy_uj: int,
    activity: Activity = Activity.DECODE,
    *,
    device: str = "gpu0",
    method: str = "calibrated",
    quality: Quality = Quality.MEASURED,
    job: str | None = None,
) -> Posting:
    start_ns = T0_NS + at * WINDOW_NS
    to = account(activity, engine=ENGINE, method=method, quality=quality)
    to = replace(to, workload="vllm", job=job) if job else to
    amounts = Amounts(energy_uj // 2, energy_uj - energy_uj // 2)
    return posting(start_ns, start_ns + WINDOW_NS, amounts, device=device, to=to, request=request)


def page(at: int, shares: list[Posting], *finished: FinishedRequest) -> Page:
    start_ns = T0_NS + at * WINDOW_NS
    return balanced_page(
        start_ns,
        start_ns + WINDOW_NS,
        [replace(item, request=None) for item in shares],
        devices=(GPU0, CPU0),
        request_postings=shares,
        finished=finished,
    )


def found(ledger: SqliteLedger, at: int, filters: Filters = ALL) -> list[RequestEnergy]:
    return ledger.requests(T0_NS + at * WINDOW_NS, T0_NS + (at + 1) * WINDOW_NS, filters)


def test_energy_comes_from_all_windows_and_devices(ledger: SqliteLedger) -> None:
    ledger.book(page(0, [share("r1", 0, 1000, Activity.PREFILL), share("r1", 0, 10)]))
    ledger.book(page(1, [share("r1", 1, 31), share("r1", 1, 5, device="cpu0")]))
    ledger.book(page(2, [share("r1", 2, 7)], finish("r1", 2, "4711")))
    assert found(ledger, 0) == found(ledger, 1) == []
    assert found(ledger, 2) == [
        RequestEnergy("h1", finish("r1", 2, "4711"), 1000, 53, "calibrated", Quality.MEASURED)
    ]


def test_method_and_quality_tell_the_worst(ledger: SqliteLedger) -> None:
    shares = [
        share("r1", 0, 4, quality=Quality.ESTIMATED),
        share("r1", 0, 6, quality=Quality.SPREAD, method="default-weights"),
    ]
    ledger.book(page(0, shares, finish("r1", 0)))
    (request,) = found(ledger, 0)
    assert (request.method, request.quality) == ("calibrated+default-weights", Quality.ESTIMATED)


def test_a_restated_page_revises_totals_methods_and_finishes(ledger: SqliteLedger) -> None:
    ledger.book(page(0, [share("r1", 0, 4, quality=Quality.RESET, method="coarse")]))
    ledger.book(page(1, [share("r1", 1, 5)], finish("r1", 1), finish("r2", 1)))
    restated = page(0, [share("r1", 0, 9)])
    assert ledger.book(restated)
    assert not ledger.book(restated)
    ledger.book(page(1, [share("r1", 1, 5)], replace(finish("r1", 1), decode_tokens=21)))
    (request,) = found(ledger, 1)
    assert (request.energy_uj, request.method, request.quality) == (
        14,
        "calibrated",
        Quality.MEASURED,
    )
    assert request.finish.decode_tokens == 21


def test_costliest_first_then_by_name(ledger: SqliteLedger) -> None:
    shares = [share("r1", 0, 5), share("r3", 0, 9), share("r2", 0, 5)]
    ledger.book(page(0, shares, finish("r1", 0), finish("r2", 0), finish("r3", 0)))
    assert [item.finish.request for item in found(ledger, 0)] == ["r3", "r1", "r2"]


def test_a_request_without_energy_is_told_all_the_same(ledger: SqliteLedger) -> None:
    ledger.book(page(0, [], finish("r1", 0)))
    (request,) = found(ledger, 0)
    assert (request.energy_uj, request.method) == (0, "none")


def test_an_id_that_finished_twice_is_one_line_with_its_energy_once(ledger: SqliteLedger) -> None:
    pages = [
        page(0, [share("r1", 0, 40), share("r2", 0, 5)], finish("r1", 0, "a"), finish("r2", 0)),
        page(1, [share("r1", 1, 60)], finish("r1", 1, "a")),
    ]
    ledger.book_all(pages)
    span = T0_NS, T0_NS + 2 * WINDOW_NS
    first, second = ledger.requests(*span, ALL)
    assert (first.finish.request, first.energy_uj) == ("r1", 100)
    assert first.finish == replace(
        finish("r1", 1, "a"), prompt_tokens=200, cached_tokens=20, decode_tokens=40
    )
    assert second.energy_uj == 5
    assert MemoryStore(pages).requests(*span) == [first, second]
    # Of a window that holds one end alone it is still all that its copies say.
    assert [item.energy_uj for item in found(ledger, 1)] == [100]


def test_an_id_of_two_owners_has_a_line_for_each(ledger: SqliteLedger) -> None:
    shares = [share("r1", 0, 40, job="a"), share("r1", 0, 7, job="b")]
    pages = [
        page(0, shares, finish("r1", 0, "a"), replace(finish("r1", 0, "b"), finished_ns=T0_NS + 9)),
        page(1, [share("r1", 1, 60, job="a")], finish("r1", 1, "a")),
    ]
    ledger.book_all(pages)
    span = T0_NS, T0_NS + 2 * WINDOW_NS
    both = ledger.requests(*span, ALL)
    told = [(item.finish.job, item.energy_uj, item.finish.decode_tokens) for item in both]
    assert told == [("a", 100, 40), ("b", 7, 20)]
    assert MemoryStore(pages).requests(*span) == both
    assert ledger.requests(*span, Filters(job=("b",))) == both[1:]


def test_one_name_in_two_boots_is_two_requests(ledger: SqliteLedger) -> None:
    ledger.book(page(0, [share("r1", 0, 5)], finish("r1", 0)))
    later = page(1, [share("r1", 1, 8)], finish("r1", 1))
    ledger.book(replace(later, clock=replace(CLOCK, boot_id="boot-2")))
    assert found(ledger, 0)[0].energy_uj == 5
    assert found(ledger, 1)[0].energy_uj == 8


def test_a_request_keeps_its_energy_across_a_clock_step(ledger: SqliteLedger) -> None:
    ledger.book(page(0, [share("r1", 0, 5)]))
    later = page(1, [share("r1", 1, 8)], finish("r1", 1))
    ledger.book(replace(later, clock=replace(CLOCK, epoch_ns=1)))
    assert found(ledger, 1)[0].energy_uj == 13


def test_filters_select_requests(ledger: SqliteLedger) -> None:
    shares = [share("r1", 0, 100, Activity.PREFILL), share("r1", 0, 7), share("r2", 0, 5)]
    ledger.book(page(0, shares, finish("r1", 0, "4711"), finish("r2", 0)))
    for filters, names in (
        (Filters(), ["r1", "r2"]),
        (Filters(job=("47*",)), ["r1"]),
        (Filters(request=("r2",)), ["r2"]),
        (Filters(host=("h2",)), []),
        (Filters(engine=("vllm-?",), model=("llama",), workload=("vllm",)), ["r1", "r2"]),
    ):
        assert [item.finish.request for item in found(ledger, 0, filters)] == names
    decode = found(ledger, 0, Filters(activity=("decode",)))
    assert [item.energy_uj for item in decode] == [7, 5]
