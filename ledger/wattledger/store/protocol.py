"""What a ledger can be asked and told, whatever it is stored in."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from wattledger.fits import Calibrated, KeptFit
from wattledger.records import (
    Account,
    Amounts,
    Device,
    FinishedRequest,
    Page,
    Posting,
    Quality,
    SelfMetric,
)


@dataclass(frozen=True, slots=True)
class Filters:
    """Shell-style globs per dimension; within one any may match, across all must. Empty: all.

    A None value (an entry that has no job, say) matches no glob but `*`.
    """

    host: tuple[str, ...] = ()
    job: tuple[str, ...] = ()
    workload: tuple[str, ...] = ()
    engine: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    request: tuple[str, ...] = ()
    activity: tuple[str, ...] = ()

    def match_account(self, account: Account) -> bool:
        """Whether an account passes every dimension but host and request."""
        return all(
            glob_match(globs, value)
            for globs, value in (
                (self.job, account.job),
                (self.workload, account.workload),
                (self.engine, account.engine),
                (self.model, account.model),
                (self.activity, account.activity.value),
            )
        )


def glob_match(globs: Sequence[str], value: str | None) -> bool:
    """Whether `value` matches any of `globs` (no globs: yes; case-sensitive)."""
    if not globs:
        return True
    if value is None:
        return "*" in globs
    return any(fnmatch.fnmatchcase(value, glob) for glob in globs)


@dataclass(frozen=True, slots=True)
class Slice:
    """Sums of one account on one device of one host over [start_ns, end_ns), UTC."""

    start_ns: int
    end_ns: int
    host: str
    device: Device
    account: Account
    amounts: Amounts
    request: str | None = None


@dataclass(frozen=True, slots=True)
class SliceSet:
    """An answer of `Store.slices`; `prorated` tells that a stored window was cut."""

    slices: tuple[Slice, ...]
    prorated: bool = False


@dataclass(frozen=True, slots=True)
class DeviceBook:
    """One device's books over a window: what was metered against what was posted."""

    host: str
    device: Device
    metered_uj: int
    posted_uj: int
    metered_ns: int
    posted_ns: int
    gaps: int
    resets: int
    wraps: int


@dataclass(frozen=True, slots=True)
class Books:
    """All devices' books over a window, and the events counted in it."""

    devices: tuple[DeviceBook, ...]
    late: int = 0
    duplicates: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class MeteredSlice:
    """What one device's meter saw in [start_ns, end_ns), UTC; node meters are among them."""

    start_ns: int
    end_ns: int
    host: str
    device: Device
    energy_uj: int
    device_ns: int


@dataclass(frozen=True, slots=True)
class RequestEnergy:
    """A finished request with its energy per phase, summed over the devices of its engine."""

    host: str
    finish: FinishedRequest
    prefill_uj: int
    decode_uj: int
    method: str
    quality: Quality

    @property
    def energy_uj(self) -> int:
        """Prefill and decode together, microjoules."""
        return self.prefill_uj + self.decode_uj


@dataclass(frozen=True, slots=True)
class ImportedEntry:
    """A posting from another meter, with the host and device it belongs to."""

    host: str
    device: Device
    posting: Posting


class Store(Protocol):
    """One ledger. Energy devices of kind `node` are never among its slices."""

    def book(self, page: Page) -> bool:
        """Write a page, replacing what its clock and devices said of its window.

        Returns whether anything changed: booking the same page again returns False.
        """

    def book_all(self, pages: Iterable[Page]) -> int:
        """Write pages, all or none; returns how many of them changed anything."""

    def post(self, entries: Iterable[ImportedEntry]) -> int:
        """Put imported entries in the place of what was imported for the same thing before.

        The same thing: host, device, window, workload, job, engine, model and activity. Its
        quality, device model and the like are revised with its amounts. Returns rows changed.
        """

    def slices(self, edges_ns: Sequence[int], filters: Filters = Filters()) -> SliceSet:
        """Sums per account within each interval [edges[i], edges[i+1]).

        `edges_ns` ascends. A stored window that an edge cuts is prorated by
        `apportion.between`, so that any cutting adds up. With `filters.request` the answer
        comes from the per-request copies and its slices name the request.
        """

    def books(self, start_ns: int, end_ns: int) -> Books:
        """The balance of every device in the window; imbalance is prorated, never rounded in."""

    def requests(
        self, start_ns: int, end_ns: int, filters: Filters = Filters()
    ) -> list[RequestEnergy]:
        """Requests finished in the window, costliest first (ties: engine, then request).

        Several of one id, engine, boot and owner are one: with all their tokens, the energy of
        the id once, and the last one's end. Where an id had several owners each has its own.
        """

    def close(self) -> None:
        """Release the ledger; further calls are errors."""


@runtime_checkable
class MeterSeries(Protocol):
    """A ledger that tells many stretches' metered energy at once; any other is asked for books."""

    def metered(self, edges_ns: Sequence[int]) -> list[MeteredSlice]:
        """What was metered in each [edges[i], edges[i+1]), cut as slices are, by interval."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A piece of raw evidence as it came; `kind` says how `body` is read back."""

    kind: str
    body: bytes
    t_ns: int
    seq: int = 0


class Journal(Protocol):
    """The daemon's durable memory of raw evidence, one ordered log per host boot.

    An entry is durable when `append` returns; only then is an engine's batch acknowledged.
    After a crash the daemon folds the log again and stands where it stood. `t_ns` is
    CLOCK_MONOTONIC of that boot.
    """

    def append(self, boot_id: str, entries: Sequence[JournalEntry]) -> None:
        """Write entries in order, in one transaction."""

    def entries(self, boot_id: str) -> list[JournalEntry]:
        """Every entry of one boot, in the order written."""

    def boots(self) -> list[str]:
        """Boot ids that have entries, oldest first."""

    def trim(self, boot_id: str, before_t_ns: int) -> None:
        """Forget this boot's entries with t_ns below `before_t_ns`."""

    def forget(self, boot_id: str) -> None:
        """Forget a boot whose evidence is all booked."""


class Notebook(Protocol):
    """What the daemon notes of itself and of its hardware; no part of the books."""

    def note(self, metrics: Iterable[SelfMetric]) -> None:
        """Keep what the daemon says of itself; the same (t_ns, part, name) is replaced."""

    def noted(self, start_ns: int, end_ns: int) -> list[SelfMetric]:
        """Self-metrics in [start_ns, end_ns), UTC, by time, part and name."""

    def learn(self, host: str, devices: Iterable[Device], learned_ns: int) -> None:
        """Keep each device's learned idle power, for restarts; by host, device, kind and model.

        `learned_ns` is UTC. One without a `static_w` is forgotten.
        """

    def learned(self, host: str) -> list[Device]:
        """Devices of this host as `learn` was last told of them, by device, oldest first."""


@runtime_checkable
class FitBook(Protocol):
    """What a ledger keeps of calibrated cost models; one without has none to tell."""

    def calibrate(self, host: str, told: Iterable[Calibrated]) -> None:
        """Keep each key's state in the place of the one before, and add what fits are told."""

    def calibrations(self, host: str) -> list[str]:
        """States of this host as `calibrate` was last told of them, oldest first."""

    def fits(self, start_ns: int, end_ns: int) -> list[KeptFit]:
        """Fits found in [start_ns, end_ns), UTC, and the last before, by host, key and time."""


@dataclass(slots=True)
class Retention:
    """How long each tier is kept, days."""

    raw_days: float = 7.0
    minute_days: float = 400.0
    hour_days: float = 3650.0
    request_days: float = field(default=400.0)
