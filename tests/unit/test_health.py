from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.daemon_parts import CLOCK, EPOCH_NS
from wattledger.records import (
    NS_PER_S,
    Account,
    Activity,
    Amounts,
    CounterReading,
    Device,
    DeviceKind,
    Evidence,
    Finish,
    Page,
    Posting,
    PowerReading,
    Quality,
    RequestTokens,
    Step,
)
from wattledger_daemon.batches import Events
from wattledger_daemon.crosscheck import CrossCheck
from wattledger_daemon.health import Health, Running, Snapshot
from wattledger_daemon.heart.columns import columns_of
from wattledger_daemon.live import MAX_GROUPS, OTHERS, Figures, Group, LastWindows, figures

S = NS_PER_S
GPU = Device("gpu0", DeviceKind.GPU)
NODE = Device("node0", DeviceKind.NODE)


def posting(
    device: str = "gpu0",
    *,
    energy_uj: int = 0,
    activity: Activity = Activity.PROCESS,
    workload: str | None = None,
    engine: str | None = None,
    quality: Quality = Quality.MEASURED,
    tokens: tuple[int, int] = (0, 0),
) -> Posting:
    account = Account(activity, quality, "m", workload=workload, engine=engine)
    amounts = Amounts(0, energy_uj, S, tokens[0], 0, tokens[1])
    return Posting(device, account, 0, S, amounts)


def page(start_s: int, postings: Sequence[Posting], length_s: int = 5) -> Page:
    start_ns = EPOCH_NS + start_s * S
    end_ns = start_ns + length_s * S
    return Page(CLOCK, start_ns, end_ns, (GPU, NODE), (), tuple(postings))


def figures_of(*pages: Page) -> Figures:
    last = LastWindows()
    for one in pages:
        last.booked(one)
    found = figures(last.windows)
    assert found is not None
    return found


# ------------------------------------------------------------------- booked windows


def test_power_and_energy_per_token_of_a_workload_and_its_engine() -> None:
    prefill = posting(
        energy_uj=100_000_000,
        activity=Activity.PREFILL,
        workload="w",
        engine="e",
        tokens=(1000, 0),
    )
    decode = replace(prefill, account=replace(prefill.account, activity=Activity.DECODE))
    decode = replace(decode, amounts=Amounts(0, 400_000_000, S, 0, 0, 200, 3))
    idle = posting(energy_uj=500_000_000, activity=Activity.ENGINE_IDLE, workload="w", engine="e")
    nobody = posting(energy_uj=50_000_000, activity=Activity.IDLE, quality=Quality.ESTIMATED)
    whole = posting("node0", energy_uj=9_000_000_000)
    found = figures_of(page(0, [prefill, decode, idle, nobody, whole]), page(5, []))
    assert (found.span_ns, found.end_ns) == (10 * S, 10 * S)
    (first, sums), (second, rest) = found.groups
    assert (first, second) == (Group("w", None), Group(None, None, "idle"))
    assert found.power_w(sums.energy_uj) == pytest.approx(100.0)
    assert (rest.energy_uj, rest.estimated_uj) == (50_000_000, 50_000_000)
    engine = found.engines["e"].sums
    assert (engine.prefill_uj, engine.decode_uj) == (100_000_000, 400_000_000)
    assert (engine.prefill_tokens, engine.decode_tokens, engine.requests) == (1000, 200, 3)
    assert found.per_s(engine.decode_tokens) == pytest.approx(20.0)


def test_a_late_page_takes_the_place_of_the_one_before() -> None:
    pages = [page(0, [posting(energy_uj=5, workload="a")]), page(5, [])]
    restated = page(0, [posting(energy_uj=3, workload="a"), posting(energy_uj=2, workload="b")])
    found = dict(figures_of(*pages, restated).groups)
    assert {group.workload: sums.energy_uj for group, sums in found.items()} == {"a": 3, "b": 2}


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), min_size=1, max_size=60))
def test_the_means_are_those_of_the_last_thirty_seconds_whatever_is_booked_again(
    booked: list[tuple[int, int]],
) -> None:
    kept = dict(booked)
    latest = max(kept)
    found = figures_of(*(page(5 * at, [posting(energy_uj=e, workload="w")]) for at, e in booked))
    assert found.end_ns == 5 * (latest + 1) * S
    assert found.span_ns <= 30 * S
    wanted = sum(energy for at, energy in kept.items() if at > latest - 6)
    assert sum(sums.energy_uj for _, sums in found.groups) == wanted


def test_beyond_so_many_groups_the_smallest_are_one() -> None:
    many = [posting(energy_uj=n, workload=f"w{n}") for n in range(1, MAX_GROUPS + 101)]
    found = figures_of(page(0, many)).groups
    assert len(found) == MAX_GROUPS
    assert found[0][0].workload == f"w{MAX_GROUPS + 100}"
    assert found[-1][0] == OTHERS
    assert sum(sums.energy_uj for _, sums in found) == sum(p.amounts.energy_uj for p in many)


def test_an_hour_in_which_nothing_happened_is_no_mean_of_now() -> None:
    last = LastWindows()
    last.booked(page(0, [posting(energy_uj=5)], length_s=3600))
    assert figures(last.windows) is None


# ----------------------------------------------------------------- counter and gauge


def fed(
    health: Health, seconds: range, power_w: float, *, counter_w: float | None = None
) -> list[Evidence]:
    rate = power_w if counter_w is None else counter_w
    evidence: list[Evidence] = []
    for t in seconds:
        evidence.append(CounterReading("gpu0", t * S, round(t * rate * 1e6)))
        evidence.append(PowerReading("gpu0", t * S, round(power_w * 1e6)))
    health.saw(evidence)
    return evidence


def ratio(health: Health, t_s: int) -> float | None:
    return snapshot(health, t_s).devices[0].counter_ratio


def snapshot(health: Health, t_s: int) -> Snapshot:
    return health.snapshot(t_s * S, (), (), 0)


def a_health() -> Health:
    health = Health()
    health.saw([GPU])
    return health


def test_the_ratio_is_told_after_a_minute_of_both() -> None:
    health = a_health()
    fed(health, range(60), 300.0, counter_w=200.0)
    assert ratio(health, 59) is None
    fed(health, range(60, 62), 300.0, counter_w=200.0)
    assert ratio(health, 61) == pytest.approx(2 / 3)


def test_the_ratio_slides_so_that_what_is_mended_is_forgotten() -> None:
    health = a_health()
    fed(health, range(100), 100.0, counter_w=50.0)
    energy_uj = round(99 * 50.0 * 1e6)
    for t in range(100, 500):
        energy_uj += 100_000_000
        health.saw([CounterReading("gpu0", t * S, energy_uj)])
        health.saw([PowerReading("gpu0", t * S, 100_000_000)])
    assert ratio(health, 499) == pytest.approx(1.0)


@pytest.mark.parametrize("breach", ["a reset", "a gap"])
def test_a_reset_and_a_gap_start_the_check_anew(breach: str) -> None:
    health = a_health()
    fed(health, range(90), 100.0)
    assert ratio(health, 89) == pytest.approx(1.0)
    start = 90 if breach == "a reset" else 97
    energy_uj = 5 if breach == "a reset" else 10**12
    health.saw([CounterReading("gpu0", start * S, energy_uj)])
    health.saw([PowerReading("gpu0", start * S, 100_000_000)])
    assert ratio(health, start) is None


def test_a_gauge_of_zero_has_no_ratio() -> None:
    check = CrossCheck()
    for t in range(100):
        check.take(PowerReading("gpu0", t * S, 0), CounterReading("gpu0", t * S, 0))
    assert check.ratio is None


def test_power_that_nobody_reads_any_more_is_unknown() -> None:
    health = a_health()
    fed(health, range(5), 250.0)
    assert snapshot(health, 5).devices[0].power_w == pytest.approx(250.0)
    assert snapshot(health, 30).devices[0].power_w is None


# ------------------------------------------------------------------ engines, the work


def test_running_requests_are_those_of_the_latest_step_that_did_not_finish() -> None:
    health = Health()
    both = (RequestTokens("r1", 0, 1, 9), RequestTokens("r2", 5, 0, 0))
    step = Step("e", 1, 0, S, both)
    health.reported([Events(columns_of(step), (Finish("e", "r1", S, 5, 0, 2),))])
    assert snapshot(health, 1).running == {"e": Running(S, 1)}
    health.reported([Events(columns_of(Step("e", 0, 0, S // 2, ())), ())])
    assert snapshot(health, 1).running == {"e": Running(S, 1)}
    health.reported([Events(columns_of(Step("e", 2, S, 2 * S, ())), ())])
    assert snapshot(health, 2).running == {"e": Running(2 * S, None)}
    nobody = (RequestTokens("", 40, 10, 0),)
    health.reported([Events(columns_of(Step("e", 3, 2 * S, 3 * S, nobody)), ())])
    assert snapshot(health, 3).running == {"e": Running(3 * S, None)}
    health.trimmed(4 * S)
    assert snapshot(health, 4).running == {}


def test_the_work_counts_each_window_once_and_the_journal_as_it_is_trimmed() -> None:
    health = Health()
    health.turned(S // 2)
    health.turned(S // 4)
    counted = replace(page(0, []), late=1, duplicates=2, dropped=3)
    health.booked(counted)
    health.booked(counted)
    for t in range(3):
        health.journalled(t * S, 100)
    health.trimmed(S)
    work = snapshot(health, 3).work
    assert (work.turn_s, work.longest_turn_s, work.journal_bytes) == (0.25, 0.5, 200)
    assert (work.late, work.duplicates, work.dropped) == (1, 2, 3)
