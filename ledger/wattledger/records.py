"""What flows between the rooms: evidence in, entries out.

Evidence (readings, use, steps) is stamped `t_ns` on one host's CLOCK_MONOTONIC; a `Clock`
ties it to UTC. Entries (postings, metered energy, finished requests) are stamped in UTC
nanoseconds. Windows are half-open. Energy is integer microjoules, time integer nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

NS_PER_S = 1_000_000_000
UJ_PER_J = 1_000_000


class DeviceKind(StrEnum):
    """What a meter hangs on; a `node` meter reconciles and is never part of totals."""

    GPU = "gpu"
    CPU = "cpu"
    DRAM = "dram"
    NODE = "node"


class Quality(StrEnum):
    """How an energy came to be known, from best to worst (accounting.md, section 1)."""

    MEASURED = "measured"
    INTEGRATED = "integrated"
    SPREAD = "spread"
    RESET = "reset"
    IMPORTED = "imported"
    ESTIMATED = "estimated"


QUALITY_ORDER = tuple(Quality)


class Activity(StrEnum):
    """What the energy was for."""

    PREFILL = "prefill"
    DECODE = "decode"
    ENGINE_IDLE = "engine_idle"
    PROCESS = "process"
    IDLE = "idle"
    UNATTRIBUTED = "unattributed"


class StaticBasis(StrEnum):
    """Where a device's idle power is known from; `unknown` books all energy as dynamic."""

    CONFIG = "config"
    CATALOGUE = "catalogue"
    LEARNED = "learned"
    GIVEN = "given"
    UNKNOWN = "unknown"


# --------------------------------------------------------------------------- evidence


@dataclass(frozen=True, slots=True)
class Clock:
    """One stretch of a host's monotonic clock without a wall-clock step: UTC = epoch_ns + t_ns.

    A step of the wall clock opens a new `Clock`, so that windows written before and after it
    never share a key.
    """

    host: str
    boot_id: str
    epoch_ns: int


@dataclass(frozen=True, slots=True)
class Device:
    """A metered part of a host.

    `static_w` is its idle power in watts, None where unknown. `wrap_uj` is the range of a
    wrapping counter (powercap `max_energy_range_uj`), None for a 64-bit one. `estimated` marks
    a gauge that no sensor measured.
    """

    device: str
    kind: DeviceKind
    model: str | None = None
    static_w: float | None = None
    static_basis: StaticBasis = StaticBasis.UNKNOWN
    wrap_uj: int | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class CounterReading:
    """A cumulative energy counter, read at `t_ns`."""

    device: str
    t_ns: int
    energy_uj: int


@dataclass(frozen=True, slots=True)
class PowerReading:
    """A power gauge, read at `t_ns`.

    `carried_half_fj` stands at the start of a recording: what the daemon's sum held there beyond
    whole microjoules, in units of 0.5 fJ, so that a replay rounds where the daemon did.
    """

    device: str
    t_ns: int
    power_uw: int
    carried_half_fj: int = 0


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """What one process used of a device; None where the source does not tell.

    `sm_percent` is streaming-multiprocessor utilization, `memory_bytes` memory held,
    `ticks` CPU time in any unit shared with the record's `total`.
    """

    pid: int
    sm_percent: float | None = None
    memory_bytes: int | None = None
    ticks: int | None = None


@dataclass(frozen=True, slots=True)
class GroupUse:
    """What a whole control group used of a device, children that died included.

    `workload` and `job` say whose it is; `pids` are those of the record's processes that live in
    it, whose own use is part of the group's. `ticks` and `memory_bytes` as in `ProcessUse`.
    """

    workload: str | None
    job: str | None
    pids: tuple[int, ...] = ()
    ticks: int | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class UseRecord:
    """Who used a device in [start_ns, end_ns).

    `total` is the machine's busy ticks (cpu) or its memory in bytes (dram); None elsewhere.
    `capacity` is all the ticks there were, busy or not (cpu). `basis` names how utilization was
    found where that is not the plain way (a partitioned GPU, say).
    """

    device: str
    start_ns: int
    end_ns: int
    processes: tuple[ProcessUse, ...]
    total: int | None = None
    groups: tuple[GroupUse, ...] = ()
    capacity: int | None = None
    basis: str = ""


@dataclass(frozen=True, slots=True)
class Process:
    """Who a process is; (pid, start) is its identity, `start` in clock ticks since boot."""

    pid: int
    start: int
    workload: str | None
    job: str | None


@dataclass(frozen=True, slots=True)
class Engine:
    """An inference engine and the processes it runs in.

    The steps of a `coarse` one are sums over stretches of time, read off counters.
    """

    engine: str
    kind: str
    model: str | None
    pids: tuple[int, ...]
    coarse: bool = False


@dataclass(frozen=True, slots=True)
class RequestOwner:
    """Whose a request is, where its engine serves several; None: the engine's own owner.

    It holds from `since_ns` (CLOCK_MONOTONIC) on: an id may come again as another client's.
    """

    engine: str
    request: str
    workload: str | None
    job: str | None
    since_ns: int = 0


class RequestTokens(NamedTuple):
    """One request's part of a step: tokens computed, and the context its decode attended to.

    The request "" is nobody in particular: its energy is booked by phase, but to no request.
    A tuple, since a busy engine makes 100,000 of them a second.
    """

    request: str
    prefill_tokens: int
    decode_tokens: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """One iteration of an engine in [start_ns, end_ns); empty `requests`: breakdown unknown.

    `source` tells reporters of one engine apart: several may tell of one forward pass.
    """

    engine: str
    seq: int
    start_ns: int
    end_ns: int
    requests: tuple[RequestTokens, ...]
    source: str = ""


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a request as its engine counted it; of `count` requests where it is ""."""

    engine: str
    request: str
    t_ns: int
    prompt_tokens: int
    cached_tokens: int
    decode_tokens: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class CostModel:
    """Energy of a step: f + sum(a * prefill + b * decode + c * context), joules.

    Only ratios matter to a split; totals always come from the meter.
    """

    f_j: float
    a_j: float
    b_j: float
    c_j: float
    method: str = "pinned"


DEFAULT_COST_MODEL = CostModel(0.0, 1.0, 8.0, 0.0, "default-weights")
CALIBRATED = "calibrated"  # learned from this very engine, in its own joules


@dataclass(frozen=True, slots=True)
class PinnedCost:
    """A cost model pinned to an engine by a trace or by config."""

    engine: str
    cost: CostModel


Evidence = (
    Device
    | CounterReading
    | PowerReading
    | UseRecord
    | Process
    | Engine
    | Step
    | Finish
    | RequestOwner
    | PinnedCost
)


# ---------------------------------------------------------------------------- entries


@dataclass(frozen=True, slots=True)
class Account:
    """Whose an entry is and how it was found; None where the ledger cannot say."""

    activity: Activity
    quality: Quality
    method: str
    static_basis: StaticBasis = StaticBasis.UNKNOWN
    workload: str | None = None
    job: str | None = None
    engine: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Amounts:
    """What an entry holds; all integers, so that any two sums agree exactly."""

    static_uj: int = 0
    dynamic_uj: int = 0
    device_ns: int = 0
    prefill_tokens: int = 0
    cached_tokens: int = 0
    decode_tokens: int = 0
    requests: int = 0

    @property
    def energy_uj(self) -> int:
        """Static and dynamic energy together, microjoules."""
        return self.static_uj + self.dynamic_uj


@dataclass(frozen=True, slots=True)
class Posting:
    """One account's part of one device in [start_ns, end_ns), UTC nanoseconds.

    `request` is set only on the finer copies from which per-request figures are told.
    """

    device: str
    account: Account
    start_ns: int
    end_ns: int
    amounts: Amounts
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Metered:
    """What the meter itself saw of a device in [start_ns, end_ns), UTC nanoseconds.

    `device_ns` is the metered time; gaps, resets and wraps are counted in the window where
    they ended.
    """

    device: str
    start_ns: int
    end_ns: int
    energy_uj: int
    device_ns: int
    gaps: int = 0
    resets: int = 0
    wraps: int = 0


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """A finished request; `finished_ns` is UTC, its energy lies in the postings that name it."""

    request: str
    engine: str
    model: str | None
    workload: str | None
    job: str | None
    finished_ns: int
    prompt_tokens: int
    cached_tokens: int
    decode_tokens: int


@dataclass(frozen=True, slots=True)
class Page:
    """All that one window of one host's clock says; booking it again replaces it.

    Entries lie in [start_ns, end_ns), UTC nanoseconds. `late`, `duplicates` and `dropped`
    count engine events received in the window.
    """

    clock: Clock
    start_ns: int
    end_ns: int
    devices: tuple[Device, ...]
    metered: tuple[Metered, ...]
    postings: tuple[Posting, ...]
    request_postings: tuple[Posting, ...] = ()
    finished: tuple[FinishedRequest, ...] = ()
    late: int = 0
    duplicates: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class SelfMetric:
    """What the daemon says of itself: `name` of `part` (a sensor, a device, the pipeline).

    `t_ns` is UTC. The name ends in its unit; one without a unit is a count.
    """

    t_ns: int
    part: str
    name: str
    value: float
