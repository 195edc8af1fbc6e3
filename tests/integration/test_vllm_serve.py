"""The real `vllm serve`, attached: what the daemon booked equals the server's own `/metrics`."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator

import pytest

from fakes.daemon_process import DaemonProcess
from fakes.ledger_reading import finishes
from fakes.vllm_site import VllmSite, metered
from fakes.vllm_traffic import LONGEST, Answer, Clients
from wattledger.records import FinishedRequest

pytestmark = pytest.mark.engine

CHUNKED = ("--max-num-batched-tokens", "256", "--max-num-seqs", "16")
"""Prompts of more than 256 tokens, or several at once, are prefilled over several steps."""

HTTP_ID = re.compile(r"(?:chat)?cmpl-(\w+-\d+)\b")
"""The client's X-Request-Id in the name of a request: an HTTP request may be several of them."""


TENANTS = ("acme", "globex", "initech")
RULES = """
[tenants]
by-id = { request = "*cmpl-{tenant}-*", workload = "chat", job = "{tenant}" }
"""


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[VllmSite, DaemonProcess]]:
    with metered(*CHUNKED, config=RULES) as (site, daemon):
        yield site, daemon


@pytest.fixture
def site(running: tuple[VllmSite, DaemonProcess]) -> VllmSite:
    return running[0]


def by_http_request(site: VllmSite) -> dict[str, list[FinishedRequest]]:
    """The finished requests in the ledger."""
    found: defaultdict[str, list[FinishedRequest]] = defaultdict(list)
    for done in finishes(site.ledger):
        name = HTTP_ID.match(done.request)
        assert name, done.request
        found[name[1]].append(done)
    return found


def test_each_way_of_asking_is_booked_as_counted(site: VllmSite) -> None:
    clients = Clients(site.server, "each")
    clients.ask(48)
    clients.ask(48)  # finds prompts of the first round in the prefix cache
    site.wait_until_booked()
    done = by_http_request(site)
    assert set(done) == clients.answers.keys() | clients.hung_up
    assert len(clients.answers) == 88
    booked = {
        name: Answer(
            len(done[name]),
            sum(finish.prompt_tokens for finish in done[name]),
            sum(finish.decode_tokens for finish in done[name]),
        )
        for name in clients.answers
    }
    assert booked == clients.answers
    counters = site.server.counters()
    assert counters.cached_tokens > 0
    assert sum(f.decode_tokens for found in done.values() for f in found) == counters.decode_tokens


def test_clients_that_go_away_leave_what_was_computed(site: VllmSite) -> None:
    before = site.server.counters()
    clients = Clients(site.server, "gone")
    clients.hang_up(32)
    site.wait_until_booked()
    after = site.server.counters()
    assert 0 < after.decode_tokens - before.decode_tokens < 32 * LONGEST
    aborted = 32 - (after.finished - before.finished)
    assert aborted > 0
    done = [finish for name in clients.hung_up for finish in by_http_request(site)[name]]
    assert len(done) == 32
    assert sum(f.decode_tokens for f in done) == after.decode_tokens - before.decode_tokens
    assert sum(f.decode_tokens < LONGEST for f in done) >= aborted


def test_a_statement_shows_each_tenant_by_phase(site: VllmSite) -> None:
    clients = Clients(site.server, *TENANTS)
    clients.ask(72)
    site.wait_until_booked()
    done = by_http_request(site)
    rows = statement(site)
    for tenant in TENANTS:
        mine = [f for name, found in done.items() if name.startswith(tenant) for f in found]
        assert len(mine) > 20
        prefill, decode = rows[tenant, "prefill"], rows[tenant, "decode"]
        assert float(prefill["energy_j"]) > 0
        assert float(decode["energy_j"]) > 0
        assert int(decode["decode_tokens"]) == sum(finish.decode_tokens for finish in mine)
        # A prompt's cached tokens were nobody's work: what is left was prefilled.
        prompt = sum(finish.prompt_tokens - finish.cached_tokens for finish in mine)
        assert int(prefill["prefill_tokens"]) == prompt
        assert {(finish.job, finish.workload) for finish in mine} == {(tenant, "chat")}


def statement(site: VllmSite) -> dict[tuple[str, str], dict[str, str]]:
    """`wattledger usage` by job and activity, as a user gets it."""
    command = [sys.executable, "-m", "wattledger_cli", "usage", "--last", "1h"]
    command += ["--by", "job,activity", "--format", "csv", "--ledger", f"sqlite:{site.ledger}"]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    return {(row["job"], row["activity"]): row for row in csv.DictReader(io.StringIO(told.stdout))}


def test_the_books_close_with_nothing_dropped(running: tuple[VllmSite, DaemonProcess]) -> None:
    site, daemon = running
    (engine,) = site.status().engines
    assert (engine.kind, engine.model) == ("vllm", "tiny")
    assert engine.dropped_events == 0
    assert site.server.complaints == []
    site.close_books(daemon)
