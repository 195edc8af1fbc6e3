"""A preview says what would be booked, and leaves no trace in what is."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.evidence import CLOCK, EPOCH_NS, counter, gpu, joules, ns, owned_engine, step
from wattledger.records import (
    Activity,
    CounterReading,
    Device,
    DeviceKind,
    Engine,
    Evidence,
    Finish,
    GroupUse,
    Page,
    ProcessUse,
    StaticBasis,
    UseRecord,
)
from wattledger_daemon.heart.accountant import Accountant, AccountantSettings

LEARNING = AccountantSettings(learn_idle=True)
CPU = Device("cpu0", DeviceKind.CPU)


def metered(until_s: float, watts: float = 100.0) -> list[Evidence]:
    return counter((i / 10, i / 10 * watts) for i in range(round(until_s * 10) + 1))


def an_accountant(*evidence: Evidence) -> Accountant:
    accountant = Accountant(CLOCK, AccountantSettings())
    for record in (gpu(), *evidence):
        accountant.observe(record)
    return accountant


def spans(pages: Sequence[Page]) -> list[tuple[float, float]]:
    return [((p.start_ns - EPOCH_NS) / 1e9, (p.end_ns - EPOCH_NS) / 1e9) for p in pages]


def test_it_is_what_a_flush_would_book() -> None:
    accountant = an_accountant(
        *owned_engine(),
        *metered(12.5),
        step(1, 6, 7, [("r", 100, 0)]),
        step(2, 11, 12, [("r", 0, 1)]),
        Finish("e", "r", ns(12), 100, 0, 1),
    )
    for page in accountant.due(ns(16)):
        accountant.booked(page)
    ahead = accountant.preview(ns(12.5))
    assert spans(ahead) == [(5, 10), (10, 12.5)]
    assert ahead == accountant.flush(ns(12.5))
    assert joules(ahead) == {"prefill": 100, "decode": 100, "engine_idle": 550}
    assert [finish.request for finish in accountant.unbooked_finishes()] == ["r"]
    assert accountant.metered_until_ns == ns(12.5)


def test_who_used_a_device_last_is_taken_to_use_it_still() -> None:
    """Use is told each 2 s only: without this, the newest steps would get nothing."""
    evidence = (*owned_engine(end_s=2), *metered(4), step(1, 3, 4, [("r", 100, 0)]))
    accountant = an_accountant(*evidence)
    assert joules(accountant.preview(ns(4))) == {"engine_idle": 300, "prefill": 100}
    assert joules(accountant.flush(ns(4))) == {"engine_idle": 200, "unattributed": 200}


def test_who_used_it_long_ago_is_not() -> None:
    accountant = an_accountant(*owned_engine(end_s=2), *metered(14))
    for page in accountant.due(ns(20)):
        accountant.booked(page)
    assert joules(accountant.preview(ns(14))) == {"unattributed": 400}


def test_a_device_that_fell_silent_holds_nobody_up() -> None:
    accountant = an_accountant(CPU, CounterReading("cpu0", ns(1), 5), *metered(9))
    assert accountant.metered_until_ns == ns(9)


def test_a_preview_does_not_choose_the_device_of_an_engines_tokens() -> None:
    """Asked before the GPU's use is known, the CPU alone is seen to be the engine's."""
    engine = Engine("e", "vllm", "m", (41,))
    cpu_use = UseRecord("cpu0", 0, ns(4), (ProcessUse(41, ticks=5),), total=10)
    gpu_use = UseRecord("gpu0", 0, ns(4), (ProcessUse(41, 60, 1 << 30),))
    cpu = [CounterReading("cpu0", ns(t_s), t_s * 10_000_000) for t_s in range(5)]
    accountant = an_accountant(CPU, engine, *metered(4), *cpu, cpu_use)
    accountant.observe(step(1, 1, 2, [("r", 7, 0)]))
    (before,) = accountant.preview(ns(4))
    assert [p.device for p in before.postings if p.amounts.prefill_tokens] == ["cpu0"]
    accountant.observe(gpu_use)
    (booked,) = accountant.flush(ns(4))
    assert [p.device for p in booked.postings if p.amounts.prefill_tokens] == ["gpu0"]


def test_a_preview_teaches_no_idle_power() -> None:
    """Of a partial window whose energy is not all there yet: it would learn far too little."""

    def quiet(asked: bool) -> list[Page]:
        accountant = Accountant(CLOCK, LEARNING)
        accountant.observe(gpu())
        pages: list[Page] = []
        for second in range(120):
            accountant.observe(UseRecord("gpu0", ns(second), ns(second + 1), ()))
            for tenth in range(second * 10, second * 10 + 10):
                # Less and less: each minute is lower than the one before.
                energy_uj = tenth * 9_000_000 - tenth * tenth * 1000
                accountant.observe(CounterReading("gpu0", ns(tenth / 10), energy_uj))
            if asked:
                accountant.preview(ns(second + 0.9))
            for page in accountant.due(ns(second + 1)):
                pages.append(page)
                accountant.booked(page)
        return pages

    pages = quiet(asked=True)
    assert pages == quiet(asked=False)
    assert any(page.devices[0].static_basis is StaticBasis.LEARNED for page in pages)


# ------------------------------------------------------------------------------ the law

TIMES = st.integers(0, 400).map(lambda tenths: tenths / 10)
STEPS = st.builds(
    lambda at_s, tenths, name: (at_s, step(round(at_s * 10), at_s, at_s + tenths / 10, [name])),
    TIMES,
    st.integers(0, 20),
    st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 3)),
)
FINISHES = st.builds(
    lambda at_s, name: (at_s, Finish("e", name, ns(at_s), 3, 1, 2)), TIMES, st.sampled_from("abc")
)
USES = st.builds(
    lambda at_s, pid, held: (
        at_s,
        UseRecord("gpu0", ns(at_s), ns(at_s + 2), (ProcessUse(pid, 50, 1 << 30),) * held),
    ),
    TIMES,
    st.sampled_from((41, 42)),
    st.booleans(),
)
CPU_USES = st.builds(
    lambda at_s, ticks: (
        at_s,
        UseRecord(
            "cpu0",
            ns(at_s),
            ns(at_s + 2),
            (ProcessUse(41, ticks=ticks),),
            20,
            (GroupUse("w", None, (), 3),),
            200,
        ),
    ),
    TIMES,
    st.integers(0, 9),
)
ENGINES = st.builds(
    lambda at_s, pids: (at_s, Engine("e", "vllm", "m", pids)),
    TIMES,
    st.sampled_from(((41,), (42,), (41, 42))),
)
TOLD = st.lists(
    st.tuples(st.one_of(STEPS, FINISHES, USES, CPU_USES, ENGINES), st.integers(0, 150)),
    max_size=25,
)


def life(told: Sequence[tuple[float, Evidence]], asked: frozenset[int]) -> list[Page]:
    """40 s: what is told at each tenth, what is booked at each second, and previews between."""
    accountant = Accountant(CLOCK, LEARNING)
    for record in (gpu(), CPU):
        accountant.observe(record)
    waiting = sorted(told, key=lambda item: item[0])
    pages: list[Page] = []
    for tenth in range(600):
        if tenth <= 400:
            accountant.observe(CounterReading("gpu0", ns(tenth / 10), tenth * 3_000_001))
            accountant.observe(CounterReading("cpu0", ns(tenth / 10), tenth // 3 * 700_000))
        while waiting and waiting[0][0] <= tenth / 10:
            accountant.observe(waiting.pop(0)[1])
        if tenth in asked:
            accountant.preview(ns(tenth / 10))
        if tenth % 10 == 0:
            for page in accountant.due(ns(tenth / 10)):
                pages.append(page)
                accountant.booked(page)
    return pages + accountant.flush(ns(60))


@settings(max_examples=40, deadline=None)
@given(TOLD, st.frozensets(st.integers(0, 599), max_size=40))
def test_a_fold_with_previews_in_between_books_the_same_pages(
    told: list[tuple[tuple[float, Evidence], int]], asked: frozenset[int]
) -> None:
    delayed = [(at_s + late / 10, record) for (at_s, record), late in told]
    assert life(delayed, asked) == life(delayed, frozenset())


@settings(max_examples=40, deadline=None)
@given(TOLD, st.integers(1, 400))
def test_a_preview_keeps_each_devices_energy(
    told: list[tuple[tuple[float, Evidence], int]], at: int
) -> None:
    accountant = Accountant(CLOCK, LEARNING)
    for record in (gpu(), CPU):
        accountant.observe(record)
    for tenth in range(at + 1):
        accountant.observe(CounterReading("gpu0", ns(tenth / 10), tenth * 3_000_001))
        accountant.observe(CounterReading("cpu0", ns(tenth / 10), tenth // 3 * 700_000))
    for (_, item), _ in told:
        accountant.observe(item)
    pages = accountant.preview(ns(at / 10))
    for page in pages:
        for meter in page.metered:
            posted = [p for p in page.postings if p.device == meter.device]
            assert sum(p.amounts.energy_uj for p in posted) == meter.energy_uj
            assert all(p.amounts.energy_uj >= 0 for p in posted)
    assert {p.account.activity for page in pages for p in page.postings} <= set(Activity)
