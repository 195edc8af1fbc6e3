"""Hooks and daemons of different versions: what the other does not know changes nothing."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from fakes.daemon_process import DaemonProcess
from fakes.ledger_reading import assert_balanced, finishes, posted_tokens
from fakes.push_client import Caller, a_batch
from fakes.tiny_engine import TinyEngine
from fakes.wires import SERVICE, OtherDaemon, Wire, newer_wire, older_wire
from wattledger_collectors.engines.attach import attach_environment

STEP_NS = 50_000_000


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        yield Path(name)


@pytest.mark.parametrize(
    ("wire", "answer"),
    [(older_wire(), {}), (newer_wire(), {"newer": "x"})],
    ids=["older", "newer"],
)
def test_our_hook_serves_another_daemon(folder: Path, wire: Wire, answer: dict[str, str]) -> None:
    socket = folder / "w.sock"
    environ = attach_environment(dict(os.environ), socket=str(socket), job="j1", model="tiny")
    with (
        OtherDaemon(socket, wire, **answer) as daemon,
        TinyEngine(environ, folder / "log") as engine,
    ):
        served = engine.flood(200)
        assert engine.end() == 0
        assert engine.lines == []
    assert daemon.decoded() == served.decode_tokens
    assert daemon.finished() == served.requests
    assert {(batch.engine.job, batch.engine.model) for batch in daemon.batches} == {("j1", "tiny")}


def test_an_older_daemon_reads_past_what_is_new(folder: Path) -> None:
    """Tokens of nobody's requests count; it takes the empty name for one like any other."""
    socket = folder / "w.sock"
    batch = a_batch(1, [(100, 200, [("", 30, 4, 0), ("r1", 0, 1, 9)])], [("", 200, 30, 0, 4)])
    batch.engine.coarse = True
    batch.request_tenants.extend(["", "acme"])
    batch.finishes[0].count = 3
    with OtherDaemon(socket, older_wire()) as daemon, Caller(socket) as caller:
        assert caller.push(batch).committed_sequence == 1
    (read,) = daemon.batches
    assert list(read.request_ids) == ["", "r1"]
    assert list(read.steps[0].decode_tokens) == [4, 1]
    assert read.finishes[0].prompt_tokens == 30


@pytest.mark.parametrize("wire", [older_wire(), newer_wire()], ids=["older", "newer"])
def test_our_daemon_books_another_hook(folder: Path, wire: Wire) -> None:
    with DaemonProcess(folder) as daemon:
        daemon.wait_for("event=ready")
        with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
            push = channel.unary_unary(
                f"/{SERVICE}/Push",
                request_serializer=wire.batch.SerializeToString,
                response_deserializer=wire.receipt.FromString,
            )
            for sequence in range(1, 6):
                push(translated(wire, sequence), timeout=30.0)
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_status() == 0
    booked = posted_tokens(daemon.ledger)
    assert (booked.prefill_tokens, booked.cached_tokens) == (500, 100)
    assert booked.decode_tokens == 50
    assert [finish.request for finish in finishes(daemon.ledger)] == [f"r{i}" for i in range(1, 6)]
    assert_balanced(daemon.ledger)


def translated(wire: Wire, sequence: int) -> Any:
    """A batch in the words of another version, with all that it has of its own."""
    time.sleep(STEP_NS / 1e9)
    end_ns = time.monotonic_ns()
    name, start_ns = f"r{sequence}", end_ns - STEP_NS
    ours = a_batch(
        sequence,
        [(start_ns, end_ns, [(name, 100, 10, 0)])],
        [(name, end_ns, 120, 20, 10)],
        pids=[os.getpid()],
    )
    theirs = wire.batch.FromString(ours.SerializeToString())
    if "newer" in theirs.DESCRIPTOR.fields_by_name:
        for part in (theirs, theirs.engine, theirs.totals, theirs.steps[0], theirs.finishes[0]):
            part.newer = "what nobody here knows"
    return theirs
