"""Small worlds for the heart's tests: one GPU, one engine, times in seconds, energy in joules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from wattledger.records import (
    Activity,
    Clock,
    CostModel,
    CounterReading,
    Device,
    DeviceKind,
    Engine,
    Evidence,
    Page,
    PinnedCost,
    Process,
    ProcessUse,
    RequestTokens,
    StaticBasis,
    Step,
    UseRecord,
)
from wattledger.trace import Trace, TraceHeader
from wattledger_daemon.replay import replay

EPOCH_NS = 1_790_000_000_000_000_000
CLOCK = Clock("h1", "boot", EPOCH_NS)
PID = 41
MODEL = CostModel(40.0, 0.05, 2.0, 0.0, "pinned")


def ns(seconds: float) -> int:
    return round(seconds * 1_000_000_000)


def gpu(static_w: float | None = None, name: str = "gpu0") -> Device:
    basis = StaticBasis.UNKNOWN if static_w is None else StaticBasis.GIVEN
    return Device(name, DeviceKind.GPU, "NVIDIA H200", static_w, basis)


def counter(points: Iterable[tuple[float, float]], device: str = "gpu0") -> list[Evidence]:
    return [CounterReading(device, ns(t_s), round(e_j * 1e6)) for t_s, e_j in points]


def step(
    seq: int,
    start_s: float,
    end_s: float,
    requests: Sequence[tuple[str, int, int]] = (),
    engine: str = "e",
) -> Step:
    tokens = tuple(RequestTokens(name, prefill, decode, 0) for name, prefill, decode in requests)
    return Step(engine, seq, ns(start_s), ns(end_s), tokens)


def owned_engine(end_s: float = 1000.0, cost: CostModel | None = MODEL) -> list[Evidence]:
    """An engine whose one process is the sole owner of gpu0."""
    evidence: list[Evidence] = [
        Process(PID, 1, "vllm.service", "4711"),
        Engine("e", "vllm", "llama-3-8b", (PID,)),
        UseRecord("gpu0", 0, ns(end_s), (ProcessUse(PID, 60, 1 << 30),)),
    ]
    return evidence + ([PinnedCost("e", cost)] if cost else [])


def pages_of(evidence: Iterable[Evidence], window_s: int = 5) -> list[Page]:
    return replay(Trace(TraceHeader("h1", EPOCH_NS), tuple(evidence), 0), window_s)


def joules(pages: Iterable[Page]) -> dict[str, float]:
    """Total per activity."""
    sums: dict[str, int] = defaultdict(int)
    for page in pages:
        for posting in page.postings:
            sums[posting.account.activity] += posting.amounts.energy_uj
    return {activity: uj / 1e6 for activity, uj in sums.items() if uj}


def request_uj(pages: Iterable[Page]) -> dict[tuple[str, Activity], int]:
    """Energy per request and phase."""
    sums: dict[tuple[str, Activity], int] = defaultdict(int)
    for page in pages:
        for posting in page.request_postings:
            assert posting.request is not None
            sums[posting.request, posting.account.activity] += posting.amounts.energy_uj
    return dict(sums)
