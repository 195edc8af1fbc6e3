"""What the last booked windows say of workloads and engines: power, tokens, energy per token.

The pipeline thread sums a page once, when it is booked; means are made only where somebody asks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from wattledger.records import (
    NS_PER_S,
    UJ_PER_J,
    Account,
    Activity,
    DeviceKind,
    Page,
    Posting,
    Quality,
)

SPAN_NS = 30 * NS_PER_S
MAX_GROUPS = 200
_LONGEST_NS = 60 * NS_PER_S
"""A longer page is a stretch in which nothing happened: no part of a mean of now."""

_NOBODY = (Activity.IDLE, Activity.UNATTRIBUTED)


class Group(NamedTuple):
    """A workload and job, or what is `nobody`'s: idle, unattributed, or the smallest others."""

    workload: str | None
    job: str | None
    nobody: str = ""


OTHERS = Group(None, None, "others")


@dataclass(slots=True)
class Sums:
    """Energy in microjoules, tokens and finished requests."""

    energy_uj: int = 0
    estimated_uj: int = 0
    prefill_uj: int = 0
    decode_uj: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    requests: int = 0

    def take(self, posting: Posting) -> None:
        """Add a posting."""
        account, amounts = posting.account, posting.amounts
        energy_uj = amounts.energy_uj
        self.energy_uj += energy_uj
        if account.quality is Quality.ESTIMATED:
            self.estimated_uj += energy_uj
        if account.activity is Activity.PREFILL:
            self.prefill_uj += energy_uj
        elif account.activity is Activity.DECODE:
            self.decode_uj += energy_uj
        self.prefill_tokens += amounts.prefill_tokens
        self.decode_tokens += amounts.decode_tokens
        self.requests += amounts.requests

    def add(self, other: Sums) -> None:
        """Add other sums."""
        self.energy_uj += other.energy_uj
        self.estimated_uj += other.estimated_uj
        self.prefill_uj += other.prefill_uj
        self.decode_uj += other.decode_uj
        self.prefill_tokens += other.prefill_tokens
        self.decode_tokens += other.decode_tokens
        self.requests += other.requests


@dataclass(frozen=True, slots=True)
class EngineSums:
    """An engine's sums, and whose it is."""

    workload: str | None
    job: str | None
    sums: Sums = field(default_factory=Sums)


@dataclass(frozen=True, slots=True)
class WindowSums:
    """One booked window on CLOCK_MONOTONIC; made once, never changed."""

    start_ns: int
    end_ns: int
    groups: dict[Group, Sums]
    engines: dict[str, EngineSums]


def window_sums(page: Page) -> WindowSums:
    """A page's energy and tokens by group and by engine; whole-node meters are left out."""
    nodes = {device.device for device in page.devices if device.kind is DeviceKind.NODE}
    groups: dict[Group, Sums] = defaultdict(Sums)
    engines: dict[str, EngineSums] = {}
    for posting in page.postings:
        if posting.device in nodes:
            continue
        account = posting.account
        groups[_group(account)].take(posting)
        if account.engine is not None:
            held = engines.get(account.engine)
            # Its requests may be others'; idle it is its own.
            if held is None or account.activity is Activity.ENGINE_IDLE:
                sums = Sums() if held is None else held.sums
                held = EngineSums(account.workload, account.job, sums)
                engines[account.engine] = held
            held.sums.take(posting)
    epoch_ns = page.clock.epoch_ns
    return WindowSums(page.start_ns - epoch_ns, page.end_ns - epoch_ns, dict(groups), engines)


def _group(account: Account) -> Group:
    owned = account.workload is not None or account.job is not None or account.engine is not None
    nobody = "" if owned or account.activity not in _NOBODY else account.activity.value
    return Group(account.workload, account.job, nobody)


class LastWindows:
    """The windows booked last, some 30 s of them; used by the pipeline thread alone."""

    def __init__(self) -> None:
        self._windows: dict[int, WindowSums] = {}

    def booked(self, page: Page) -> None:
        """Take a page; one that restates a window takes its place."""
        if page.end_ns - page.start_ns > _LONGEST_NS:
            return
        fresh = window_sums(page)
        windows = {**self._windows, fresh.start_ns: fresh}
        since_ns = max(window.end_ns for window in windows.values()) - SPAN_NS
        self._windows = {start: w for start, w in windows.items() if w.end_ns > since_ns}

    @property
    def windows(self) -> tuple[WindowSums, ...]:
        """The windows, in no particular order."""
        return tuple(self._windows.values())


@dataclass(frozen=True, slots=True)
class Figures:
    """Sums over `span_ns` of booked time that ended at `end_ns`, CLOCK_MONOTONIC."""

    span_ns: int
    end_ns: int
    groups: tuple[tuple[Group, Sums], ...]
    engines: dict[str, EngineSums]

    def per_s(self, count: int) -> float:
        """A count as a rate."""
        return count / (self.span_ns / NS_PER_S)

    def power_w(self, energy_uj: int) -> float:
        """An energy as mean power, watts."""
        return energy_uj / UJ_PER_J / (self.span_ns / NS_PER_S)


def figures(windows: Sequence[WindowSums]) -> Figures | None:
    """All windows together, the largest groups first; None where there are none."""
    if not windows:
        return None
    groups: dict[Group, Sums] = defaultdict(Sums)
    engines: dict[str, EngineSums] = {}
    for window in sorted(windows, key=lambda window: window.start_ns):
        for group, sums in window.groups.items():
            groups[group].add(sums)
        for name, engine in window.engines.items():
            # The latest window knows best whose it is.
            so_far = engines[name].sums if name in engines else Sums()
            so_far.add(engine.sums)
            engines[name] = EngineSums(engine.workload, engine.job, so_far)
    span_ns = sum(window.end_ns - window.start_ns for window in windows)
    end_ns = max(window.end_ns for window in windows)
    return Figures(span_ns, end_ns, _largest(groups.items()), engines)


def _largest(groups: Iterable[tuple[Group, Sums]]) -> tuple[tuple[Group, Sums], ...]:
    """At most `MAX_GROUPS` by energy, what is beyond them as one."""
    ordered = sorted(groups, key=lambda item: (-item[1].energy_uj, str(item[0])))
    if len(ordered) <= MAX_GROUPS:
        return tuple(ordered)
    rest = Sums()
    for _, sums in ordered[MAX_GROUPS - 1 :]:
        rest.add(sums)
    return (*ordered[: MAX_GROUPS - 1], (OTHERS, rest))


def per_token(energy_uj: int, tokens: int) -> float | None:
    """Joules per token; None without tokens."""
    return energy_uj / UJ_PER_J / tokens if tokens else None
