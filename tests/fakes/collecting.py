"""Batches as an engine sends them, and sources that take them, over a /proc with one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fakes.daemon_parts import BOOT_ID
from fakes.push_client import a_batch
from wattledger_daemon.intake import Count, Delivery, Intake
from wattledger_daemon.sources import Sources
from wattledger_proto.v1 import collect_pb2

S = 1_000_000_000
NOW_NS = 100_000 * S
STEP = (NOW_NS - S, NOW_NS, [("r1", 100, 0, 0), ("r2", 0, 1, 512)])
FINISH = ("r1", NOW_NS, 100, 20, 1)
Change = Callable[[collect_pb2.Batch], object]


def batch_of(sequence: int = 1, **changes: object) -> collect_pb2.Batch:
    batch = a_batch(sequence, [STEP], [FINISH], boot_id=BOOT_ID, sent_ns=NOW_NS, pids=[41])
    for name, value in changes.items():
        setattr(batch, name, value)
    return batch


def question(**changes: object) -> collect_pb2.Batch:
    batch = a_batch(0, boot_id=BOOT_ID, sent_ns=NOW_NS, pids=[41])
    for name, value in changes.items():
        setattr(batch, name, value)
    return batch


def changed(change: Change) -> collect_pb2.Batch:
    batch = batch_of()
    change(batch)
    return batch


@dataclass
class World:
    """Sources over a queue of `capacity`, with a /proc in which process 41 lives."""

    intake: Intake
    sources: Sources
    tracked: list[int]

    def commit(self) -> list[object]:
        """What the pipeline does once a second; returns what it took."""
        items = self.intake.drain()
        deliveries = [item for item in items if isinstance(item, Delivery)]
        self.sources.commit(deliveries, [item for item in items if isinstance(item, Count)])
        return list(items)


def a_world(tmp_path: Path, capacity: int = 1000) -> World:
    stat_file = tmp_path / "41" / "stat"
    stat_file.parent.mkdir(exist_ok=True)
    stat_file.write_text(f"41 (a) b) S {' '.join(['0'] * 18)} 777 0 0")
    intake = Intake(capacity)
    tracked: list[int] = []
    return World(intake, Sources(intake, tracked.extend, tmp_path), tracked)
