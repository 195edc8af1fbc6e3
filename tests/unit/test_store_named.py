"""One request by its name: in every tier of what is kept of it, and never somebody else's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.pages import CPU0, GPU0, T0_NS, account, balanced_page, posting
from wattledger.records import (
    NS_PER_S,
    Activity,
    Amounts,
    Clock,
    FinishedRequest,
    Page,
    Posting,
    Quality,
)
from wattledger.store.named import NamedRequest
from wattledger.store.protocol import Retention
from wattledger.store.sqlite import SqliteLedger
from wattledger_collectors.engines.request_names import names_of

WINDOW_NS = 5 * NS_PER_S
ENGINE = "vllm-a"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    with SqliteLedger(tmp_path / "ledger.db", create=True) as opened:
        yield opened
        assert opened.check() == []


def share(request: str, at: int, energy_uj: int, activity: Activity = Activity.DECODE) -> Posting:
    start_ns = T0_NS + at * WINDOW_NS
    to = account(activity, engine=ENGINE, method="calibrated", job="red")
    tokens = (10, 0, 0) if activity is Activity.PREFILL else (0, 0, 3)
    amounts = Amounts(0, energy_uj, 0, *tokens)
    return posting(start_ns, start_ns + WINDOW_NS, amounts, to=to, request=request)


def finish(request: str, at: int) -> FinishedRequest:
    finished_ns = T0_NS + at * WINDOW_NS + 1
    return FinishedRequest(request, ENGINE, "llama", "vllm", "red", finished_ns, 12, 2, 3)


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


def found(ledger: SqliteLedger, asked: str) -> list[NamedRequest]:
    return ledger.named(names_of(asked))


def test_one_that_runs_and_its_end(ledger: SqliteLedger) -> None:
    ledger.book(page(0, [share("r", 0, 100, Activity.PREFILL), share("r", 0, 7)]))
    (running,) = found(ledger, "r")
    assert (running.finished_ns, running.job, running.energy_uj) == (None, "red", 107)
    assert (running.prompt_tokens, running.prefill_tokens, running.decode_tokens) == (10, 10, 3)
    assert running.last_ns == T0_NS + WINDOW_NS
    ledger.book(page(1, [share("r", 1, 5)], finish("r", 1)))
    (done,) = found(ledger, "r")
    assert done.finished_ns == T0_NS + WINDOW_NS + 1
    assert (done.prompt_tokens, done.cached_tokens, done.decode_tokens) == (12, 2, 3)
    assert (done.prefill_uj, done.decode_uj, done.prefill_tokens) == (100, 12, 10)
    assert (done.method, done.quality) == ("calibrated", Quality.MEASURED)
    (listed,) = ledger.requests(T0_NS, T0_NS + 10 * WINDOW_NS)
    assert (listed.prefill_uj, listed.decode_uj) == (done.prefill_uj, done.decode_uj)


def test_an_id_that_came_twice_is_their_sum(ledger: SqliteLedger) -> None:
    ledger.book(page(0, [share("r", 0, 5)], finish("r", 0)))
    ledger.book(page(1, [share("r", 1, 6)], finish("r", 1)))
    (both,) = found(ledger, "r")
    assert (both.energy_uj, both.prompt_tokens, both.decode_tokens) == (11, 24, 6)
    assert both.finished_ns == T0_NS + WINDOW_NS + 1


def test_when_raw_windows_are_gone_it_is_still_told(ledger: SqliteLedger) -> None:
    ledger.book(page(0, [share("r", 0, 5)], finish("r", 0)))
    day_ns = 86_400 * NS_PER_S
    while ledger.prune(Retention(raw_days=1), T0_NS + 30 * day_ns):
        pass
    (kept,) = found(ledger, "r")
    assert (kept.energy_uj, kept.prefill_tokens, kept.decode_tokens) == (5, 10, 3)
    while ledger.prune(Retention(raw_days=1, request_days=2), T0_NS + 30 * day_ns):
        pass
    assert found(ledger, "r") == []


def test_other_boots_are_others_and_the_latest_is_first(ledger: SqliteLedger) -> None:
    ledger.book(page(0, [share("r", 0, 5)], finish("r", 0)))
    later = page(3, [share("r", 3, 6)], finish("r", 3))
    ledger.book(replace(later, clock=Clock("h1", "boot-2", later.clock.epoch_ns)))
    assert [item.key.boot_id for item in found(ledger, "r")] == ["boot-2", "boot-1"]
    assert [item.energy_uj for item in found(ledger, "r")] == [6, 5]


def test_the_sure_names_go_before_the_likely_ones(ledger: SqliteLedger) -> None:
    names = ("chatcmpl-a", "chatcmpl-a_1", "cmpl-a-0", "cmpl-a-0-0", "cmpl-ab-0", "cmpl-b-0#1")
    shares = [share(name, 0, 5) for name in names]
    ledger.book(page(0, shares))
    assert {item.key.request for item in found(ledger, "a")} == {"chatcmpl-a", "cmpl-a-0"}
    assert {item.key.request for item in found(ledger, "a_1")} == {"chatcmpl-a_1"}
    assert {item.key.request for item in found(ledger, "b")} == {"cmpl-b-0#1"}
    assert found(ledger, "c") == []


def test_likely_names_where_there_are_no_others(ledger: SqliteLedger) -> None:
    ledger.book(page(0, [share(f"chatcmpl-a_{at}", 0, 5) for at in range(3)]))
    assert len(found(ledger, "a")) == len(found(ledger, "chatcmpl-a")) == 3


def test_the_index_is_used(ledger: SqliteLedger) -> None:
    """Not a look at every request there is."""
    plan = ledger._conn.execute(
        "EXPLAIN QUERY PLAN SELECT id FROM request WHERE request >= ? AND request < ?", ("a", "b")
    ).fetchall()
    assert any("INDEX" in row[-1] and "SEARCH" in row[-1] for row in plan)
