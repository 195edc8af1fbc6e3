"""Whose a request is when its id comes again as another client's, or from two servers at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.daemon_parts import BOOT_ID
from fakes.evidence import CLOCK, PID, counter, gpu, ns, pages_of, step
from fakes.pipeline_world import ALL_TIME, S, begin
from fakes.push_client import a_batch
from wattledger.records import (
    Engine,
    Evidence,
    Finish,
    Page,
    Process,
    ProcessUse,
    RequestOwner,
    RequestTokens,
    Step,
    UseRecord,
)
from wattledger.trace import decode, encode
from wattledger_daemon.heart.accountant import Accountant, AccountantSettings
from wattledger_daemon.heart.owners import LEAST, Owners

Sums = Counter[tuple[str | None, str]]


def world(seconds: int = 20) -> list[Evidence]:
    """300 W, held by one engine."""
    return [
        gpu(),
        *counter([(t / 10, t * 30.0) for t in range(seconds * 10 + 1)]),
        Process(PID, 1, "chat", None),
        Engine("e", "vllm", "m", (PID,)),
        UseRecord("gpu0", 0, ns(seconds), (ProcessUse(PID, 60, 1 << 30),)),
    ]


def sums(pages: list[Page]) -> Sums:
    """Energy, tokens and requests by job."""
    found: Sums = Counter()
    for posting in (p for page in pages for p in page.postings):
        job, amounts = posting.account.job, posting.amounts
        if posting.account.activity.value in ("prefill", "decode"):
            found[job, "uj"] += amounts.energy_uj
            found[job, "tokens"] += amounts.prefill_tokens + amounts.decode_tokens
            found[job, "requests"] += amounts.requests
    return +found


def used_again(gap_s: float) -> list[Evidence]:
    """Half a second of acme's request, and then a quarter of another one's of the same id."""
    again_s = 1 + gap_s
    return [
        RequestOwner("e", "r", None, "acme", ns(1)),
        step(1, 1, 1.5, [("r", 10, 1)]),
        Finish("e", "r", ns(1.5), 10, 0, 1),
        RequestOwner("e", "r", None, "beta", ns(again_s)),
        step(2, again_s, again_s + 0.25, [("r", 20, 2)]),
        Finish("e", "r", ns(again_s + 0.25), 20, 0, 2),
    ]


@pytest.mark.parametrize("gap_s", [0.5, 1, 12])
@pytest.mark.parametrize("order", [1, -1])
def test_an_id_that_comes_again_takes_nothing_of_its_former_clients(
    gap_s: float, order: int
) -> None:
    pages = pages_of([*world(), *used_again(gap_s)][::order])
    assert sums(pages) == {
        ("acme", "uj"): 150_000_000,
        ("acme", "tokens"): 11,
        ("acme", "requests"): 1,
        ("beta", "uj"): 75_000_000,
        ("beta", "tokens"): 22,
        ("beta", "requests"): 1,
    }
    done = [(f.job, f.prompt_tokens) for page in pages for f in page.finished]
    assert done == [("acme", 10), ("beta", 20)]


def test_a_window_that_is_made_again_keeps_its_owner() -> None:
    accountant = Accountant(CLOCK, AccountantSettings())
    news = [*world(60), *used_again(12)]
    for record in news:
        accountant.observe(record)
    pages = {}
    for page in accountant.due(ns(50)):
        accountant.booked(page)
        pages[page.start_ns] = page
    before = sums([*pages.values()])
    accountant.observe(step(3, 2, 2.5, [("late", 1, 0)]))
    restated = accountant.due(ns(50))
    assert len(restated) == 1
    pages |= {page.start_ns: page for page in restated}
    after = sums([*pages.values()])
    assert after == before + Counter({(None, "uj"): 150_000_000, (None, "tokens"): 1})


def test_an_owners_moment_is_kept_in_a_trace() -> None:
    owner = RequestOwner("e", "r", None, "acme", 7)
    assert decode(encode(owner)) == owner
    assert decode('{"type":"owner","engine":"e","request":"r","job":"acme"}') == replace(
        owner, since_ns=0
    )


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_an_id_with_several_owners_is_as_several_requests(random: Random) -> None:
    turns = sorted(random.sample(range(1, 10), random.randrange(4)))
    jobs = [random.choice(["acme", "beta", None]) for _ in range(len(turns) + 1)]
    held = list(zip([0, *turns], jobs, strict=True))
    ids = ["r", "s"]
    apart: list[Evidence] = []
    again: list[Evidence] = []
    owners = []
    contexts = accumulate(random.choice([1, 1, 1, 40]) for _ in range(12))
    for seq, context in enumerate(contexts):
        start_s = seq + random.choice([0.0, 0.5, -0.5]) if seq else 0.0
        holder = max(at for at, (since_s, _) in enumerate(held) if since_s <= max(start_s, 0))
        extent = ns(max(start_s, 0)), ns(max(start_s, 0) + 1)
        parts = [
            (name, random.choice([0, 0, 9]), random.choice([1, 1, 0]), context) for name in ids
        ]
        again.append(Step("e", seq, *extent, tuple(RequestTokens(*part) for part in parts)))
        (_, *counts), other = parts
        named = RequestTokens(f"r{holder}", *counts)
        apart.append(Step("e", seq, *extent, (named, RequestTokens(*other))))
    for at, (since_s, job) in enumerate(held):
        owners.append(RequestOwner("e", f"r{at}", None, job))
        again_owner = RequestOwner("e", "r", None, job, ns(since_s))
        again.insert(random.randrange(len(again) + 1), again_owner)
    left, right = sums(pages_of([*world(), *apart, *owners])), sums(pages_of([*world(), *again]))
    assert left.keys() == right.keys()
    for key, count in left.items():
        assert abs(right[key] - count) <= (12 if key[1] == "uj" else 0), key


def test_owners_of_one_id_are_bounded_by_what_is_remembered() -> None:
    owners = Owners()
    for at in range(6 * LEAST):
        owners.tell(RequestOwner("e", "r", None, f"t{at}", 10 * at))
        owners.forget(lambda _: {"r"}, 10 * at - 95)
    assert len([*owners]) <= 2 * LEAST + 20
    owners.forget(lambda _: {"r"}, 0)
    kept = owners.of("e")["r"]
    assert kept == sorted(kept, key=lambda owner: owner.since_ns)
    assert kept[-1].job == f"t{6 * LEAST - 1}"


def test_the_same_owner_again_takes_no_room() -> None:
    owners = Owners()
    for at in range(2 * LEAST):
        owners.tell(RequestOwner("e", "r", None, "acme", at))
    owners.forget(lambda _: {"r"}, 0)
    assert [*owners] == [RequestOwner("e", "r", None, "acme", 0)]
    owners.tell(RequestOwner("e", "r", None, "beta", 0))
    assert [*owners] == [RequestOwner("e", "r", None, "beta", 0)]


@pytest.mark.parametrize("ids", [("a", "b"), ("a", "a")])
@pytest.mark.parametrize("order", [1, -1])
def test_one_id_at_two_servers_with_two_tenants_is_nobodys(
    tmp_path: Path, ids: tuple[str, str], order: int
) -> None:
    daemon = begin(tmp_path)
    servers = [("v/1", ids[0], "acme", 9), ("v/2", ids[1], "beta", 1)][::order]
    for sequence in range(1, 10):
        second = 1000 + sequence
        start_ns, end_ns = round((second - 0.9) * S), round((second - 0.1) * S)
        for source, name, tenant, tokens in servers:
            ends = [(name, end_ns, 10, 0, tokens)] if sequence == 9 else []
            batch = a_batch(
                sequence,
                [(start_ns, end_ns, [(name, 0, tokens, sequence)])],
                ends,
                boot_id=BOOT_ID,
                sent_ns=daemon.time.now_ns,
                pids=[41],
                job="engine",
                source=source,
            )
            batch.request_tenants.append(tenant)
            daemon.sources.take(batch, daemon.time.now_ns)
        daemon.run(second)
    daemon.run(1030)
    daemon.pipeline.finish()
    tokens_by: Counter[str | None] = Counter()
    for item in daemon.ledger.slices(ALL_TIME).slices:
        tokens_by[item.account.job] += item.amounts.decode_tokens
    if ids[0] == ids[1]:
        assert +tokens_by == {"engine": 90}
    else:
        assert +tokens_by == {"acme": 81, "beta": 9}
