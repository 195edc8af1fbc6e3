"""Requests that finished in a window: a posting at the instant of each, and what it was.

A finish has no energy: its posting counts the request and its cached tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wattledger.records import (
    Account,
    Activity,
    Amounts,
    Device,
    Finish,
    FinishedRequest,
    Posting,
    Quality,
)
from wattledger_daemon.heart.attribution.window import EngineWindow


@dataclass(frozen=True, slots=True)
class _Made:
    """An account, and how many requests with how many cached tokens stand in it at an instant."""

    account: Account
    amounts: list[Amounts]


class Ends:
    """What `finishes` say of requests of `engines`; on a host without devices they post nothing."""

    def __init__(
        self,
        finishes: Sequence[Finish],
        engines: Mapping[str, EngineWindow],
        devices: Sequence[Device],
    ) -> None:
        self._finishes = finishes
        self._engines = engines
        self._devices = {device.device: device for device in devices}
        self._accounts: dict[tuple[str, bool, str | None, str | None], Account] = {}

    def postings(self, epoch_ns: int) -> tuple[list[Posting], list[Posting]]:
        """Postings summed over requests, and those of each request; all at instants, in UTC."""
        sums: dict[tuple[int, int], _Made] = {}
        fine = []
        for finish in self._finishes:
            engine = self._engines[finish.engine]
            if engine.token_device is None:
                continue
            account = self._account(engine, finish)
            amounts = Amounts(cached_tokens=finish.cached_tokens, requests=finish.count)
            made = sums.setdefault((id(account), finish.t_ns), _Made(account, []))
            made.amounts.append(amounts)
            if finish.request:
                extent = epoch_ns + finish.t_ns, epoch_ns + finish.t_ns + 1
                fine.append(Posting(engine.token_device, account, *extent, amounts, finish.request))
        shared = []
        for (_, t_ns), made in sums.items():
            device = self._engines[made.account.engine or ""].token_device or ""
            extent = epoch_ns + t_ns, epoch_ns + t_ns + 1
            shared.append(Posting(device, made.account, *extent, summed(made.amounts)))
        return shared, fine

    def finished(self, epoch_ns: int) -> tuple[FinishedRequest, ...]:
        """What is to be remembered of each request that has a name."""
        return tuple(
            FinishedRequest(
                finish.request,
                finish.engine,
                self._engines[finish.engine].engine.model,
                *_owner_of(self._engines[finish.engine], finish),
                epoch_ns + finish.t_ns,
                finish.prompt_tokens,
                finish.cached_tokens,
                finish.decode_tokens,
            )
            for finish in self._finishes
            if finish.request
        )

    def _account(self, engine: EngineWindow, finish: Finish) -> Account:
        """The account of a finish, each made once."""
        workload, job = _owner_of(engine, finish)
        key = (finish.engine, bool(finish.decode_tokens), workload, job)
        known = self._accounts.get(key)
        if known is None:
            device = self._devices[engine.token_device or ""]
            known = self._accounts[key] = Account(
                Activity.DECODE if finish.decode_tokens else Activity.PREFILL,
                Quality.ESTIMATED if device.estimated else Quality.MEASURED,
                engine.method,
                device.static_basis,
                workload,
                job,
                finish.engine,
                engine.engine.model,
            )
        return known


def _owner_of(engine: EngineWindow, finish: Finish) -> tuple[str | None, str | None]:
    """Whose the request was just before: its id may begin again at that very moment."""
    return engine.whose.at(finish.request, finish.t_ns - 1)


def summed(amounts: Sequence[Amounts]) -> Amounts:
    """All of them together."""
    if len(amounts) == 1:
        return amounts[0]
    return Amounts(
        sum(a.static_uj for a in amounts),
        sum(a.dynamic_uj for a in amounts),
        sum(a.device_ns for a in amounts),
        sum(a.prefill_tokens for a in amounts),
        sum(a.cached_tokens for a in amounts),
        sum(a.decode_tokens for a in amounts),
        sum(a.requests for a in amounts),
    )
