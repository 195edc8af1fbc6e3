"""What the hook costs a real `vllm serve`: hooked and unhooked rounds in turn, in one process.

The server runs on CPUs with a tiny model (`scripts/engines.sh vllm`), beside a real daemon. A CPU
step takes about as long as a GPU's, but on a machine of few cores the engine, its API server, the
client and the daemon share them, so all that we cost shows here; on a GPU host less would.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from benchmarks.table import BenchError, Figure
from fakes.vllm_server import VllmServer
from fakes.vllm_site import VllmSite, vllm_site

PAIRS = 24
CLIENTS = 4
PROMPTS = 8
TOKENS = 200
MIDDLEWARE = Path(__file__).parent / "vllm_toggle"


class Round:
    """One round's tokens per second, and the API server's CPU time."""

    def __init__(self, server: VllmServer, hooked: bool) -> None:
        server.request("GET", "/hook/on" if hooked else "/hook/off")
        before_s, start_s = _cpu_s(server.process.pid), time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as clients:
            tokens = sum(clients.map(_ask, [server] * CLIENTS))
        self.tokens_per_s = tokens / (time.perf_counter() - start_s)
        self.cpu_us_per_token = (_cpu_s(server.process.pid) - before_s) / tokens * 1e6


def _ask(server: VllmServer) -> int:
    """One request of several prompts: little work for the client."""
    prompts = [f"prompt {number} of many" for number in range(PROMPTS)]
    return int(server.complete(prompts, TOKENS)["usage"]["completion_tokens"])


def _cpu_s(pid: int) -> float:
    """Of all threads; a process's own count has steps of 10 ms."""
    spent_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # a thread that has just ended
            spent_ns += int((task / "schedstat").read_text().split()[0])
    return spent_ns / 1e9


def measure() -> list[Figure]:
    """Medians over pairs, each of a hooked and an unhooked round, which take turns to be first."""
    with vllm_site() as site, site.daemon() as daemon:
        daemon.wait_for("event=ready")
        return _measure(site)


def _measure(site: VllmSite) -> list[Figure]:
    # Attaching puts its own folders first.
    with site.serving("--middleware", "engine_toggle.Toggle", PYTHONPATH=str(MIDDLEWARE)) as server:
        for hooked in (True, False, True):
            Round(server, hooked)  # the first ones of a server are slower
        pairs = [_pair(server, number % 2 == 0) for number in range(PAIRS)]
        if server.complaints:
            raise BenchError(server.complaints[0])
    lost = [100 * (1 - hooked.tokens_per_s / bare.tokens_per_s) for hooked, bare in pairs]
    added = [hooked.cpu_us_per_token - bare.cpu_us_per_token for hooked, bare in pairs]
    low, high = _interval(lost)
    rate = statistics.median(bare.tokens_per_s for _, bare in pairs)
    return [
        Figure("vLLM's throughput lost to the hook, median of pairs", _middle(lost), "%", 0.5),
        Figure("the same, low end of its 90 % interval", low, "%"),
        Figure("the same, high end of its 90 % interval", high, "%"),
        Figure("CPU added to vLLM's API server per token", _middle(added), "us"),
        Figure("vLLM's throughput without the hook", rate, "tokens/s"),
    ]


def _pair(server: VllmServer, hooked_first: bool) -> tuple[Round, Round]:
    first = Round(server, hooked_first)
    second = Round(server, not hooked_first)
    return (first, second) if hooked_first else (second, first)


def _middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def _interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """Bootstrap of the median."""
    rng = random.Random(4)
    medians = sorted(_middle(rng.choices(values, k=len(values))) for _ in range(draws))
    return medians[draws // 20], medians[-draws // 20]
