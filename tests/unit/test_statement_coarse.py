"""Engines that tell of stretches of time alone: every statement says how much of it they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.entries import H100, window
from fakes.memory_store import MemoryStore
from wattledger.carbon.intensity import ConstantIntensity
from wattledger.carbon.pue import ConstantPue
from wattledger.records import (
    NS_PER_S,
    Account,
    Activity,
    Amounts,
    Clock,
    FinishedRequest,
    Page,
    Posting,
    Quality,
    StaticBasis,
)
from wattledger.statement.carbon import carbon_statement
from wattledger.statement.jobs import jobs_statement, models_statement
from wattledger.statement.lines import is_coarse
from wattledger.statement.query import CarbonQuery, UsageQuery
from wattledger.statement.requests import requests_statement
from wattledger.statement.usage import usage_statement
from wattledger.store.protocol import Filters

S = NS_PER_S
TEN = window(0, 10)
FINE = Account(
    Activity.DECODE, Quality.MEASURED, "pinned", StaticBasis.CONFIG, "w", "a", "vllm-a", "m"
)
COARSE = replace(FINE, method="coarse", job="b", engine="sgl-a")


def posting(account: Account, energy_j: int, request: str | None = None) -> Posting:
    amounts = Amounts(0, energy_j * 1_000_000, 5 * S)
    return Posting("gpu0", account, 0, 10 * S, amounts, request)


def finished(account: Account, request: str) -> FinishedRequest:
    return FinishedRequest(request, account.engine or "", "m", "w", account.job, 5 * S, 9, 0, 1)


STORE = MemoryStore(
    [
        Page(
            Clock("h1", "boot", 0),
            0,
            10 * S,
            (H100,),
            (),
            (posting(FINE, 75), posting(COARSE, 25)),
            (posting(FINE, 75, "r1"), posting(COARSE, 25, "r2")),
            (finished(FINE, "r1"), finished(COARSE, "r2")),
        )
    ]
)


def share(warnings: object) -> list[str]:
    assert isinstance(warnings, list)
    return [line.split(" of the energy")[0] for line in warnings if "is split coarsely" in line]


@pytest.mark.parametrize("by", [(), ("job",), ("engine", "activity")])
def test_usage_and_carbon_say_which_share_is_coarse(by: tuple[str, ...]) -> None:
    told = usage_statement(STORE, UsageQuery(window=TEN, by=by)).to_json()
    assert share(told["warnings"]) == ["25.0 %"]
    query = CarbonQuery(window=TEN, by=by, intensity=ConstantIntensity(100.0), pue=ConstantPue(1.0))
    assert share(carbon_statement(STORE, query).to_json()["warnings"]) == ["25.0 %"]


def test_a_selection_without_a_coarse_engine_says_nothing_of_it() -> None:
    query = UsageQuery(window=TEN, filters=Filters(engine=("vllm-a",)))
    assert share(usage_statement(STORE, query).to_json()["warnings"]) == []
    assert requests_statement(STORE, TEN, Filters(request=("r1",))).warnings == ()
    assert jobs_statement(STORE, TEN, Filters(job=("a",))).warnings == ()


def test_requests_jobs_and_models_say_it_too() -> None:
    assert share(requests_statement(STORE, TEN).to_json()["warnings"]) == ["25.0 %"]
    priced = requests_statement(STORE, TEN, intensity=ConstantIntensity(100.0)).to_json()
    assert share(priced["warnings"]) == ["25.0 %"]
    assert share(jobs_statement(STORE, TEN).to_json()["warnings"]) == ["25.0 %"]
    assert share(models_statement(STORE, TEN).to_json()["warnings"]) == ["25.0 %"]


@pytest.mark.parametrize(
    ("method", "coarse"),
    [("coarse", True), ("coarse/memory-share", True), ("coarsely", False), ("pinned", False)],
)
def test_which_methods_are_coarse(method: str, coarse: bool) -> None:
    assert is_coarse(method) is coarse
