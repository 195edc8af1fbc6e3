"""The real `vllm serve` in several processes, and daemons that come and go."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fakes.ledger_reading import finishes
from fakes.vllm_server import told_once_each
from fakes.vllm_site import VllmSite, metered, vllm_site
from fakes.vllm_traffic import Clients, Stream

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def two_api_servers() -> Iterator[VllmSite]:
    """Up, and no daemon is there."""
    with vllm_site() as site, site.serving("--api-server-count", "2"):
        yield site


def titles(pids: list[int]) -> list[str]:
    """What those processes call themselves that vLLM gave a name."""
    words = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode() for pid in pids]
    return sorted(word for word in words if word.startswith("VLLM::"))


def ask_in_every_way(site: VllmSite) -> None:
    """Each request is booked, once."""
    before = len(finishes(site.ledger))
    clients = Clients(site.server)
    clients.ask(48)
    site.wait_until_booked()
    done = finishes(site.ledger)
    asked = sum(answer.finishes for answer in clients.answers.values()) + len(clients.hung_up)
    assert len(done) - before == asked
    assert len({finish.request for finish in done}) == len(done)


def test_daemons_that_come_late_die_and_hang_harm_nobody(two_api_servers: VllmSite) -> None:
    site = two_api_servers
    stream = Stream(site.server)
    with ExitStack() as stack:
        with stream.flowing():
            assert stream.answered_in(2) > 0  # nobody listens yet
            first = stack.enter_context(site.daemon())
            first.wait_for("event=ready")
            heard = stream.answered_in(3)
            first.signal(signal.SIGKILL)
            first.exit_status()
            alone = stream.answered_in(3)
            second = stack.enter_context(site.daemon())
            second.wait_for("event=ready")
            second.signal(signal.SIGSTOP)
            deaf = stream.answered_in(5)
            second.signal(signal.SIGCONT)
        assert stream.failures == []
        # No timing: a server that waited for its meter would serve next to nothing.
        assert min(alone, deaf) > heard / 3
        site.wait_until_booked()
        assert len(finishes(site.ledger)) == stream.answered
        assert len(site.server.warnings) > 2
        assert told_once_each(site.server.warnings, processes=2), site.server.warnings
        site.close_books(second)


def test_two_api_servers_tell_of_one_engine(two_api_servers: VllmSite) -> None:
    site = two_api_servers
    with site.daemon() as daemon:
        daemon.wait_for("event=ready")
        ask_in_every_way(site)
        (engine,) = site.status().engines
        assert engine.engine == f"vllm-{site.server.process.pid}"
        assert site.server.process.pid in engine.pids
        named = titles(list(engine.pids))
        assert named == [
            "VLLM::APIServer_0",
            "VLLM::APIServer_1",
            "VLLM::EngineCore",
            "VLLM::Worker",
        ]
        site.close_books(daemon)


def test_two_engines_have_processes_of_their_own() -> None:
    with metered("--data-parallel-size", "2") as (site, daemon):
        ask_in_every_way(site)
        first, second = site.status().engines
        root = site.server.process.pid
        assert [first.engine, second.engine] == [f"vllm-{root}.0", f"vllm-{root}.1"]
        assert first.decode_tokens > 0
        assert second.decode_tokens > 0
        assert not set(first.pids) & set(second.pids)
        assert "VLLM::EngineCore_DP0" in titles(list(first.pids))
        assert "VLLM::EngineCore_DP1" in titles(list(second.pids))
        assert site.server.complaints == []
        site.close_books(daemon)
