"""Several tenants on one engine, requests of nobody in particular, and coarse engines."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

from fakes.evidence import EPOCH_NS, PID, counter, gpu, joules, ns, pages_of, step
from fakes.memory_store import MemoryStore
from wattledger.carbon.intensity import ConstantIntensity
from wattledger.carbon.pue import ConstantPue
from wattledger.records import (
    Activity,
    CounterReading,
    Device,
    DeviceKind,
    Engine,
    Evidence,
    Finish,
    Page,
    Process,
    ProcessUse,
    RequestOwner,
    Step,
    UseRecord,
)
from wattledger.statement.carbon import carbon_statement
from wattledger.statement.query import CarbonQuery, UsageQuery
from wattledger.statement.usage import usage_statement
from wattledger.timespan import Window
from wattledger.trace import TraceHeader, decode, encode
from wattledger_daemon.heart.accountant import Accountant, AccountantSettings
from wattledger_daemon.heart.owners import LEAST

P, D = Activity.PREFILL, Activity.DECODE
TENANTS = ("acme", "beta", "corp")


def world(*more: Evidence, coarse: bool = False) -> list[Evidence]:
    """100 W for 10 s, held by one engine of workload chat."""
    return [
        gpu(),
        *counter([(t / 10, t * 10) for t in range(101)]),
        Process(PID, 1, "chat", None),
        Engine("e", "vllm", "m", (PID,), coarse),
        UseRecord("gpu0", 0, ns(100), (ProcessUse(PID, 60, 1 << 30),)),
        *more,
    ]


def three_tenants() -> list[Evidence]:
    """A prefill each in the first second, then five seconds of decode together."""
    requests = [f"{tenant}-{n}" for tenant in TENANTS for n in range(2)]
    prefills = step(0, 0, 1, [(name, 100, 0) for name in requests])
    decodes = [step(n, n, n + 1, [(name, 0, 1) for name in requests]) for n in range(1, 6)]
    return [
        prefills,
        *decodes,
        *(Finish("e", name, ns(6), 100, 20, 5) for name in requests),
        *(RequestOwner("e", name, None, name.partition("-")[0]) for name in requests),
        step(9, 6, 7, [("own", 0, 1)]),
        Finish("e", "own", ns(7), 0, 0, 1),
    ]


def by_job(pages: list[Page]) -> dict[tuple[str | None, str], int]:
    sums: Counter[tuple[str | None, str]] = Counter()
    for posting in (p for page in pages for p in page.postings):
        sums[posting.account.job, posting.account.activity.value] += posting.amounts.energy_uj
    return {key: uj for key, uj in sums.items() if uj}


def test_tenants_bear_what_their_requests_took_and_the_engine_its_idle_time() -> None:
    pages = pages_of(world(*three_tenants()))
    expected: dict[tuple[str | None, str], int] = {}
    expected |= {(None, "engine_idle"): 300_000_000, (None, "decode"): 100_000_000}
    expected |= {(tenant, "prefill"): 33_333_333 for tenant in TENANTS}
    expected |= {(tenant, "decode"): 166_666_667 for tenant in TENANTS}
    booked = by_job(pages)
    assert booked.keys() == expected.keys()
    assert all(abs(booked[key] - expected[key]) <= 4 for key in expected)
    assert sum(booked.values()) == 1_000_000_000
    assert {p.account.workload for page in pages for p in page.postings} == {"chat"}
    finished = {(f.request, f.workload, f.job) for page in pages for f in page.finished}
    assert ("acme-1", "chat", "acme") in finished
    assert ("own", "chat", None) in finished
    done: Counter[str | None] = Counter()
    for posting in (p for page in pages for p in page.postings):
        done[posting.account.job] += posting.amounts.requests
    assert done == {"acme": 2, "beta": 2, "corp": 2, None: 1}


def test_statements_show_tenants_by_phase() -> None:
    lines = map(encode, world(*three_tenants()))
    read = [record for record in map(decode, lines) if not isinstance(record, TraceHeader)]
    store = MemoryStore(pages_of(read))
    span = Window(EPOCH_NS, EPOCH_NS + ns(10))
    usage = usage_statement(store, UsageQuery(window=span, by=("job", "activity")))
    found = {(group.by["job"], group.by["activity"]): group.total.amounts for group in usage.groups}
    for tenant in TENANTS:
        assert found[tenant, "prefill"].prefill_tokens == 200
        assert found[tenant, "decode"].decode_tokens == 10
        assert found[tenant, "decode"].requests == 2
        assert found[tenant, "decode"].cached_tokens == 40
    query = CarbonQuery(
        window=span, by=("job",), intensity=ConstantIntensity(100.0), pue=ConstantPue(1.0)
    )
    carbon = carbon_statement(store, query)
    grams = {group.by["job"]: group.total.grams.operational for group in carbon.groups}
    assert set(grams) == {*TENANTS, None}
    assert abs(grams["acme"] - 200 / 3.6e6 * 100) < 1e-9


def test_an_owner_may_leave_the_job_or_the_workload_to_the_engine() -> None:
    owners = [RequestOwner("e", "a", "batch", None), RequestOwner("e", "b", None, "j")]
    pages = pages_of(world(step(1, 0, 1, [("a", 0, 1), ("b", 0, 1), ("c", 0, 1)]), *owners))
    found = {(p.request, p.account.workload, p.account.job) for p in pages[0].request_postings}
    assert found == {("a", "batch", None), ("b", "chat", "j"), ("c", "chat", None)}


def test_the_last_word_about_a_request_holds_for_what_is_booked_later() -> None:
    accountant = Accountant(pages_of(world())[0].clock, AccountantSettings())
    for record in world(RequestOwner("e", "r", None, "one")):
        accountant.observe(record)
    jobs = []
    for start_s, job in ((1, "one"), (6, "two")):
        accountant.observe(RequestOwner("e", "r", None, job))
        accountant.observe(step(start_s, start_s, start_s + 1, [("r", 0, 1)]))
        for page in accountant.due(ns(start_s + 14)):
            accountant.booked(page)
            jobs += [p.account.job for p in page.request_postings]
    assert jobs == ["one", "two"]


def test_owners_are_told_again_and_forgotten_with_their_requests() -> None:
    accountant = Accountant(pages_of(world())[0].clock, AccountantSettings(horizon_ns=ns(20)))
    for record in world():
        accountant.observe(record)
    kept = RequestOwner("e", "kept", None, "t")
    accountant.observe(kept)
    for second in range(60):
        accountant.observe(step(second, second, second + 1, [("kept", 0, 1)]))
        for n in range(100):
            accountant.observe(RequestOwner("e", f"r{second}-{n}", None, "t"))
        accountant.observe(CounterReading("gpu0", ns(second + 1), ns(second + 1)))
        accountant.observe(UseRecord("gpu0", ns(second), ns(second + 1), (ProcessUse(PID),)))
        for page in accountant.due(ns(second)):
            accountant.booked(page)
    known = [item for item in accountant.roster() if isinstance(item, RequestOwner)]
    assert kept in known
    assert len(known) <= 4 * LEAST


def test_nobodys_tokens_are_booked_by_phase_to_the_engine_and_to_no_request() -> None:
    steps = [step(1, 0, 1, [("", 100, 10), ("r", 0, 10)]), step(2, 2, 3, [("", 0, 5)])]
    ends = [Finish("e", "", ns(1), 300, 50, 40, count=3), Finish("e", "r", ns(1), 10, 0, 10)]
    pages = pages_of(world(*steps, *ends, RequestOwner("e", "", None, "nobody")))
    assert {p.request for page in pages for p in page.request_postings} == {"r"}
    assert [f.request for page in pages for f in page.finished] == ["r"]
    tokens: dict[str, int] = defaultdict(int)
    requests = cached = 0
    for amounts in (p.amounts for page in pages for p in page.postings):
        tokens["prefill"] += amounts.prefill_tokens
        tokens["decode"] += amounts.decode_tokens
        requests += amounts.requests
        cached += amounts.cached_tokens
    assert (dict(tokens), requests, cached) == ({"prefill": 100, "decode": 25}, 4, 50)
    assert sum(joules(pages).values()) == 1000
    # Weights 100 and 80 of nobody's, 80 of r's in the first step; all of the second.
    mine = sum(p.amounts.energy_uj for page in pages for p in page.request_postings)
    assert abs(mine - 100e6 * 80 / 260) <= 2


def test_finishes_of_nobody_are_the_same_only_where_all_is_the_same() -> None:
    end = Finish("e", "", ns(1), 300, 50, 40, count=3)
    ends = [end, end, replace(end, t_ns=ns(1) + 1), replace(end, count=4)]
    pages = pages_of(world(*ends))
    assert sum(p.amounts.requests for page in pages for p in page.postings) == 10
    assert sum(page.duplicates for page in pages) == 1


def test_phases_of_a_coarse_engine_say_so() -> None:
    steps = [step(1, 0, 1, [("", 100, 10), ("r", 0, 10)])]
    ends = [Finish("e", "", ns(1), 300, 50, 40, count=3)]
    pages = pages_of(world(*steps, *ends, coarse=True))
    methods = {(p.account.activity, p.account.method) for page in pages for p in page.postings}
    assert methods == {(P, "coarse"), (D, "coarse"), (Activity.ENGINE_IDLE, "steps")}


def test_what_a_source_assumed_stands_behind_coarse_too() -> None:
    cpu = Device("cpu0", DeviceKind.CPU)
    use = UseRecord("cpu0", 0, ns(10), (ProcessUse(PID, ticks=5),), 5, basis="guess")
    more = [cpu, *counter([(0, 0), (10, 50)], "cpu0"), use, step(1, 0, 1, [("", 1, 0)])]
    pages = pages_of(world(*more, coarse=True))
    methods = {
        p.account.method
        for page in pages
        for p in page.postings
        if p.device == "cpu0" and p.account.activity is P
    }
    assert methods == {"coarse/guess"}


def test_an_empty_step_and_a_step_of_nobody_are_not_the_same() -> None:
    unknown = pages_of(world(Step("e", 1, 0, ns(1), ())))
    nobody = pages_of(world(step(1, 0, 1, [("", 0, 1)])))
    assert joules(unknown) == {"unattributed": 100, "engine_idle": 900}
    assert joules(nobody) == {"decode": 100, "engine_idle": 900}
