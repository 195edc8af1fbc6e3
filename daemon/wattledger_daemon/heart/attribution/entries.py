"""One device's parts become entries: rounded into integers, and with their tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from wattledger.apportion import apportion_in_order
from wattledger.records import Account, Activity, Amounts, Quality
from wattledger_daemon.heart.attribution.phases import Phase
from wattledger_daemon.heart.attribution.steps import Quantities
from wattledger_daemon.heart.attribution.whose import Owner

AccountOf = Callable[[Activity, Owner], Account]
_Key = tuple[str, Quality, str]


class Entry(NamedTuple):
    """One account's part of a device over the whole window, before it is dated.

    `request` is None where it is nobody's in particular. Entries of one account follow each
    other and share the very object.
    """

    device: str
    account: Account
    request: str | None
    amounts: Amounts


class _Row:
    """An entry in the making."""

    __slots__ = ("account", "decode_tokens", "prefill_tokens", "quantities", "request")

    def __init__(
        self, account: Account, request: str | None, quantities: tuple[float, float, float]
    ) -> None:
        self.account = account
        self.request = request
        self.quantities = quantities
        self.prefill_tokens = self.decode_tokens = 0


class Draft:
    """One device's parts before rounding: `parts` by account, and those of requests' phases.

    `accounts` are those made so far, by engine, quality and basis.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.parts: dict[Account, Quantities] = defaultdict(Quantities)
        self.accounts: dict[_Key, dict[tuple[bool, Owner], Account]] = defaultdict(dict)
        self._rows: list[_Row] = []
        # By engine, then by place among its phases.
        self._rows_of: dict[str, dict[int, list[_Row]]] = defaultdict(dict)

    def share(
        self,
        engine: str,
        phases: Sequence[Phase],
        quantities: Sequence[tuple[float, float, float]],
        account_of: AccountOf,
    ) -> None:
        """Take what an engine's phases have of the device."""
        rows_of, whose = self._rows_of[engine], None
        for at, ((activity, owner, request), held) in enumerate(
            zip(phases, quantities, strict=True)
        ):
            if not any(held):
                continue
            # Phases of one account follow each other.
            if whose is None or whose[0] is not activity or whose[1] != owner:
                whose, account = (activity, owner), account_of(activity, owner)
            row = _Row(account, request or None, held)
            self._rows.append(row)
            rows_of.setdefault(at, []).append(row)

    def count(
        self,
        engine: str,
        phases: Sequence[Phase],
        tokens: Sequence[int],
        account_of: AccountOf,
    ) -> None:
        """Take the tokens of an engine's phases; each stands where most of its energy does."""
        rows_of = self._rows_of[engine]
        for at, (phase, count) in enumerate(zip(phases, tokens, strict=True)):
            if not count:
                continue
            rows = rows_of.setdefault(at, [])
            if not rows:
                account = account_of(phase.activity, phase.owner)
                rows.append(_Row(account, phase.request or None, (0.0, 0.0, 0.0)))
                self._rows.append(rows[0])
            best = max(rows, key=lambda row: row.quantities[0] + row.quantities[1])
            if phase.activity is Activity.PREFILL:
                best.prefill_tokens += count
            else:
                best.decode_tokens += count

    def entries(self, static_uj: int, dynamic_uj: int, length_ns: int) -> Iterator[Entry]:
        """Entries that sum to the device's static energy, dynamic energy and time exactly."""
        rows = self._ordered()
        columns = (
            _column(total, [row.quantities[at] for row in rows])
            for at, total in enumerate((static_uj, dynamic_uj, length_ns))
        )
        for row, static, dynamic, time in zip(rows, *columns, strict=True):
            prefill, decode = row.prefill_tokens, row.decode_tokens
            if static or dynamic or time or prefill or decode:
                amounts = Amounts(static, dynamic, time, prefill, 0, decode)
                yield Entry(self._device, row.account, row.request, amounts)

    def _ordered(self) -> list[_Row]:
        """Every row by account, then request: the order in which ties are settled."""
        by_account: dict[int, list[_Row]] = defaultdict(list)
        for account, part in self.parts.items():
            held = part.static_uj, part.dynamic_uj, part.device_ns
            by_account[id(account)].append(_Row(account, None, held))
        for row in self._rows:
            by_account[id(row.account)].append(row)
        groups = sorted(by_account.values(), key=lambda rows: _key_of(rows[0].account))
        return [row for rows in groups for row in rows]


def _key_of(account: Account) -> tuple[str, ...]:
    names = (account.workload, account.job, account.engine, account.model)
    known = (account.activity, account.quality, account.method, account.static_basis)
    return (*known, *map(repr, names))


def _column(total: int, weights: Sequence[float]) -> Sequence[int]:
    """`apportion` among those with a claim; with no claim at all, among everyone."""
    if not total or not weights:
        return [0] * len(weights)
    return apportion_in_order(total, weights)
