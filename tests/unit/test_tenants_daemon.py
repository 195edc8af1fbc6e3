"""Tenants on their way through the daemon: told with their batch, kept over a crash, recorded."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from fakes.collecting import NOW_NS, a_world, batch_of
from fakes.daemon_parts import BOOT_ID, FakeTime
from fakes.pipeline_world import ALL_TIME, S, World, begin
from fakes.push_client import a_batch
from wattledger.records import RequestOwner
from wattledger.trace import decode
from wattledger_daemon.intake import Delivery
from wattledger_daemon.tenants import tenant_rule_of

TENANTS = ("acme", "beta", "corp")


def push(world: World, sequence: int, at_s: float, told: bool = True) -> None:
    """A step of three tenants' requests; their client's word comes with them, or not any more."""
    start_ns, end_ns = round((at_s - 0.9) * S), round((at_s - 0.1) * S)
    batch = a_batch(
        sequence,
        [(start_ns, end_ns, [(f"r-{tenant}", 0, 1, sequence) for tenant in TENANTS])],
        boot_id=BOOT_ID,
        sent_ns=world.time.now_ns,
        pids=[41],
        job="engine",
    )
    batch.request_tenants.extend(TENANTS if told else ())
    world.sources.take(batch, world.time.now_ns)


def by_job(world: World) -> dict[str | None, tuple[int, int]]:
    energy: Counter[str | None] = Counter()
    tokens: Counter[str | None] = Counter()
    for item in world.ledger.slices(ALL_TIME).slices:
        energy[item.account.job] += item.amounts.energy_uj
        tokens[item.account.job] += item.amounts.decode_tokens
    return {job: (energy[job], tokens[job]) for job in energy}


def live(folder: Path, crashes: tuple[int, ...]) -> dict[str | None, tuple[int, int]]:
    time = FakeTime(1000 * S)
    world = begin(folder, time=time)
    for second in range(1001, 1040):
        push(world, second - 1000, second, told=second == 1001)
        world.run(second)
        if second in crashes:
            world = World(world.ledger, time, folder)
    world.pipeline.finish()
    return by_job(world)


def test_tenants_are_booked_and_survive_a_crash(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = live(tmp_path / "a", ())
    assert live(tmp_path / "b", (1003, 1013, 1027)) == whole
    assert {job: tokens for job, (_, tokens) in whole.items()} == {
        "acme": 39,
        "beta": 39,
        "corp": 39,
        "engine": 0,
    }
    energies = [whole[tenant][0] for tenant in TENANTS]
    assert max(energies) - min(energies) <= 39
    assert whole["engine"][0] > 0


def test_an_owner_is_told_with_the_batch_that_names_it_first(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.sources.set_tenant_rules([tenant_rule_of({"request": "r{n}", "job": "job-{n}"})])
    for sequence in (1, 2):
        world.sources.take(batch_of(sequence), NOW_NS)
    first, second = (item for item in world.commit() if isinstance(item, Delivery))
    owners = [item for item in first.introduced if isinstance(item, RequestOwner)]
    assert owners == [
        RequestOwner("fake-1", "r1", None, "job-1", first.events.begins()["r1"]),
        RequestOwner("fake-1", "r2", None, "job-2", first.events.begins()["r2"]),
    ]
    # r1 finished in the first batch: whoever bears that id now is another.
    again = [item for item in second.introduced if isinstance(item, RequestOwner)]
    (finish,) = (finish for finish in first.events.finishes if finish.request == "r1")
    since_ns = max(second.events.begins()["r1"], finish.t_ns)
    assert again == [replace(owners[0], since_ns=since_ns)]


def say_beta(world: World, sequence: int, source: str) -> None:
    at_ns = world.time.now_ns
    again = a_batch(
        sequence,
        [(at_ns, at_ns + 1, [("r-acme", 0, 1, 9)])],
        boot_id=BOOT_ID,
        sent_ns=at_ns,
        pids=[41],
        job="engine",
        source=source,
    )
    again.request_tenants.append("beta")
    world.sources.take(again, at_ns)


def test_a_recording_names_the_tenants_and_from_when_on_they_hold(tmp_path: Path) -> None:
    world = begin(tmp_path)
    push(world, 1, 1000.9)
    world.run(1002)
    subscription = world.recorder.subscribe()
    assert subscription is not None
    world.run(1003)
    owner = RequestOwner("fake-1", "r-acme", None, "acme", 1000 * S)
    assert owner in [decode(line) for line in subscription.next()]
    # Its own client says otherwise: from then on.
    say_beta(world, 2, "fake/1/1")
    world.run(1005)
    found = [decode(line) for _ in range(4) for line in subscription.next()]
    assert replace(owner, job="beta", since_ns=1003 * S) in found
    assert subscription.ended is None


def test_a_recording_ends_where_a_request_turns_out_to_be_nobodys(tmp_path: Path) -> None:
    world = begin(tmp_path)
    push(world, 1, 1000.9)
    world.run(1002)
    subscription = world.recorder.subscribe()
    assert subscription is not None
    world.run(1003)
    say_beta(world, 1, "another")
    world.run(1005)
    assert subscription.ended is not None
    assert "r-acme" in subscription.ended
