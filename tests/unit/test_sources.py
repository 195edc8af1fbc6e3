"""Sources of batches: what is acknowledged when, counted, forgotten, and kept over a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.collecting import NOW_NS, S, a_world, batch_of, question
from wattledger.records import NS_PER_S, Engine, Process
from wattledger_daemon import batches
from wattledger_daemon.intake import Count, Delivery
from wattledger_daemon.sources import FORGETTABLE_NS, MAX_SOURCES, MAX_STRANGERS, BusyError


def test_only_what_is_on_disk_is_acknowledged(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    assert world.sources.take(batch_of(1), NOW_NS) == 0
    assert world.sources.take(batch_of(2), NOW_NS) == 0
    assert world.sources.take(question(), NOW_NS) == 0
    world.commit()
    assert world.sources.take(question(), NOW_NS) == 2


def test_a_registration_is_told_once_with_its_processes(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    batch = batch_of(1)
    batch.engine.pids.append(4_000_000)
    batch.engine.workload, batch.engine.job = "vllm.service", "4711"
    world.sources.take(batch, NOW_NS)
    batch.sequence = 2
    world.sources.take(batch, NOW_NS)
    first, second = world.commit()
    assert isinstance(first, Delivery)
    assert isinstance(second, Delivery)
    assert first.introduced == (
        Process(41, 777, "vllm.service", "4711"),
        Process(4_000_000, 0, "vllm.service", "4711"),
        Engine("fake-1", "fake", "tiny", (41, 4_000_000)),
    )
    assert second.introduced == ()
    assert world.tracked == [41, 4_000_000]


def test_a_changed_or_long_idle_registration_is_told_again(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.sources.take(question(), NOW_NS)
    assert Engine("fake-1", "fake", "tiny", (41,)) in world.commit()
    world.sources.take(batch_of(1), NOW_NS)
    world.sources.take(batch_of(2, sent_ns=NOW_NS), NOW_NS + 61 * S)
    renamed = batch_of(3)
    renamed.engine.model = "large"
    world.sources.take(renamed, NOW_NS + 62 * S)
    told = [item.introduced[-1] for item in world.commit() if isinstance(item, Delivery)]
    models = [item.model for item in told if isinstance(item, Engine)]
    assert models == ["tiny", "tiny", "large"]


def test_an_engine_of_several_reporters_is_all_the_processes_that_live(tmp_path: Path) -> None:
    world = a_world(tmp_path)

    def told(at_ns: int, source: str, *pids: int) -> tuple[int, ...]:
        batch = question(source=source)
        batch.engine.pids[:] = pids
        world.sources.take(batch, at_ns)
        engines = [item for item in world.commit() if isinstance(item, Engine)]
        return engines[-1].pids

    assert told(NOW_NS, "vllm/1", 41, 4_000_000) == (41, 4_000_000)
    # 4,000,000 is gone: it had no start time.
    assert told(NOW_NS + 1, "vllm/2", 42) == (42, 41)
    assert told(NOW_NS + 2, "vllm/1", 7) == (7,)
    assert told(NOW_NS + 3, "vllm/2", 41) == (41,)
    assert told(NOW_NS + 90 * S, "vllm/3", 42) == (42,)


def test_a_host_process_keeps_what_its_engine_said_of_it(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    batch = batch_of(1)
    batch.engine.job = "4711"
    world.sources.take(batch, NOW_NS)
    claim = world.sources.claim
    assert claim(Process(41, 777, "ssh.service", "9")) == Process(41, 777, "ssh.service", "4711")
    assert claim(Process(41, 778, "ssh.service", "9")) == Process(41, 778, "ssh.service", "9")
    assert claim(Process(42, 777, "ssh.service", None)) == Process(42, 777, "ssh.service", None)


def test_duplicates_are_counted_and_acknowledged(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.sources.take(batch_of(1), NOW_NS)
    world.commit()
    assert world.sources.take(batch_of(1), NOW_NS) == 1
    assert world.commit() == [Count(NOW_NS, duplicates=2)]
    assert [engine.duplicates for engine in world.sources.engines()] == [2]


def test_a_batch_waits_for_those_before_it(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.sources.take(batch_of(1), NOW_NS)
    with pytest.raises(BusyError, match="batch 2 of fake/1/1 comes first"):
        world.sources.take(batch_of(3), NOW_NS)
    for sequence in (2, 3):
        world.sources.take(batch_of(sequence), NOW_NS)
    world.commit()
    assert world.sources.take(question(), NOW_NS) == 3


def test_a_gap_that_stays_is_passed_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = a_world(tmp_path)
    world.sources.take(batch_of(1), NOW_NS)
    for waited_s in (0, 9):
        with pytest.raises(BusyError):
            world.sources.take(batch_of(5), NOW_NS + waited_s * NS_PER_S)
    world.sources.take(batch_of(5), NOW_NS + 10 * NS_PER_S)
    world.commit()
    assert world.sources.take(question(), NOW_NS) == 5
    assert [record.getMessage() for record in caplog.records] == [
        "event=batches_missing source=fake/1/1 after=1 before=5"
    ]


def test_a_source_not_seen_before_may_start_anywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = a_world(tmp_path)
    world.sources.take(batch_of(500), NOW_NS)
    world.commit()
    assert world.sources.take(question(), NOW_NS) == 500
    assert not caplog.records


def test_dropped_events_are_counted_by_their_growth(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.sources.take(batch_of(1, dropped_events=3), NOW_NS)
    world.sources.take(batch_of(2, dropped_events=3), NOW_NS)
    world.sources.take(question(dropped_events=10), NOW_NS)
    counts = [item for item in world.commit() if isinstance(item, Count)]
    assert counts == [
        Count(NOW_NS, dropped=3, source="fake/1/1", dropped_total=3),
        Count(NOW_NS, dropped=7, source="fake/1/1", dropped_total=10),
    ]


def test_a_full_queue_refuses_a_batch_whole_and_it_may_come_again(tmp_path: Path) -> None:
    world = a_world(tmp_path, capacity=9)
    world.sources.take(batch_of(1), NOW_NS)
    with pytest.raises(BusyError):
        world.sources.take(batch_of(2), NOW_NS)
    assert len(world.commit()) == 1
    world.sources.take(batch_of(2), NOW_NS)
    (second,) = world.commit()
    assert isinstance(second, Delivery)
    assert [type(item) for item in second.introduced] == [Process, Engine]
    assert world.sources.take(question(), NOW_NS) == 2


def test_a_restarted_daemon_knows_what_it_had(tmp_path: Path) -> None:
    before, after = a_world(tmp_path), a_world(tmp_path)
    before.sources.take(batch_of(7, dropped_events=5), NOW_NS)
    before.commit()
    before.sources.take(batch_of(8), NOW_NS)
    after.sources.load(before.sources.dump())
    assert after.sources.take(question(dropped_events=5), NOW_NS) == 7
    assert after.sources.take(batch_of(7, dropped_events=5), NOW_NS) == 7
    counts = [item for item in after.commit() if isinstance(item, Count)]
    assert counts == [Count(NOW_NS, duplicates=2)]


def test_drops_that_are_not_yet_on_disk_are_not_dumped(tmp_path: Path) -> None:
    world, after = a_world(tmp_path), a_world(tmp_path)
    world.sources.take(question(dropped_events=5), NOW_NS)
    world.commit()
    world.sources.take(question(dropped_events=8), NOW_NS)
    after.sources.load(world.sources.dump())
    after.sources.take(question(dropped_events=8), NOW_NS)
    counts = [item for item in after.commit() if isinstance(item, Count)]
    assert counts == [Count(NOW_NS, dropped=3, source="fake/1/1", dropped_total=8)]


def test_malformed_batches_of_many_names_take_nobodys_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = a_world(tmp_path)
    for _ in range(2):
        for number in range(2 * MAX_SOURCES):
            world.sources.refuse(f"junk/{number}", "sequence above")
    assert len(caplog.records) == MAX_STRANGERS + 1
    assert 'event=batch_refused source="(others)"' in caplog.records[-1].getMessage()
    for number in range(MAX_SOURCES):
        world.sources.take(question(source=f"s/{number}"), NOW_NS)
    world.sources.refuse("s/7", "sequence above")
    assert "source=s/7" in caplog.records[-1].getMessage()


def test_a_new_source_takes_the_place_of_the_longest_silent(tmp_path: Path) -> None:
    world = a_world(tmp_path, capacity=10_000)
    for number in range(MAX_SOURCES):
        world.sources.take(batch_of(4, source=f"s/{number}"), NOW_NS + number)
    world.commit()
    late_ns = NOW_NS + FORGETTABLE_NS
    world.sources.take(question(source="new"), late_ns)
    with pytest.raises(BusyError):
        world.sources.take(question(source="newer"), late_ns)
    world.commit()
    assert world.sources.take(question(source="s/1"), late_ns) == 4
    assert '"s/0"' not in world.sources.dump()
    assert '"s/1"' in world.sources.dump()


def test_a_silent_source_with_batches_on_their_way_keeps_its_place(tmp_path: Path) -> None:
    world = a_world(tmp_path, capacity=10_000)
    for number in range(MAX_SOURCES):
        world.sources.take(batch_of(1, source=f"s/{number}"), NOW_NS)
    with pytest.raises(BusyError):
        world.sources.take(question(source="new"), NOW_NS + FORGETTABLE_NS)


def test_sources_are_bounded_and_the_silent_are_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = a_world(tmp_path, capacity=10_000)
    for number in range(MAX_SOURCES):
        asked = question(source=f"s/{number}")
        asked.engine.engine = f"fake-{number}"
        world.sources.take(asked, NOW_NS)
    for name in ("one more", "and another"):
        with pytest.raises(BusyError):
            world.sources.take(question(source=name), NOW_NS)
    assert [record.getMessage() for record in caplog.records] == [
        'event=sources_full sources=1024 refused="any other"'
    ]
    world.sources.forget_silent(NOW_NS + batches.MAX_AGE_NS)
    assert len(world.sources.engines()) == MAX_SOURCES
    world.sources.forget_silent(NOW_NS + batches.MAX_AGE_NS + 1)
    assert world.sources.engines() == []
