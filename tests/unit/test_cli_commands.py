from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from fakes.cli import WINDOW, Cli, small_ledger
from wattledger_proto.v1.node_pb2 import (
    EngineStatus,
    RecordRequest,
    RequestAnswer,
    RequestQuestion,
    Status,
    StatusRequest,
    TraceLines,
)
from wattledger_proto.v1.node_pb2_grpc import NodeServicer, add_NodeServicer_to_server

METER = """\
start,end,host,device,energy_j,job,quality
2026-09-21T14:00:00Z,2026-09-21T14:00:05Z,h2,gpu0,12.5,chat,measured
2026-09-21T14:00:00Z,2026-09-21T14:00:05Z,h2,gpu0,2.5,chat,measured
2026-09-21T14:00:05Z,2026-09-21T14:00:10Z,h2,gpu0,7,chat,measured
"""
TRACE = [
    {"type": "header", "trace": 1, "host": "h1", "epoch_ns": 1_790_000_000_000_000_000},
    {"type": "device", "device": "gpu0", "kind": "gpu", "model": "NVIDIA H200"},
    {"type": "counter", "t_ns": 0, "device": "gpu0", "energy_uj": 0},
    {"type": "counter", "t_ns": 5_000_000_000, "device": "gpu0", "energy_uj": 500_000_000},
]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture
def meter(tmp_path: Path) -> Path:
    path = tmp_path / "meter.csv"
    path.write_text(METER)
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in TRACE))
    return path


# --------------------------------------------------------------------------- import


def test_import_energy_twice_changes_nothing_and_balances(
    cli: Cli, meter: Path, tmp_path: Path
) -> None:
    arguments = ("import", "energy", str(meter), "--ledger", f"sqlite:{tmp_path / 'new.db'}")
    first = cli.run(*arguments)
    assert first.status == 0
    assert "3 read, 2 entries, 2 changed" in first.out
    assert "added together" in first.err
    again = json.loads(cli.run(*arguments, "--format", "json", "--quiet").out)
    assert (again["schema"], again["rows"], again["changed"]) == ("wattledger.import/1", 3, 0)
    window = ("--from", again["from"], "--to", again["to"], *arguments[3:])
    assert cli.run("audit", *window).status == 0
    usage = json.loads(cli.run("usage", *window, "--format", "json").out)
    assert usage["total"]["energy_j"] == 22.0


def test_a_bad_file_leaves_no_ledger_behind(cli: Cli, meter: Path, tmp_path: Path) -> None:
    meter.write_text(METER.replace(",7,", ",-7,"))
    ran = cli.run("import", "energy", str(meter), "--ledger", f"sqlite:{tmp_path / 'new.db'}")
    assert (ran.status, ran.out) == (2, "")
    assert f"{meter}, line 4: energy_j '-7' is negative" in ran.err
    assert not (tmp_path / "new.db").exists()


def test_a_ledger_in_no_folder_makes_none(
    cli: Cli, meter: Path, trace: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "not" / "there"
    for command in (["import", "energy", str(meter)], ["replay", str(trace)]):
        ran = cli.run(*command, "--ledger", f"sqlite:{folder / 'new.db'}")
        assert (ran.status, ran.out) == (4, "")
        assert f"{folder}: no such folder: mkdir -p {folder}" in ran.err
    assert not folder.parent.exists()


def test_a_file_that_the_ledger_refuses_leaves_none(cli: Cli, meter: Path, tmp_path: Path) -> None:
    path = tmp_path / "ledgers" / "new.db"
    path.parent.mkdir()
    row = "2026-09-21T14:00:00Z,2026-09-21T14:00:05Z,h2,gpu0,1e12\n"
    meter.write_text("start,end,host,device,energy_j\n" + row * 10)
    ran = cli.run("import", "energy", str(meter), "--ledger", f"sqlite:{path}")
    assert (ran.status, ran.out) == (2, "")
    assert "exceeds 64 bits" in ran.err
    assert not list(path.parent.iterdir())


# --------------------------------------------------------------------------- replay


def test_replay_twice_changes_nothing(cli: Cli, trace: Path, tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'replay.db'}"
    first = json.loads(cli.run("replay", str(trace), "--ledger", url, "--format", "json").out)
    again = json.loads(cli.run("replay", str(trace), "--ledger", url, "--format", "json").out)
    assert first["lines"] == len(TRACE)
    assert first["changed"] == first["pages"] > 0
    assert again == {**first, "changed": 0}
    window = ("--from", first["from"], "--to", first["to"], "--ledger", url)
    assert cli.run("audit", *window).status == 0
    usage = json.loads(cli.run("usage", *window, "--format", "json").out)
    assert usage["total"]["energy_j"] == 500.0
    told = cli.run("replay", str(trace), "--ledger", url).out
    assert f"--from {first['from']} --to {first['to']}" in " ".join(told.split())


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "no --ledger"),
        (("--ledger", "sqlite:x.db", "--window", "7s"), "divide a minute"),
        (("--ledger", "sqlite:x.db", "--window", "2m"), "divide a minute"),
        (("--ledger", "sqlite:x.db", "--window", "soon"), "'soon'"),
    ],
)
def test_what_replay_refuses(cli: Cli, trace: Path, flags: tuple[str, ...], told: str) -> None:
    ran = cli.run("replay", str(trace), *flags)
    assert (ran.status, ran.out) == (2, "")
    assert told in ran.err


def test_a_broken_trace_names_its_line_and_leaves_no_ledger(
    cli: Cli, trace: Path, tmp_path: Path
) -> None:
    trace.write_text(trace.read_text()[:-20])
    ran = cli.run("replay", str(trace), "--ledger", f"sqlite:{tmp_path / 'replay.db'}")
    assert ran.status == 2
    assert "line 4" in ran.err
    assert not (tmp_path / "replay.db").exists()


# --------------------------------------------------------------------------- attach


def attach(cli: Cli, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wattledger_cli", "attach", *arguments],
        env={**os.environ, **cli.environ()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("dashes", [("--",), ()])
def test_attach_becomes_the_engine(cli: Cli, dashes: tuple[str, ...]) -> None:
    code = "import os, sys; print(os.environ['WATTLEDGER_JOB'], sys.argv[1:]); sys.exit(7)"
    ran = attach(cli, "--job", "j1", *dashes, sys.executable, "-c", code, "--job", "its own")
    assert ran.returncode == 7
    assert ran.stdout == "j1 ['--job', 'its own']\n"


def test_attach_to_a_command_that_is_not_there(cli: Cli) -> None:
    ran = attach(cli, "--", "no-such-engine", "--port", "1")
    assert ran.returncode == 2
    assert ran.stderr.startswith("wattledger: cannot start no-such-engine, No such file")
    assert ran.stderr.count("\n") == 1


# --------------------------------------------------------------------------- doctor


def test_doctor_on_a_bare_machine(cli: Cli) -> None:
    ran = cli.run("doctor", "--format", "json")
    document = json.loads(ran.out)
    assert (ran.status, document["schema"]) == (0, "wattledger.doctor/1")
    findings = {finding["name"]: finding for finding in document["findings"]}
    assert {"nvml", "rapl", "estimate"} <= set(findings)
    parts = {finding["part"]: finding for finding in document["findings"]}
    assert parts["ledger"]["state"] == "absent"
    assert "start wattledgerd" in parts["ledger"]["mend"]
    assert parts["daemon"]["state"] == "absent"
    table = cli.run("doctor").out
    assert "mend: start wattledgerd" in " ".join(table.split())


def test_doctor_tells_of_the_ledger(cli: Cli, tmp_path: Path) -> None:
    url = small_ledger(tmp_path / "ledger.db")
    document = json.loads(cli.run("doctor", "--ledger", url, "--format", "json").out)
    (ledger,) = (one for one in document["findings"] if one["part"] == "ledger")
    assert ledger["state"] == "ready"
    assert f"holds {WINDOW[1]} to {WINDOW[3]}" in ledger["detail"]


class FakeNode(NodeServicer):
    """A daemon that runs, with one engine."""

    def GetStatus(self, request: StatusRequest, context: grpc.ServicerContext) -> Status:  # noqa: N802 - the wire's name
        engine = EngineStatus(engine="vllm-a", kind="vllm", model="m", decode_tokens=7)
        return Status(software="0.1.0", ledger="/l.db", uptime_s=12.5, engines=[engine])

    def GetRequest(  # noqa: N802 - the wire's name
        self, request: RequestQuestion, context: grpc.ServicerContext
    ) -> RequestAnswer:
        return RequestAnswer()

    def Record(  # noqa: N802 - the wire's name
        self, request: RecordRequest, context: grpc.ServicerContext
    ) -> Iterator[TraceLines]:
        return iter(())


@pytest.fixture
def socket() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wl-") as folder:
        path = Path(folder) / "d.sock"
        server = grpc.server(ThreadPoolExecutor(1))
        add_NodeServicer_to_server(FakeNode(), server)
        server.add_insecure_port(f"unix:{path}")
        server.start()
        yield path
        server.stop(None).wait()


def test_doctor_asks_the_daemon(cli: Cli, socket: Path, tmp_path: Path) -> None:
    config = tmp_path / "named.toml"
    config.write_text(f'[collect]\nsocket = "{socket}"\n')
    for env in ({"WATTLEDGER_SOCKET": str(socket)}, {"WATTLEDGER_CONFIG": str(config)}):
        findings = json.loads(cli.run("doctor", "--format", "json", env=env).out)["findings"]
        (daemon,) = (one for one in findings if one["part"] == "daemon")
        (engine,) = (one for one in findings if one["part"] == "engine")
        assert daemon["state"] == "ready"
        assert "wattledgerd 0.1.0, up 12.5 s" in daemon["detail"]
        assert engine["name"] == "vllm-a"
        assert "7 decode tokens" in engine["detail"]


def test_a_socket_that_nobody_answers_on(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "dead.sock").touch()
    env = {"WATTLEDGER_SOCKET": str(tmp_path / "dead.sock")}
    findings = json.loads(cli.run("doctor", "--format", "json", env=env).out)["findings"]
    (daemon,) = (one for one in findings if one["part"] == "daemon")
    assert daemon["state"] == "failing"
    assert "no answer from the daemon" in daemon["detail"]


# --------------------------------------------------------------------------- tables


def test_grid_zones(cli: Cli) -> None:
    rows = list(csv.DictReader(io.StringIO(cli.run("grid", "zones", "--format", "csv").out)))
    france = next(row for row in rows if row["zone"] == "FRA")
    assert (france["name"], france["year"]) == ("France", "2024")
    assert 20 < float(france["gco2e_per_kwh"]) < 80
    table = cli.run("grid", "zones").out
    assert "CC BY 4.0" in table
    assert len(table.splitlines()) > len(rows)


def test_hardware(cli: Cli) -> None:
    listed = json.loads(cli.run("hardware", "list", "--format", "json").out)
    assert any(device["device"] == "NVIDIA H200" for device in listed["devices"])
    assert "NVIDIA H200" in cli.run("hardware", "list").out
    shown = json.loads(cli.run("hardware", "show", "h100 80gb hbm3", "--format", "json").out)
    assert shown["devices"][0]["embodied"]["kgco2e"] == 164.0
    assert "164 kgCO2e" in cli.run("hardware", "show", "NVIDIA H100 80GB HBM3").out
    unknown = cli.run("hardware", "show", "NVIDIA H201")
    assert unknown.status == 2
    assert "did you mean NVIDIA H200" in unknown.err
