"""Two engines that claim one process are told of once, and which of them to switch off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fakes.collecting import question
from fakes.pipeline_world import begin
from wattledger_daemon.health import EngineHealth
from wattledger_daemon.rivals import Rivals, reporter_pid

S = 1_000_000_000
HOOK = EngineHealth("vllm-7", "vllm", "m", (7, 8), 0, 0, 0, 0, 0, 0, 0)
PROXY = replace(HOOK, engine="openai-8000", pids=(8,), coarse=True)


def looked(*reporters: tuple[str, EngineHealth], times: int = 3) -> None:
    rivals = Rivals()
    for look in range(times):
        now_ns = 10 * look * S
        rivals.look([(name, replace(told, last_ns=now_ns)) for name, told in reporters], now_ns)


def test_the_coarse_one_of_two_is_to_be_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    looked(("vllm/7/1", HOOK), ("openai/9/1/proxy", PROXY))
    assert caplog.messages == [
        'event=engine_reported_twice engines="openai-8000, vllm-7" pid=8 '
        'mend="switch off what reports openai-8000: their tokens may be booked twice"'
    ]


def test_two_of_a_kind_cannot_be_ranked(caplog: pytest.LogCaptureFixture) -> None:
    looked(("scrape/a/1", replace(PROXY, engine="a")), ("scrape/b/1", replace(PROXY, engine="b")))
    assert 'mend="switch off one of both' in caplog.text


@pytest.mark.parametrize(
    ("source", "other", "times"),
    [
        ("vllm/9/1", replace(HOOK, pids=(8,)), 3),  # the same engine, of another process
        ("vllm/9/1", replace(PROXY, pids=(9,)), 3),
        ("scrape/a/1", PROXY, 3),  # which gives way by itself
        ("vllm/9/1", PROXY, 1),  # an engine that starts
    ],
)
def test_what_is_no_rivalry(
    source: str, other: EngineHealth, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    looked(("vllm/7/1", HOOK), (source, other), times=times)
    assert caplog.messages == []


def test_one_that_is_silent_claims_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rivals = Rivals()
    for look in range(3):
        now_ns = (100 + 10 * look) * S
        told = [("a", HOOK), ("b", replace(PROXY, last_ns=now_ns))]
        rivals.look(told, now_ns)
    assert caplog.messages == []


def test_the_daemon_looks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = begin(tmp_path)
    for second in range(1000, 1013):
        world.time.now_ns = second * S
        world.committed()
        other = question(sent_ns=world.time.now_ns, source="openai/9/1/proxy")
        other.engine.engine, other.engine.coarse = "openai-1", True
        world.sources.take(other, world.time.now_ns)
        world.pipeline.turn()
    assert "event=engine_reported_twice" in caplog.text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("openai/41/777/proxy", (41, 777)),
        ("vllm/41/777", (41, 777)),
        ("x", (0, 0)),
        ("x/y/1", (0, 0)),
    ],
)
def test_the_process_in_a_sources_name(source: str, expected: tuple[int, int]) -> None:
    assert reporter_pid(source) == expected
