"""A pid is given to one process after another: each is booked what it used itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.evidence import CLOCK, PID, gpu, joules, ns, step
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
    UseRecord,
)
from wattledger_daemon.heart.accountant import Accountant, AccountantSettings
from wattledger_daemon.heart.tenures import Tenures

A = Process(PID, 1, "a.service", "A")
ENGINE = Engine("e", "vllm", None, (PID,))


def other(start_s: float, job: str = "B") -> Process:
    """Another process that was given the pid then."""
    return Process(PID, round(start_s * 100), f"{job.lower()}.service", job)


def second(t_s: int, *pids: int, device: str = "gpu0") -> list[Evidence]:
    """A second at 100 W, and who used the device in it."""
    used = tuple(ProcessUse(pid, 90.0, 1 << 30, 7) for pid in pids)
    return [
        CounterReading(device, ns(t_s), t_s * 100_000_000),
        CounterReading(device, ns(t_s + 1), (t_s + 1) * 100_000_000),
        UseRecord(device, ns(t_s), ns(t_s + 1), used),
    ]


def seconds(from_s: int, to_s: int, *pids: int) -> list[Evidence]:
    return [item for t_s in range(from_s, to_s) for item in second(t_s, *pids)]


def an_accountant(evidence: Iterable[Evidence], horizon_s: int = 600) -> Accountant:
    accountant = Accountant(CLOCK, AccountantSettings(horizon_ns=ns(horizon_s)))
    for item in (gpu(), *evidence):
        accountant.observe(item)
    return accountant


def book(accountant: Accountant, pages: Sequence[Page]) -> Sequence[Page]:
    for page in pages:
        accountant.booked(page)
    return pages


def by_job(pages: Iterable[Page]) -> dict[str | None, float]:
    """Joules per job."""
    sums: dict[str | None, int] = defaultdict(int)
    for posting in (posting for page in pages for posting in page.postings):
        sums[posting.account.job] += posting.amounts.energy_uj
    return {job: uj / 1e6 for job, uj in sums.items() if uj}


def test_use_before_the_reuse_stays_with_the_process_before() -> None:
    told = [A, *seconds(0, 6, PID), *seconds(6, 7), other(7), *seconds(7, 9, PID)]
    pages = an_accountant(told).flush(ns(10))
    assert by_job(pages) == {"A": 600, None: 100, "B": 200}


def test_use_told_before_the_process_is_its_own_from_its_start_on() -> None:
    """A GPU names a new process seconds before its line comes."""
    pages = an_accountant([A, *seconds(0, 10, PID), other(5.5)]).flush(ns(10))
    assert by_job(pages) == {"A": 500, "B": 500}


def test_a_record_is_about_those_who_were_there_at_its_end() -> None:
    """CPU time of a process that was born within the record, after another one had ended."""
    cpu = Device("cpu0", DeviceKind.CPU)
    use = [UseRecord("cpu0", ns(t), ns(t + 5), (ProcessUse(PID, ticks=9),)) for t in (0, 5)]
    read = [CounterReading("cpu0", ns(t), t * 10_000_000) for t in (0, 5, 10)]
    told: list[Evidence] = [cpu, A, *read[:2], use[0], read[2], other(7), use[1]]
    assert by_job(an_accountant(told).flush(ns(10))) == {"A": 50, "B": 50}


def test_where_the_host_slept_the_moment_of_the_line_counts() -> None:
    told = [A, *seconds(0, 6, PID), other(9000), *seconds(6, 8, PID)]
    assert by_job(an_accountant(told).flush(ns(8))) == {"A": 600, "B": 200}


def test_a_pid_may_go_on_and_on() -> None:
    told = [A, *seconds(0, 2, PID), other(2), *seconds(2, 3, PID), other(3, "C")]
    pages = an_accountant([*told, *seconds(3, 7, PID)]).flush(ns(7))
    assert by_job(pages) == {"A": 200, "B": 100, "C": 400}


def test_nobody_had_a_pid_before_anything_was_measured() -> None:
    pages = an_accountant([A, other(3), *seconds(0, 5, PID)]).flush(ns(5))
    assert by_job(pages) == {"B": 500}


def test_what_is_learned_of_the_process_now_is_not_of_the_one_before() -> None:
    nameless, again = Process(PID, 500, None, None), Process(PID, 500, None, "B")
    told = [A, *seconds(0, 5, PID), nameless, *seconds(5, 8, PID), again, Process(PID, 0, "w", "C")]
    assert by_job(an_accountant(told).flush(ns(8))) == {"A": 500, "C": 300}


# ------------------------------------------------------------------------------- engines

BEFORE = [A, ENGINE, *seconds(0, 4, PID), step(1, 1, 2, [("R", 100, 0)])]


def test_steps_before_the_reuse_keep_their_engine_and_its_owner() -> None:
    finish = Finish("e", "R", ns(3), 100, 0, 0)
    accountant = an_accountant([*BEFORE, finish, other(4), *seconds(4, 8, PID)])
    first, second_page = book(accountant, accountant.flush(ns(8)))
    assert joules([first]) == {"prefill": 100, "engine_idle": 300, "process": 100}
    assert by_job([first]) == {"A": 400, "B": 100}
    assert [done.job for done in first.finished] == ["A"]
    assert {p.account.job for p in first.postings if p.amounts.requests} == {"A"}
    assert by_job([second_page]) == {"B": 300}


def test_a_window_is_restated_as_it_was_before_the_reuse() -> None:
    accountant = an_accountant([*BEFORE, *seconds(4, 21, PID), other(20), *seconds(21, 40)])
    book(accountant, accountant.due(ns(40)))
    accountant.observe(step(2, 3, 4, [("late", 100, 0)]))
    (again,) = accountant.due(ns(40))
    assert joules([again]) == {"prefill": 200, "engine_idle": 300}
    assert by_job([again]) == {"A": 500}


def test_an_engine_may_be_given_the_pid_it_had() -> None:
    new = [other(4), ENGINE, *seconds(4, 8, PID), step(1, 5, 6, [("S", 1, 1)])]
    pages = an_accountant([*BEFORE, *new]).flush(ns(10))
    assert [{p.request for p in page.request_postings} for page in pages] == [{"R"}, {"S"}]
    assert by_job(pages[:1]) == {"A": 500}
    assert by_job(pages[1:]) == {"B": 300}


def test_tokens_stay_on_the_device_of_the_engine_that_lost_its_pid() -> None:
    told = [gpu(name="gpu1"), A, ENGINE, *second(0), *second(0, PID, device="gpu1")]
    pages = an_accountant([*told, step(1, 0, 1, [("R", 9, 0)]), other(1), *second(1)]).flush(ns(2))
    tokens = {p.device: p.amounts.prefill_tokens for p in pages[0].postings if p.request is None}
    assert {name: count for name, count in tokens.items() if count} == {"gpu1": 9}


def test_an_engine_without_a_step_is_known_while_its_past_is() -> None:
    told = [A, ENGINE, *seconds(0, 20, PID), other(20), *seconds(20, 31)]
    accountant = an_accountant(told, horizon_s=10)
    pages = [page for now in (16, 31) for page in book(accountant, accountant.due(ns(now)))]
    assert joules(pages) == {"engine_idle": 2000}
    for item in seconds(31, 60):
        accountant.observe(item)
    book(accountant, accountant.due(ns(60)))
    assert accountant.roster() == [gpu()]


# ------------------------------------------------------------------------------- journals


def test_a_roster_names_those_before_and_can_be_folded_at_any_time() -> None:
    """A journal that begins after a reuse says who had the pid before, when it next says who."""
    live = an_accountant([A, *seconds(0, 5, PID), other(5), *seconds(5, 7, PID)])
    assert [item for item in live.roster() if isinstance(item, Process)] == [A, other(5)]
    for known in ([], [A], [A, other(5)], [other(5)]):
        folded = an_accountant([*seconds(0, 7, PID), *known, *live.roster(), *live.roster()])
        assert by_job(folded.flush(ns(7))) == {"A": 500, "B": 200}


def test_those_before_are_put_in_their_order() -> None:
    tenures = Tenures()
    for process in (other(8, "D"), A, other(6, "C"), other(4), other(6, "C")):
        assert not tenures.tell(process, ns(10))
    found = [tenures.at(PID, ns(end_s)) for end_s in (3, 4, 5, 7, 8, 9)]
    assert [who.job for who in found if who] == ["A", "A", "B", "C", "C", "D"]
    tenures.forget_before(ns(6))
    assert [process.job for process in tenures] == ["C", "D"]


LIVES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(LIVES, st.integers(0, 30))
def test_each_is_booked_its_own_seconds(lives: list[tuple[int, int]], crash_s: int) -> None:
    """Lives of so many seconds one after another, each told so late; a restart in between."""
    timed: list[tuple[int, int, list[Evidence]]] = []
    at_s, expected = 1, {}
    for number, (length_s, lag_s) in enumerate(lives):
        # Never told after its own end: nobody could tell of it then.
        told_s = at_s + min(lag_s, length_s - 1)
        timed.append((told_s, 0, [other(at_s, f"J{number}")]))
        timed += [(t_s, 1, second(t_s, PID)) for t_s in range(at_s, at_s + length_s)]
        expected[f"J{number}"] = length_s * 100.0
        at_s += length_s
    journal: list[Evidence | str] = []
    accountant, pages = an_accountant([]), {}
    for t_s, _, items in sorted(timed, key=lambda entry: entry[:2]):
        if t_s == crash_s:
            accountant = an_accountant([])
            for entry in journal:
                accountant.restore(entry) if isinstance(entry, str) else accountant.observe(entry)
        for item in items:
            journal.append(item)
            accountant.observe(item)
        for page in accountant.due(ns(t_s)):
            pages[page.start_ns] = page
            journal.append(accountant.booked(page))
    pages |= {page.start_ns: page for page in accountant.flush(ns(at_s))}
    assert by_job(pages.values()) == expected
    assert {p.account.activity for page in pages.values() for p in page.postings} == {
        Activity.PROCESS
    }
