from __future__ import annotations

from pathlib import Path

import pytest

from fakes.sysfs import FakeProc
from wattledger.hardware.catalogue import read_rows
from wattledger.records import PowerReading
from wattledger_collectors.sensors.estimate import EstimateSensor
from wattledger_collectors.sensors.protocol import SensorSettings
from wattledger_collectors.sensors.tdp import Processors, find_cpu, read_processors, tdp_of

GENOA = "AMD EPYC 9654 96-Core Processor"
SAPPHIRE = "Intel(R) Xeon(R) Platinum 8480+"


def cpuinfo(proc: FakeProc, model: str, *, cpus: int, sockets: int = 1, virtual: bool) -> None:
    flags = "fpu sse hypervisor avx2" if virtual else "fpu sse avx2"
    entries = (
        f"processor\t: {at}\nmodel name\t: {model}\nphysical id\t: {at % sockets}\n"
        f"flags\t\t: {flags}\n\n"
        for at in range(cpus)
    )
    (proc.root / "cpuinfo").write_text("".join(entries))


@pytest.mark.parametrize(
    ("model", "tdp_w", "threads"),
    [
        (GENOA, 360.0, 192),
        ("AMD EPYC 7763 64-Core Processor", 280.0, 128),
        (SAPPHIRE, 350.0, 112),
        ("INTEL(R) XEON(R) PLATINUM 8480+", 350.0, 112),
        ("Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz", 270.0, 80),
        ("Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz", 205.0, 56),
    ],
)
def test_a_model_is_known_by_what_the_kernel_calls_it(
    model: str, tdp_w: float, threads: int
) -> None:
    cpu = find_cpu(model)
    assert cpu is not None
    assert (cpu.tdp_w, cpu.threads) == (tdp_w, threads)
    assert cpu.source


@pytest.mark.parametrize(
    "model",
    [
        "Intel(R) Xeon(R) Platinum 8480C",
        "Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz",
        "Intel(R) Xeon(R) CPU @ 2.20GHz",
        "AMD EPYC 7R13 Processor",
        "AMD EPYC",
        "AMD EPYC-Milan Processor",
        "QEMU Virtual CPU version 2.5+",
        "",
    ],
)
def test_a_near_miss_is_unknown(model: str) -> None:
    assert find_cpu(model) is None


def test_every_row_has_a_plausible_figure_a_source_and_a_name_of_its_own() -> None:
    rows = read_rows("cpu_tdp.csv")
    assert len(rows) >= 20
    assert len({row["name"].casefold() for row in rows}) == len(rows)
    for row in rows:
        assert 80 <= int(row["tdp_w"]) <= 500
        assert int(row["threads"]) % 4 == 0
        assert row["source"]
        assert row["confidence"] in "HM"
        found = find_cpu(row["name"])
        assert found is not None
        assert found.name == row["name"]


def test_a_machine_has_the_tdp_of_its_sockets(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path / "proc")
    cpuinfo(proc, SAPPHIRE, cpus=112, sockets=2, virtual=False)
    processors = read_processors(proc.root)
    assert processors == Processors(SAPPHIRE, 112, 2, virtual=False)
    told = tdp_of(None, processors)
    # Half the threads are switched off; the sockets are the same.
    assert told.tdp_w == 700.0
    assert told.note == "TDP 700 W: 2 x 350 W (Intel Xeon Platinum 8480+)"


@pytest.mark.parametrize(("vcpus", "tdp_w"), [(1, 1.875), (8, 15.0), (192, 360.0), (384, 720.0)])
def test_a_guest_has_its_share_of_the_sockets_threads(
    tmp_path: Path, vcpus: int, tdp_w: float
) -> None:
    proc = FakeProc(tmp_path / "proc")
    cpuinfo(proc, GENOA, cpus=vcpus, virtual=True)
    told = tdp_of(None, read_processors(proc.root))
    assert told.tdp_w == pytest.approx(tdp_w)
    assert f"{vcpus} vCPUs of 192 threads of 360 W (AMD EPYC 9654)" in told.note


def test_the_config_goes_before_the_table(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path / "proc")
    cpuinfo(proc, GENOA, cpus=8, virtual=True)
    told = tdp_of(40.0, read_processors(proc.root))
    assert (told.tdp_w, told.note) == (40.0, "TDP 40 W from config")


@pytest.mark.parametrize("text", [None, "", "garbage\n", "CPU implementer\t: 0x41\n"])
def test_a_nameless_cpu_has_the_default_and_the_mend(tmp_path: Path, text: str | None) -> None:
    proc = FakeProc(tmp_path / "proc")
    (proc.root / "cpuinfo").unlink()
    if text is not None:
        (proc.root / "cpuinfo").write_text(text)
    processors = read_processors(proc.root)
    assert processors == Processors(None, 1, 1, virtual=False)
    told = tdp_of(None, processors)
    assert told.tdp_w == 85.0
    assert "power.cpu_tdp_w" in told.note


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    told = tdp_of(None, Processors("AMD EPYC 7R13 Processor", 8, 1, virtual=True))
    assert told.tdp_w == 85.0
    assert "'AMD EPYC 7R13 Processor' is not in the table" in told.note


def test_the_curve_stands_on_the_table(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path / "proc")
    cpuinfo(proc, GENOA, cpus=32, virtual=True)
    sensor = EstimateSensor(SensorSettings(proc_root=proc.root), clock=lambda: 77)
    (device,) = sensor.open()
    assert (device.model, device.static_w, device.estimated) == (GENOA, 6.0, True)
    sensor.read()
    proc.cpu_ticks(busy=500, idle=500)
    assert sensor.read() == [PowerReading("cpu0", 77, 33_000_000)]
    sensor.close()
