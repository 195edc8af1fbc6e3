from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from fakes.cli import Cli
from fakes.node_server import FakeNode, serving
from wattledger_proto.v1.node_pb2 import DaemonStatus, Status

EPOCH_NS = 1_790_000_000_000_000_000
HEADER = json.dumps(
    {"type": "header", "trace": 1, "host": "h1", "epoch_ns": EPOCH_NS}, separators=(",", ":")
)
DEVICE = '{"type":"device","device":"gpu0","kind":"gpu"}'
ENDED = (grpc.StatusCode.ABORTED, "the wall clock was stepped: record again")


def process(pid: int, job: str) -> str:
    return f'{{"type":"process","pid":{pid},"start":7,"workload":"w","job":"{job}"}}'


def counter(t_s: int) -> str:
    return f'{{"type":"counter","t_ns":{t_s}000000000,"device":"gpu0","energy_uj":{t_s}000000}}'


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture
def node() -> Iterator[FakeNode]:
    chunks = [[HEADER, DEVICE, process(1, "old"), counter(1)], [process(1, "new"), counter(2)]]
    with serving(FakeNode(Status(daemon=DaemonStatus(window_s=1)), chunks)) as node:
        yield node


def record(cli: Cli, node: FakeNode, output: Path, *flags: str) -> tuple[int, str, str]:
    env = {"WATTLEDGER_SOCKET": str(node.path)}
    ran = cli.run("record", "--output", str(output), *flags, env=env)
    return ran.status, ran.out, ran.err


def test_a_recording_ends_after_its_time_and_says_what_it_holds(
    cli: Cli, node: FakeNode, tmp_path: Path
) -> None:
    trace = tmp_path / "run.jsonl"
    began_s = time.monotonic()
    status, out, err = record(cli, node, trace, "--for", "1s", "--format", "json")
    assert (status, err) == (0, "")
    assert time.monotonic() - began_s < 10
    # The last word on a process holds: a replay reads it as true all along.
    assert trace.read_text().splitlines() == [
        HEADER,
        DEVICE,
        counter(1),
        counter(2),
        process(1, "new"),
    ]
    told = json.loads(out)
    assert (told["schema"], told["lines"], told["window_s"]) == ("wattledger.record/1", 5, 1)
    assert told["bytes"] == trace.stat().st_size
    assert told["whole_from"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.jsonl", "wattledger.toml"]
    table = record(cli, node, trace, "--for", "1s", "--force")[1]
    assert "--ledger sqlite:run.db --window 1s" in " ".join(table.split())


def test_a_file_that_is_there_is_not_replaced_unasked(
    cli: Cli, node: FakeNode, tmp_path: Path
) -> None:
    trace = tmp_path / "run.jsonl"
    trace.write_text("precious")
    status, _, err = record(cli, node, trace, "--for", "1s")
    assert (status, trace.read_text()) == (2, "precious")
    assert "add --force" in err


def test_a_recording_that_the_daemon_ends_is_kept_and_told(
    cli: Cli, node: FakeNode, tmp_path: Path
) -> None:
    node.abort = ENDED
    trace = tmp_path / "run.jsonl"
    status, out, err = record(cli, node, trace)
    assert status == 4
    assert "the wall clock was stepped: record again" in err
    assert f"{trace} holds what came before" in err
    assert "lines" in out
    assert len(trace.read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("abort", "told"),
    [
        ((grpc.StatusCode.RESOURCE_EXHAUSTED, "two recordings run already"), "two recordings"),
        ((grpc.StatusCode.UNAVAILABLE, ""), "went away"),
        ((grpc.StatusCode.UNIMPLEMENTED, ""), "update it"),
    ],
)
def test_a_recording_that_never_began_leaves_no_file(
    cli: Cli, node: FakeNode, tmp_path: Path, abort: tuple[grpc.StatusCode, str], told: str
) -> None:
    node.chunks, node.abort = [], abort
    trace = tmp_path / "run.jsonl"
    status, out, err = record(cli, node, trace)
    assert (status, out) == (4, "")
    assert told in err
    assert [path.name for path in tmp_path.iterdir()] == ["wattledger.toml"]


def test_no_daemon_and_no_folder_are_told_before_anything_is_made(
    cli: Cli, node: FakeNode, tmp_path: Path
) -> None:
    status, _, err = record(cli, node, tmp_path / "not" / "there.jsonl", "--for", "1s")
    assert (status, "No such file or directory" in err) == (2, True)
    node.path = tmp_path / "no.sock"
    status, _, err = record(cli, node, tmp_path / "run.jsonl")
    assert (status, "start wattledgerd" in err) == (4, True)
