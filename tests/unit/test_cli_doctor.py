from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest

from fakes.cli import Cli
from fakes.node_server import FakeNode, serving
from wattledger_cli.examine import Finding, State
from wattledger_cli.examine_host import clock_synchronized, examine_host
from wattledger_cli.node import join_group
from wattledger_proto.v1.node_pb2 import (
    DaemonStatus,
    DeviceStatus,
    EngineStatus,
    SensorStatus,
    Status,
)

STATUS = Status(
    software="0.1.0",
    uptime_s=100.0,
    ledger="sqlite:/l.db",
    windows_booked=9,
    daemon=DaemonStatus(cpu_s=0.5, rss_bytes=60_000_000, longest_turn_s=0.02, dropped_events=3),
    sensors=[
        SensorStatus(sensor="nvml", state="running", reads=1000, period_s=0.1),
        SensorStatus(sensor="cpu_use", state="running", reads=90, skipped=30, period_s=1.0),
        SensorStatus(sensor="rapl", state="denied", reason="closed; sudo setcap it"),
        SensorStatus(sensor="amdsmi", state="failing", reason="OSError: no", failures=4),
        SensorStatus(sensor="hwmon", state="stuck", reason="in a call since 24 s", reads=9),
    ],
    devices=[
        DeviceStatus(device="gpu0", power_w=300.0, quality="measured", counter_ratio=1.01),
        DeviceStatus(device="gpu1", power_w=300.0, quality="measured", counter_ratio=0.57),
        DeviceStatus(device="gpu2", quality="measured"),
    ],
    engines=[
        EngineStatus(engine="good", kind="vllm", model="m", silent_s=0.1),
        EngineStatus(engine="bad", kind="vllm", model="m", dropped_events=7),
    ],
)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def doctor(cli: Cli, status: Status, output: str = "json") -> str:
    with serving(FakeNode(status)) as node:
        ran = cli.run("doctor", "--format", output, env={"WATTLEDGER_SOCKET": str(node.path)})
    assert ran.status == 0
    return ran.out


def test_what_the_daemon_says_of_itself_is_judged(cli: Cli) -> None:
    document = json.loads(doctor(cli, STATUS))
    assert document["schema"] == "wattledger.doctor/1"
    found = {(one["part"], one["name"]): one for one in document["findings"]}
    states = {key: one["state"] for key, one in found.items()}
    assert states["daemon sensor", "nvml"] == "ready"
    assert states["daemon sensor", "cpu_use"] == "notice"
    assert states["daemon sensor", "rapl"] == "denied"
    assert found["daemon sensor", "rapl"]["mend"] == "sudo setcap it"
    assert states["daemon sensor", "amdsmi"] == "failing"
    assert states["daemon sensor", "hwmon"] == "failing"
    assert found["daemon sensor", "hwmon"]["detail"].startswith(
        "stuck in a call since 24 s; 9 reads"
    )
    assert states["device", "gpu0"] == "ready"
    assert states["device", "gpu1"] == "notice"
    assert "counter/power 0.570" in found["device", "gpu1"]["detail"]
    assert states["device", "gpu2"] == "failing"
    assert found["device", "gpu2"]["figures"]["power_w"] is None
    assert (states["engine", "good"], states["engine", "bad"]) == ("ready", "notice")
    (daemon,) = (one for one in found.values() if one["part"] == "daemon")
    assert daemon["state"] == "notice"
    assert "60 MB, 0.5 % of a core" in daemon["detail"]
    assert daemon["figures"]["dropped_events"] == 3
    assert found["daemon sensor", "cpu_use"]["figures"]["skipped"] == 30


def test_a_scraped_engine_is_marked_and_one_without_a_process_is_told(cli: Cli) -> None:
    engines = [
        EngineStatus(engine="sgl", kind="sglang", model="m", coarse=True, pids=[4]),
        EngineStatus(engine="far", kind="tgi", model="m", coarse=True),
    ]
    document = json.loads(doctor(cli, Status(engines=engines)))
    found = {one["name"]: one for one in document["findings"] if one["part"] == "engine"}
    assert found["sgl"]["state"] == "ready"
    assert found["sgl"]["detail"].endswith(", coarse")
    assert found["far"]["state"] == "notice"
    assert found["far"]["detail"].endswith("no process of it is known: its tokens get no energy")


def test_rows_of_csv_are_plain_and_the_table_fits(cli: Cli) -> None:
    rows = list(csv.DictReader(io.StringIO(doctor(cli, STATUS, "csv"))))
    assert set(rows[0]) == {"part", "name", "state", "detail", "mend"}
    table = doctor(cli, STATUS, "table")
    assert "daemon sensor rapl" in table
    assert "mend: sudo setcap it" in " ".join(table.split())


def test_a_daemon_of_before_tells_less_and_is_asked_all_the_same(cli: Cli) -> None:
    document = json.loads(doctor(cli, Status(software="0.0.9", uptime_s=5.0)))
    (daemon,) = (one for one in document["findings"] if one["part"] == "daemon")
    assert daemon["state"] == "ready"
    assert "cpu_s" not in daemon["figures"]


# ------------------------------------------------------------------------------ host


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/mounts": "proc /proc proc rw 0 0\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def host(root: Path, *, synchronized: bool | None = True) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine_host(root, lambda: synchronized)}


def test_a_host_with_nothing_hidden(tmp_path: Path) -> None:
    found = host(tree(tmp_path, {"sys/fs/cgroup/cgroup.controllers": "cpu memory\n"}))
    assert {name: finding.state for name, finding in found.items()} == {
        "processes": State.READY,
        "control groups": State.READY,
        "clock": State.READY,
    }
    assert "version 2" in found["control groups"].detail


def test_a_host_that_tells_little(tmp_path: Path) -> None:
    mounts = "proc /proc proc rw,nosuid,hidepid=invisible 0 0\n"
    found = host(tree(tmp_path, {"proc/self/mounts": mounts}), synchronized=False)
    hidden = State.READY if os.geteuid() == 0 else State.DENIED
    assert found["processes"].state is hidden
    assert found["control groups"].state is State.ABSENT
    assert found["clock"].state is State.NOTICE
    assert "chrony" in found["clock"].mend
    assert host(tmp_path, synchronized=None)["clock"].state is State.NOTICE


def test_a_driver_without_its_device_nodes_is_told_with_the_mend(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/driver/nvidia/version": "NVRM\n"})
    assert host(root)["NVIDIA nodes"].state is State.FAILING
    assert "nvidia-modprobe" in host(root)["NVIDIA nodes"].mend
    tree(root, {"dev/nvidiactl": "", "dev/nvidia0": "", "dev/nvidia1": "", "dev/nvidia-uvm": ""})
    assert host(root)["NVIDIA nodes"].detail == f"2 GPU nodes in {root / 'dev'}"


def test_the_kernel_is_asked_of_its_clock() -> None:
    assert clock_synchronized() in (True, False, None)


def test_the_mend_of_a_closed_file_names_its_group() -> None:
    assert join_group(0o660, os.getgid()).startswith(
        "run this as" if os.getgid() == 0 else "sudo usermod -aG "
    )
    assert join_group(0o600, 1) == "run this as the user of wattledgerd, or with sudo"
    mend = join_group(0o660, 1)
    assert mend.startswith("sudo usermod -aG daemon ")
    assert "gid 54321" in join_group(0o660, 54321)
