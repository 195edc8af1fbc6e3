"""The real llama-server, scraped by a real daemon: booked tokens are the server's own counters."""

from __future__ import annotations

import itertools
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from fakes.cpp_server import CppServer, free_port
from fakes.daemon_process import DaemonProcess
from fakes.ledger_reading import Booked, assert_balanced, finishes, posted_tokens
from fakes.llama_server import make_model
from wattledger.store import open_ledger

pytestmark = pytest.mark.engine

FOREVER_NS = 1 << 62
PERIOD_S = 0.2
SCRAPE = """
[scrape.cpp]
engine = "llama_server"
url = "http://127.0.0.1:{port}/metrics"
period_s = {period_s}
model = "tiny"
"""


class Tokens(NamedTuple):
    """Cached tokens are told with finished requests, and nothing counts those here."""

    prefill: int
    decode: int


def tokens_of(counted: Booked) -> Tokens:
    """Without the cached ones."""
    return Tokens(counted.prefill_tokens, counted.decode_tokens)


class Site:
    """A server's place: its port, its model, and the daemon that scrapes it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.daemon = DaemonProcess(folder, config=SCRAPE.format(port=self.port, period_s=PERIOD_S))
        self._model = make_model(folder)
        self._log = folder / "llama-server.log"

    def server(self, *options: str) -> CppServer:
        return CppServer(self._model, self._log, self.port, *options)

    def booked(self) -> Tokens:
        """Ends the daemon, which looks once more and books all that is left."""
        self.daemon.signal(signal.SIGTERM)
        assert self.daemon.exit_status() == 0
        assert_balanced(self.daemon.ledger)
        assert finishes(self.daemon.ledger) == []
        return tokens_of(posted_tokens(self.daemon.ledger))


@pytest.fixture
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        yield Site(Path(name))


def traffic(server: CppServer, clients: int, rounds: int) -> None:
    """Plain and streamed completions, one in five of them hung up on in mid-stream."""

    def ask(number: int) -> None:
        prompt = f"client {number % 7} asks for energy " * (1 + number % 5)
        if number % 5 == 0:
            stream = server.stream(prompt, 400)
            list(itertools.islice(stream, 10))
            stream.close()
        elif number % 2:
            assert len(list(server.stream(prompt, 30 + number))) > 1
        else:
            assert server.complete(prompt, 20 + number)["tokens_predicted"] == 20 + number

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(clients * rounds)))


def test_booked_tokens_are_the_servers_counters(site: Site) -> None:
    with site.server() as server, site.daemon as daemon:
        daemon.wait_for("event=scrape_begins")
        for clients in (4, 16):
            traffic(server, clients, 3)
        counters = server.quiet()
        assert site.booked() == tokens_of(counters)
    assert counters.decode_tokens > 1_000
    assert counters.cached_tokens > 0
    assert methods(daemon) == {"coarse"}


def test_tokens_from_before_the_first_look_are_not_ours(site: Site) -> None:
    with site.server() as server:
        server.complete("long ago", 50)
        prefill = server.quiet().prefill_tokens
        streams = [server.stream(f"client {number}", 900) for number in range(4)]
        early = sum(1 for _ in range(20) for stream in streams if next(stream))
        with site.daemon as daemon:
            daemon.wait_for("event=scrape_begins")
            for stream in streams:
                list(stream)
            server.complete("after it", 20)
            total = tokens_of(server.quiet())
            booked = site.booked()
    assert 20 <= booked.decode <= total.decode - 50 - early
    assert 1 <= booked.prefill <= total.prefill - prefill


def test_a_quiet_restart_loses_and_doubles_nothing(site: Site) -> None:
    with site.server() as server, site.daemon as daemon:
        daemon.wait_for("event=scrape_begins")
        counters: list[Tokens] = []
        for clients in (4, 8, 4):
            if counters:
                server.restart()
            traffic(server, clients, 2)
            counters.append(tokens_of(server.quiet()))
            time.sleep(4 * PERIOD_S)
        booked = site.booked()
    prefills, decodes = zip(*counters, strict=True)
    assert booked == Tokens(sum(prefills), sum(decodes))


def test_a_server_killed_in_mid_run_loses_no_more_than_was_not_seen(site: Site) -> None:
    with site.server() as server, site.daemon as daemon:
        daemon.wait_for("event=scrape_begins")
        streams = [server.stream(f"client {number}", 900) for number in range(3)]
        got = 0
        while got < 600:
            got += sum(1 for stream in streams if next(stream))
        time.sleep(4 * PERIOD_S)
        server.restart()
        for stream in streams:
            stream.close()
        traffic(server, 4, 3)
        after = server.quiet()
        booked = site.booked()
    # `/metrics` never counted these: they are from `/slots`. Clients read behind the server.
    assert got <= booked.decode - after.decode_tokens <= 3 * 900
    assert booked.prefill > after.prefill_tokens


def test_without_slots_tokens_come_at_a_requests_end(site: Site) -> None:
    with site.server("--no-slots") as server, site.daemon as daemon:
        daemon.wait_for("event=scrape_begins")
        daemon.wait_for("event=scrape_page_missing")
        traffic(server, 4, 3)
        assert site.booked() == tokens_of(server.quiet())


def methods(daemon: DaemonProcess) -> set[str]:
    """How the postings with tokens were made."""
    store = open_ledger(f"sqlite:{daemon.ledger}")
    try:
        pieces = store.slices([0, FOREVER_NS]).slices
    finally:
        store.close()
    return {piece.account.method for piece in pieces if piece.amounts.decode_tokens}
