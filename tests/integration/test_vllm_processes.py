"""The real `vllm serve` in several processes, and daemons that come and go."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from fakes.ledger_reading import finishes
from fakes.vllm_site import VllmSite, metered, vllm_site
from fakes.vllm_traffic import Clients, Stream

pytestmark = pytest.mark.engine


def title(pid: int) -> str:
    """What a process calls itself."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()


def titles(pids: list[int]) -> list[str]:
    """Those that vLLM gave."""
    return sorted(name for name in map(title, pids) if name.startswith("VLLM::"))


def ask_in_every_way(site: VllmSite) -> None:
    clients = Clients(site.server)
    clients.ask(48)
    site.wait_until_booked()
    done = finishes(site.ledger)
    assert len(done) == sum(a.finishes for a in clients.answers.values()) + len(clients.hung_up)
    assert len({finish.request for finish in done}) == len(done)


def test_two_api_servers_tell_of_one_engine() -> None:
    with metered("--api-server-count", "2") as (site, daemon):
        ask_in_every_way(site)
        (engine,) = site.status().engines
        assert titles(list(engine.pids)) == [
            "VLLM::ApiServer_0",
            "VLLM::ApiServer_1",
            "VLLM::EngineCore",
            "VLLM::Worker",
        ]
        assert site.server.process.pid in engine.pids
        assert site.server.warnings == []
        site.close_books(daemon)


def test_two_engines_have_processes_of_their_own() -> None:
    with metered("--data-parallel-size", "2") as (site, daemon):
        ask_in_every_way(site)
        engines = sorted(site.status().engines, key=lambda engine: engine.engine)
        root = site.server.process.pid
        assert [engine.engine for engine in engines] == [f"vllm-{root}.0", f"vllm-{root}.1"]
        assert all(engine.decode_tokens > 0 for engine in engines)
        first, second = (set(engine.pids) for engine in engines)
        assert not first & second
        assert "VLLM::EngineCore_DP0" in titles(list(first))
        assert "VLLM::EngineCore_DP1" in titles(list(second))
        assert site.server.warnings == []
        site.close_books(daemon)


def test_daemons_that_come_late_die_and_hang_harm_nobody() -> None:
    with ExitStack() as stack:
        site = stack.enter_context(vllm_site())
        server = stack.enter_context(site.serving())
        stream = Stream(server)
        with stream.flowing():
            assert stream.answered_in(3) > 0  # nobody listens yet
            first = stack.enter_context(site.daemon())
            first.wait_for("event=ready")
            heard = stream.answered_in(4)
            first.signal(signal.SIGKILL)
            first.exit_status()
            alone = stream.answered_in(4)
            second = stack.enter_context(site.daemon())
            second.wait_for("event=ready")
            second.signal(signal.SIGSTOP)
            deaf = stream.answered_in(6)
            second.signal(signal.SIGCONT)
        assert stream.failures == []
        # No timing: a server that waited for its meter would serve next to nothing.
        assert min(alone, deaf) > heard / 3
        site.wait_until_booked()
        assert len(finishes(site.ledger)) == stream.answered
        outages = [line for line in server.warnings if "the daemon is back" not in line]
        assert 1 <= len(outages) <= 3
        assert all("tokens are kept" in line for line in outages)
        site.close_books(second)
