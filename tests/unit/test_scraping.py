"""A scraped engine's way into the sources: batches, faults told once, nothing lost when busy."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fakes.collecting import NOW_NS, S, World, a_world, question
from fakes.daemon_parts import BOOT_ID
from wattledger.errors import InputError
from wattledger.records import Engine, Evidence, Finish, RequestTokens, Step
from wattledger_collectors.scrape.processes import Processes
from wattledger_collectors.scrape.protocol import Kind, Reading, ScrapeError, Series
from wattledger_daemon.intake import Delivery
from wattledger_daemon.scrape_options import ScrapeTarget
from wattledger_daemon.scraping import EngineScrape, Scraping, Surroundings, examine

UTC_NS = 1_700_000_000 * S
TARGET = ScrapeTarget("fake", "http://127.0.0.1:1/metrics", workload="w", job="j")


@dataclass
class FakeScraper:
    """Bodies are `prefill decode finished`; anything else is a page that cannot be used."""

    kind: str = "fake"
    mend: str = "turn it on"
    launchers: tuple[str, ...] = ("launcher",)
    started_s: Callable[[], float] = lambda: 0.0

    def pages(self, url: str) -> tuple[str, ...]:
        return (url, f"{url}?slots")

    def read(self, bodies: tuple[bytes, ...]) -> Reading:
        first, second = bodies
        assert first == second
        try:
            prefill, decode, finished = map(float, first.split())
        except ValueError:
            raise ScrapeError(first.decode()) from None
        kinds = zip(
            (Kind.PREFILL, Kind.DECODE, Kind.FINISHED), (prefill, decode, finished), strict=True
        )
        counters = {Series(kind): value for kind, value in kinds}
        return Reading(counters, 0, None, "tiny", self.started_s())


@dataclass
class Rig:
    """One engine, asked by hand at the seconds that a test names."""

    world: World
    page: str = "0 0 0"
    found: Processes = field(default_factory=lambda: Processes((41,)))
    began_ns: int | None = None
    started_s: float = 0.0
    now_ns: int = NOW_NS
    looked: int = 0
    target: ScrapeTarget = TARGET

    def __post_init__(self) -> None:
        host = Surroundings(
            BOOT_ID,
            lambda: self.now_ns,
            self._fetch,
            self._processes,
            began=lambda _: self.began_ns,
            started={41: 777}.__getitem__,
            utc_ns=lambda: self.now_ns + UTC_NS,
        )
        scraper = FakeScraper(started_s=lambda: self.started_s)
        self.scrape = EngineScrape("e", self.target, scraper, self.world.sources, host)

    def _fetch(self, url: str, headers: Mapping[str, str]) -> bytes:
        return self.page.encode()

    def _processes(self, url: str, launchers: tuple[str, ...]) -> Processes:
        assert (url, launchers) == (TARGET.url, ("launcher",))
        self.looked += 1
        return self.found

    def ask(self, page: str, after_s: float = 1.0) -> None:
        self.page = page
        self.now_ns += round(after_s * S)
        self.scrape.turn()

    def events(self) -> list[Evidence]:
        """All events that reached the intake since the last call."""
        items = self.world.commit()
        return [e for item in items if isinstance(item, Delivery) for e in item.events]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(a_world(tmp_path))


def moments(events: list[Evidence]) -> list[tuple[float, float, int, int]]:
    return [
        ((e.start_ns - NOW_NS) / S, (e.end_ns - NOW_NS) / S, *e.requests[0][1:3])
        for e in events
        if isinstance(e, Step)
    ]


def test_what_it_did_between_two_looks_becomes_evidence(rig: Rig) -> None:
    rig.ask("100 10 5")
    rig.ask("140 19 7")
    items = [item for item in rig.world.commit() if isinstance(item, Delivery)]
    (step, finish) = items[0].events
    assert isinstance(step, Step)
    assert step.requests == (RequestTokens("", 40, 9, 0),)
    assert (step.start_ns, step.end_ns) == (NOW_NS + S, NOW_NS + 2 * S)
    assert finish == Finish("e", "", NOW_NS + 2 * S, 40, 0, 9, 2)


def test_the_engine_is_registered_as_coarse_with_its_processes(rig: Rig) -> None:
    rig.ask("0 0 0")
    introduced = rig.world.commit()
    assert Engine("e", "fake", "tiny", (41,), coarse=True) in introduced
    (health,) = rig.world.sources.engines()
    assert health.coarse
    rig.ask("5 6 7")
    (health,) = rig.world.sources.engines()
    assert (health.prefill_tokens, health.decode_tokens, health.finishes) == (5, 6, 7)


def test_the_config_names_the_model_before_the_engine_does(tmp_path: Path) -> None:
    rig = Rig(a_world(tmp_path), target=ScrapeTarget("fake", TARGET.url, model="llama-8b"))
    rig.ask("0 0 0")
    assert rig.world.sources.engines()[0].model == "llama-8b"


def test_nothing_is_lost_while_the_daemon_is_busy(tmp_path: Path) -> None:
    rig = Rig(a_world(tmp_path, capacity=8))
    rig.ask("0 0 0")
    events: list[Evidence] = []
    for at in range(1, 21):
        rig.ask(f"{10 * at} {at} 0")
        if at % 6 == 0 or at > 18:
            events += rig.events()
    steps = moments(events)
    assert (sum(s[2] for s in steps), sum(s[3] for s in steps)) == (200, 20)
    assert [s[0] for s in steps[1:]] == [s[1] for s in steps[:-1]]
    assert 1 < len(steps) < 12
    assert rig.world.sources.engines()[0].dropped_events == 0


def test_an_outage_is_told_once_and_its_tokens_lie_over_all_of_it(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rig.ask("0 0 0")
    for _ in range(5):
        rig.ask("HTTP 500")
    rig.ask("60 6 0")
    assert moments(rig.events()) == [(1.0, 7.0, 60, 6)]
    told = [line for line in caplog.messages if "scrape_failing" in line or "again" in line]
    assert told == [
        "event=scrape_failing engine=e url=http://127.0.0.1:1/metrics "
        'reason="HTTP 500" mend="see what answers there"',
        "event=scrape_works_again engine=e after_s=5",
    ]


def test_the_first_look_and_a_restart_are_told(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rig.ask("100 100 1")
    assert "event=scrape_begins" in caplog.text
    rig.ask("5 120 1")
    assert "event=scrape_restarted engine=e" in caplog.text
    assert moments(rig.events()) == [(1.0, 2.0, 5, 120)]


def test_a_fall_that_is_no_restart_is_told_and_counted_and_not_booked(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.ask("1000000 1000000 9")
    rig.began_ns = NOW_NS - 3600 * S
    rig.ask("900000 1000001 9")
    rig.ask("900007 1000003 9")
    rig.ask("800000 1000003 9")
    assert moments(rig.events()) == [(2.0, 3.0, 7, 2)]
    assert caplog.text.count("event=scrape_fell engine=e") == 1
    assert rig.world.sources.engines()[0].dropped_events == 2


def test_a_restart_is_seen_by_who_listens_and_by_the_page(rig: Rig) -> None:
    rig.ask("1000000 0 0")
    rig.began_ns = NOW_NS + 2 * S
    rig.ask("900000 0 0", after_s=3.0)
    assert moments(rig.events()) == [(1.0, 4.0, 900_000, 0)]
    # The page's own word goes before that of who listens; it tells UTC.
    rig.started_s = (rig.now_ns + UTC_NS - 3600 * S) / S
    rig.ask("900001 0 0")
    rig.ask("800000 0 0")
    assert [s[2] for s in moments(rig.events())] == [1]
    rig.started_s = (rig.now_ns + UTC_NS) / S
    rig.ask("700000 0 0")
    assert [s[2] for s in moments(rig.events())] == [700_000]


def test_it_asks_less_often_the_longer_an_engine_is_away(rig: Rig) -> None:
    rig.ask("0 0 0")
    rests_s = []
    for after_s in (1.0, 5.0, 25.0, 1000.0):
        rig.ask("HTTP 500", after_s)
        rests_s.append(rig.scrape.rest_s)
    assert rests_s == [1.0, 1.0, 3.0, 10.0]
    rig.ask("0 0 0")
    assert rig.scrape.rest_s == 1.0


def test_an_engine_without_a_process_is_told_once_and_looked_for_again(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.found = Processes((), "gpu-b is not this host", "run a wattledgerd there")
    for at in range(12):
        rig.ask(f"{at} 0 0")
    assert rig.looked == 3
    assert caplog.text.count("event=scrape_no_process") == 1
    assert "its tokens are booked and get no energy; should a hook" in caplog.text
    assert "they are booked twice" in caplog.text
    assert "run a wattledgerd there" in caplog.text
    assert moments(rig.events())
    rig.found = Processes((41,))
    rig.ask("20 0 0", after_s=6.0)
    assert rig.world.sources.engines()[0].pids == (41,)
    rig.ask("21 0 0", after_s=59.0)
    assert rig.looked == 4


def test_one_that_reports_by_itself_is_left_to_it(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.ask("0 0 0")
    rig.ask("10 1 0")
    rig.world.sources.take(question(sent_ns=rig.now_ns), rig.now_ns)
    rig.ask("20 2 0")
    rig.ask("30 3 0")
    assert moments(rig.events()) == [(1.0, 2.0, 10, 1)]
    assert caplog.text.count("event=scrape_yields engine=e reported_as=fake-1") == 1
    # Once the other has been silent for a minute, from then on.
    rig.ask("40 4 0", after_s=61.0)
    rig.ask("50 6 0")
    assert [s[2:] for s in moments(rig.events())] == [(10, 2)]


def test_a_reporter_of_the_scrapes_own_name_is_a_rival_too(rig: Rig) -> None:
    rig.ask("0 0 0")
    told = question(sent_ns=rig.now_ns)
    told.engine.engine = "e"
    rig.world.sources.take(told, rig.now_ns)
    rig.ask("10 1 0")
    rig.ask("20 2 0")
    assert moments(rig.events()) == []


@pytest.mark.parametrize(("start", "told"), [(777, []), (778, [(10, 1)])])
def test_the_proxy_that_is_scraped_is_a_rival(
    rig: Rig, start: int, told: list[tuple[int, int]]
) -> None:
    """It listens, and reports of the engine behind it; a pid alone may be another namespace's."""
    rig.ask("0 0 0")
    proxy = question(sent_ns=rig.now_ns, source=f"openai/41/{start}/proxy")
    proxy.engine.pids[:] = [99]
    rig.world.sources.take(proxy, rig.now_ns)
    rig.ask("10 1 0")
    assert [s[2:] for s in moments(rig.events())] == told


def test_a_jump_that_no_engine_makes_is_dropped_and_counted(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.ask("0 0 0")
    rig.ask("0 5000000000 0")
    rig.ask("0 5000000001 0")
    assert 'reason="a counter rose by 5000000000 at once, which is not booked"' in caplog.text
    assert moments(rig.events()) == [(2.0, 3.0, 0, 1)]
    assert rig.world.sources.engines()[0].dropped_events == 1


def test_a_batch_that_the_daemon_refuses_leaves_its_number_free(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(a_world(tmp_path), target=ScrapeTarget("fake", TARGET.url, workload="w" * 600))
    rig.ask("0 0 0")
    rig.ask("9 9 9")
    assert "event=batch_refused source=scrape/e/" in caplog.text
    assert "engine.workload" in caplog.text
    assert rig.world.commit() == []


def test_an_engine_that_counts_nothing_yet_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = ScrapeTarget("tgi", TARGET.url)
    world = a_world(tmp_path)
    from wattledger_collectors.scrape.tgi import scraper

    host = Surroundings(
        BOOT_ID, lambda: NOW_NS, lambda *_: b"<html>\n", lambda *_: Processes((41,))
    )
    scrape = EngineScrape("e", target, scraper(), world.sources, host)
    scrape.turn()
    scrape.turn()
    assert caplog.text.count("event=scrape_no_counters") == 1
    assert "is url that of its /metrics?" in caplog.text


def test_an_unknown_engine_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(InputError, match=r"scrape\.a\.engine: no scraper 'sgland': known: .*tgi"):
        examine({"a": ScrapeTarget("sgland", TARGET.url)})


def test_check_says_what_would_be_read_and_why_it_fails_now() -> None:
    ((name, text),) = examine({"a": ScrapeTarget("tgi", TARGET.url)})
    assert name == "scrape.a"
    assert text.startswith("would read http://127.0.0.1:1/metrics every 1 s, which fails now: ")
    assert text.endswith("(see that it runs there, or mend url)")


def test_an_engine_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    asked, over = threading.Event(), threading.Event()

    def hang(url: str, headers: Mapping[str, str]) -> bytes:
        asked.set()
        over.wait(60.0)
        raise ScrapeError("over")

    host = Surroundings(BOOT_ID, fetch=hang)
    scraping = Scraping({"a": ScrapeTarget("tgi", TARGET.url)}, a_world(tmp_path).sources, host)
    scraping.start()
    try:
        assert asked.wait(30.0)
        begun_s = time.monotonic()
        scraping.stop()
        assert time.monotonic() - begun_s < 10.0
    finally:
        over.set()


def test_a_scraper_that_is_broken_is_told_once_and_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = threading.Semaphore(0)

    def broken(url: str, headers: Mapping[str, str]) -> bytes:
        asked.release()
        raise RuntimeError("a bug")

    target = ScrapeTarget("tgi", TARGET.url, period_s=0.01)
    host = Surroundings(BOOT_ID, fetch=broken)
    scraping = Scraping({"a": target}, a_world(tmp_path).sources, host)
    scraping.start()
    assert all(asked.acquire(timeout=30.0) for _ in range(3))
    scraping.stop()
    assert caplog.text.count("event=scrape_broken engine=a") == 1
