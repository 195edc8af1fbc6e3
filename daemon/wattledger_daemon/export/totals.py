"""Booked pages as totals that never go down; pure: no clock, no I/O, no logging.

A page may come again, whole, when a late event moved its window. A series' true total moves by
the difference to what the same window said of it before, down as well as up; what is exported is
the highest true total so far. So a correction downwards is a debt: the exported total stands
still until the books have caught up, and `ahead` says by how much it stands above them.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from wattledger.records import NS_PER_S, Account, DeviceKind, Metered, Page, Posting

OTHER = "(other)"
MAX_OWNERS = 200
HORIZON_NS = 600 * NS_PER_S
_MAX_LABEL = 200


class Quantity(StrEnum):
    """What a series counts; energy in microjoules, the others as they are."""

    ENERGY_UJ = "energy_uj"
    METERED_UJ = "metered_uj"
    GAPS = "gaps"
    RESETS = "resets"
    WRAPS = "wraps"
    PREFILL_TOKENS = "prefill_tokens"
    CACHED_TOKENS = "cached_tokens"
    DECODE_TOKENS = "decode_tokens"
    REQUESTS = "requests"
    LATE_EVENTS = "late"
    DUPLICATE_EVENTS = "duplicates"
    DROPPED_EVENTS = "dropped"


_OF_METER = (Quantity.GAPS, Quantity.RESETS, Quantity.WRAPS)
_OF_OWNER = (
    Quantity.PREFILL_TOKENS,
    Quantity.CACHED_TOKENS,
    Quantity.DECODE_TOKENS,
    Quantity.REQUESTS,
)
_OF_PAGE = (Quantity.LATE_EVENTS, Quantity.DUPLICATE_EVENTS, Quantity.DROPPED_EVENTS)


@dataclass(frozen=True, slots=True)
class Series:
    """One exported total; a label that says nothing of it is empty."""

    quantity: Quantity
    device: str = ""
    kind: str = ""
    workload: str = ""
    engine: str = ""
    model: str = ""
    activity: str = ""
    quality: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """All totals at one moment.

    `ahead_uj` is, per device and kind, by how much its exported energy stands above the books.
    `unseen` counts restated windows that an earlier run had booked, left out for want of what
    they said before.
    """

    totals: tuple[tuple[Series, int], ...] = ()
    ahead_uj: tuple[tuple[str, str, int], ...] = ()
    unseen: int = 0


Owner = tuple[str, str, str]
_OTHERS: Owner = (OTHER, OTHER, OTHER)


class Totals:
    """Folds pages into totals; bounded by owners, devices, and the windows within the horizon.

    `booked_until_ns` (CLOCK_MONOTONIC) is where an earlier run's books end, None without one.
    Owners (a workload with its engine and model) beyond `max_owners` are told together.
    """

    def __init__(
        self,
        booked_until_ns: int | None = None,
        *,
        horizon_ns: int = HORIZON_NS,
        max_owners: int = MAX_OWNERS,
    ) -> None:
        self._booked_until_ns = booked_until_ns
        self._horizon_ns = horizon_ns
        self._max_owners = max_owners
        self._owners: set[Owner] = set()
        self._numbers: dict[Series, int] = {}
        self._true: list[int] = []
        self._exported: list[int] = []
        # What each window within the horizon said, by its start: series' numbers and values.
        self._said: dict[int, tuple[array[int], tuple[int, ...]]] = {}
        self._unseen = 0

    def add(self, page: Page) -> None:
        """Take a page in, in the place of what its window said before."""
        start_ns = page.start_ns - page.clock.epoch_ns
        until_ns = self._booked_until_ns
        before = self._said.get(start_ns)
        if before is None and until_ns is not None and start_ns < until_ns:
            self._unseen += 1
            return
        moved = self._numbered(_amounts(page, self._owner))
        self._said[start_ns] = (array("l", moved.keys()), tuple(moved.values()))
        if before is not None:
            moved.subtract(dict(zip(*before, strict=True)))
        for number, value in moved.items():
            self._true[number] += value
            self._exported[number] = max(self._exported[number], self._true[number])
        self._advance(page.end_ns - page.clock.epoch_ns)

    def standing(self) -> Standing:
        """Every total as it is exported now."""
        ahead: dict[tuple[str, str], int] = {}
        for series, true, exported in zip(self._numbers, self._true, self._exported, strict=True):
            if series.quantity is Quantity.ENERGY_UJ:
                key = (series.device, series.kind)
                ahead[key] = ahead.get(key, 0) + exported - true
        return Standing(
            tuple(zip(self._numbers, self._exported, strict=True)),
            tuple((*key, ahead_uj) for key, ahead_uj in ahead.items()),
            self._unseen,
        )

    def _advance(self, end_ns: int) -> None:
        """Forget the windows that the accountant can no longer restate."""
        if self._booked_until_ns is not None and end_ns <= self._booked_until_ns:
            return
        self._booked_until_ns = end_ns
        # In order of their starts: each was put in when it was first booked. A page longer than
        # the horizon (a void hour) leaves none, itself included: it cannot be restated either.
        while self._said and (oldest_ns := next(iter(self._said))) < end_ns - self._horizon_ns:
            del self._said[oldest_ns]

    def _numbered(self, amounts: Iterable[tuple[Series, int]]) -> Counter[int]:
        """Amounts by their series' number; a new series begins at zero."""
        found: Counter[int] = Counter()
        for series, value in amounts:
            number = self._numbers.setdefault(series, len(self._numbers))
            if number == len(self._true):
                self._true.append(0)
                self._exported.append(0)
            found[number] += value
        return found

    def _owner(self, account: Account) -> Owner:
        owner = (label(account.workload), label(account.engine), label(account.model))
        if owner not in self._owners:
            if len(self._owners) >= self._max_owners:
                return _OTHERS
            self._owners.add(owner)
        return owner


def label(text: str | None) -> str:
    """A label's value: valid text of a bounded length, empty where nothing is known."""
    if not text:
        return ""
    # What is not UTF-8 in a process's name came in as lone surrogates.
    return text[:_MAX_LABEL].encode("utf-8", "replace").decode("utf-8")


def _amounts(page: Page, owner_of: Callable[[Account], Owner]) -> Iterator[tuple[Series, int]]:
    """All that a page says, series by series."""
    kinds = {device.device: device.kind for device in page.devices}
    for metered in page.metered:
        if metered.device in kinds:
            yield from _meter_amounts(metered, kinds[metered.device])
    for posting in page.postings:
        kind = kinds.get(posting.device)
        # A node's meter sees the parts once more: it is in METERED_UJ alone.
        if kind is not None and kind is not DeviceKind.NODE:
            yield from _posting_amounts(posting, kind, owner_of(posting.account))
    for quantity in _OF_PAGE:
        yield Series(quantity), getattr(page, quantity)


def _meter_amounts(metered: Metered, kind: DeviceKind) -> Iterator[tuple[Series, int]]:
    device = label(metered.device)
    yield Series(Quantity.METERED_UJ, device, kind), metered.energy_uj
    for quantity in _OF_METER:
        yield Series(quantity, device, kind), getattr(metered, quantity)


def _posting_amounts(
    posting: Posting, kind: DeviceKind, owner: Owner
) -> Iterator[tuple[Series, int]]:
    account, amounts = posting.account, posting.amounts
    if amounts.energy_uj:
        yield (
            Series(
                Quantity.ENERGY_UJ,
                label(posting.device),
                kind,
                *owner,
                account.activity,
                account.quality,
            ),
            amounts.energy_uj,
        )
    for quantity in _OF_OWNER:
        if value := getattr(amounts, quantity):
            yield Series(quantity, "", "", *owner), value
