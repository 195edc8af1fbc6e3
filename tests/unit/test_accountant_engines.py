"""Engines that are silent for a while or never registered, and the device of their tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from fakes.evidence import CLOCK, counter, gpu, ns, pages_of, step
from wattledger.records import (
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

CPU = Device("cpu0", DeviceKind.CPU)
MINE, OTHERS = 11, 22


def use(device: str, second: int, *pids: int, length_s: int = 1) -> UseRecord:
    used = tuple(ProcessUse(pid, 60, 1 << 30, 5) for pid in pids)
    return UseRecord(device, ns(second), ns(second + length_s), used, 100)


def tokens_by(pages: list[Page], key: str) -> dict[str, int]:
    """By device or engine; a page that is made again counts as it was made last."""
    found: Counter[str] = Counter()
    for page in {page.start_ns: page for page in pages}.values():
        for posting in page.postings:
            name = posting.device if key == "device" else str(posting.account.engine)
            found[name] += posting.amounts.prefill_tokens + posting.amounts.decode_tokens
    return {name: count for name, count in found.items() if count}


def live(accountant: Accountant, by_second: dict[int, list[Evidence]], until_s: int) -> list[Page]:
    """Seconds one by one, each with a reading of every device, as the daemon would."""
    pages: list[Page] = []
    for second in range(until_s):
        for device in ("gpu0", "cpu0"):
            accountant.observe(CounterReading(device, ns(second), second * 300_000_000))
        for record in by_second.get(second, []):
            accountant.observe(record)
        for page in accountant.due(ns(second)):
            accountant.booked(page)
            pages.append(page)
    return pages + accountant.flush(ns(until_s - 1))


def an_accountant(max_rows: int = 100_000) -> Accountant:
    accountant = Accountant(CLOCK, AccountantSettings(max_rows=max_rows))
    for device in (gpu(), CPU):
        accountant.observe(device)
    return accountant


# ---------------------------------------------------------------- silent engines


def test_no_tokens_are_lost_where_the_row_bound_shortens_the_horizon() -> None:
    heavy = [(f"r{n}", 1, 1) for n in range(40)]
    news: dict[int, list[Evidence]] = {
        second: [
            step(second, second - 0.1, second, [(f"{second}-{r}", p, d) for r, p, d in heavy], "A"),
            use("gpu0", second - 1, MINE),
        ]
        for second in range(1, 200)
    }
    news[1] += [Engine("A", "vllm", "m", (MINE,)), Engine("B", "vllm", "m", (OTHERS,))]
    # Said once: the sources say it again only after a minute without events.
    for second in (1, 40, 95):
        news[second].append(step(second, second - 0.5, second, [("b", 3, 1)], "B"))
    news[140].append(Finish("B", "b", ns(140), 3, 0, 1))
    news[190].append(step(190, 189.5, 190, [("b", 3, 1)], "B"))
    accountant = an_accountant(max_rows=100)
    pages = live(accountant, news, 215)
    assert tokens_by(pages, "engine") == {"A": 199 * 80, "B": 16}
    models = {p.account.model for page in pages for p in page.postings if p.account.engine == "B"}
    assert models == {"m"}


def test_an_engine_that_never_registered_has_its_tokens_booked() -> None:
    steps = [step(1, 1, 2, [("r", 7, 1)], "stranger")]
    pages = pages_of([gpu(), *counter([(t, t * 100) for t in range(11)]), *steps])
    assert tokens_by(pages, "engine") == {"stranger": 8}
    (posting,) = [p for page in pages for p in page.request_postings if p.amounts.prefill_tokens]
    assert (posting.account.model, posting.request) == (None, "r")


def test_an_engine_that_is_gone_is_forgotten() -> None:
    accountant = an_accountant()
    news: dict[int, list[Evidence]] = {
        1: [Engine("A", "vllm", "m", (MINE,)), step(1, 0, 1, [("r", 1, 1)], "A")]
    }
    live(accountant, news, 170)
    accountant.forget_before(ns(160))
    assert [item for item in accountant.roster() if isinstance(item, Engine)]
    accountant.observe(CounterReading("gpu0", ns(190), 10**12))
    accountant.forget_before(ns(170))
    assert [item for item in accountant.roster() if isinstance(item, Engine)] == []


# ------------------------------------------------------------ the tokens' device


def seen(gpu_from: int, until_s: int = 60) -> dict[int, list[Evidence]]:
    """An engine on the CPU all along, with a GPU context from some time on; it works from 30 s."""
    news: dict[int, list[Evidence]] = {
        0: [Process(MINE, 1, "w", "j"), Engine("A", "x", "m", (MINE,))]
    }
    for second in range(until_s):
        found = news.setdefault(second, [])
        found += [use("cpu0", second, MINE), use("gpu0", second, *[MINE] * (second >= gpu_from))]
        if second >= 30:
            found.append(step(second, second, second + 0.5, [("r", 0, 10)], "A"))
    return news


@pytest.mark.parametrize("gpu_from", [0, 5, 25])
def test_a_gpu_takes_the_tokens_from_a_cpu(gpu_from: int) -> None:
    assert tokens_by(live(an_accountant(), seen(gpu_from), 61), "device") == {"gpu0": 300}


def test_windows_that_are_booked_keep_their_device() -> None:
    pages = live(an_accountant(), seen(46), 61)
    # At 46 s those up to 35 s were on disk.
    assert tokens_by(pages, "device") == {"cpu0": 50, "gpu0": 250}


def test_a_restart_chooses_the_same_device() -> None:
    news = seen(25)
    whole = live(an_accountant(), news, 61)
    restarted = an_accountant()
    # Nothing is paged before the crash at 29 s.
    for second in range(29):
        for record in news[second]:
            restarted.observe(record)
    rest = {second: found for second, found in news.items() if second >= 29}
    assert tokens_by(live(restarted, rest, 61), "device") == tokens_by(whole, "device")


def test_of_several_gpus_the_first_that_it_was_seen_on_at_once() -> None:
    gpus = [gpu(name=f"gpu{n}") for n in (0, 2, 10)]
    meters = [r for g in gpus for r in counter([(t, t * 10) for t in range(11)], g.device)]
    engine = Engine("A", "vllm", "m", (MINE,))
    work = [step(n, n, n + 1, [("r", 0, 1)], "A") for n in range(9)]
    later = use("gpu0", 2, MINE)
    for first in ([use("gpu10", 0, MINE), use("gpu2", 0, MINE)], [use("gpu2", 0, MINE)]):
        accountant = Accountant(CLOCK, AccountantSettings())
        for record in (*gpus, engine, *first, *meters, later, *work):
            accountant.observe(record)
        assert tokens_by(accountant.flush(ns(10)), "device") == {"gpu2": 9}
    # Registered after it was seen: the first in order.
    accountant = Accountant(CLOCK, AccountantSettings())
    first = [use("gpu10", 0, MINE), use("gpu2", 0, MINE)]
    for record in (*gpus, *first, replace(engine), *meters, *work):
        accountant.observe(record)
    assert tokens_by(accountant.flush(ns(10)), "device") == {"gpu2": 9}
