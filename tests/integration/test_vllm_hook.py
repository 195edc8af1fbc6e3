"""The hook in a real vLLM: without a server, broken, and in a vLLM whose internals are renamed."""

from __future__ import annotations

import json
import re
import signal
import subprocess

import pytest

from fakes.ledger_reading import assert_balanced, finishes, posted_requests, posted_tokens
from fakes.vllm_server import ROOT, is_of_outage, vllm_python
from fakes.vllm_site import metered, vllm_site
from fakes.vllm_traffic import Clients

pytestmark = pytest.mark.engine

FAKES = ROOT / "tests" / "fakes"


def test_offline_use_is_metered_and_outlives_a_broken_hook() -> None:
    with vllm_site() as site, site.daemon() as daemon:
        daemon.wait_for("event=ready")
        result = site.folder / "result"
        ran = subprocess.run(
            [vllm_python(), FAKES / "vllm_script" / "offline.py", site.model, result],
            env=site.attached(WATTLEDGER_JOB="night"),
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        assert ran.returncode == 0, ran.stdout[-6000:]
        counted = json.loads(result.read_text())
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_status() == 0
        metered, unmetered = counted["metered"], counted["unmetered"]
        assert metered["requests"] == 2 * unmetered["requests"] == 32
        assert unmetered["decode_tokens"] == 16 * 20
        done = finishes(site.ledger)
        assert {finish.job for finish in done} == {"night"}
        assert len({finish.request for finish in done}) == len(done) == 32
        booked = posted_tokens(site.ledger)
        assert booked.prefill_tokens + booked.cached_tokens == metered["prompt_tokens"]
        assert booked.cached_tokens > 0
        assert booked.decode_tokens == metered["decode_tokens"]
        assert_balanced(site.ledger)
        told = [
            line for line in re.findall(r"wattledger: .*", ran.stdout) if not is_of_outage(line)
        ]
        assert len(told) == 1
        assert "broken on purpose" in told[0]


def test_renamed_internals_leave_the_sums() -> None:
    """The stat logger alone: what each step computed, by phase, and who finished."""
    with metered(PYTHONPATH=str(FAKES / "vllm_renamed")) as (site, daemon):
        clients = Clients(site.server)
        clients.ask(48)
        site.wait_until_booked()
        # Nobody's requests: counted, with their tokens, and none by its name.
        assert posted_requests(site.ledger) == site.server.counters().finished
        assert finishes(site.ledger) == []
        (told,) = site.server.complaints
        assert "cannot be read" in told
        site.close_books(daemon)
