from __future__ import annotations

from pathlib import Path

import pytest

from fakes.hwmon import nvidia_gpu
from fakes.sysfs import FakeProc
from wattledger.records import Device, DeviceKind, PowerReading, StaticBasis
from wattledger_collectors.sensors.estimate import EstimateSensor
from wattledger_collectors.sensors.protocol import Absent, ReadFault, SensorSettings


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path / "proc")


def estimate(
    proc: FakeProc, cpu_tdp_w: float | None = 200.0, static_w: float | None = None
) -> EstimateSensor:
    overrides = {} if static_w is None else {"cpu0": static_w}
    settings = SensorSettings(proc_root=proc.root, cpu_tdp_w=cpu_tdp_w, static_w=overrides)
    return EstimateSensor(settings, clock=lambda: 77)


def test_the_device_is_an_estimate_with_the_curves_own_idle_power(proc: FakeProc) -> None:
    sensor = estimate(proc)
    assert sensor.open() == (
        Device(
            "cpu0",
            DeviceKind.CPU,
            "Fake CPU @ 2.00GHz",
            static_w=20.0,
            static_basis=StaticBasis.CATALOGUE,
            estimated=True,
        ),
    )
    sensor.close()


def test_a_superchips_counter_may_hold_the_cpu_so_there_is_no_estimate(proc: FakeProc) -> None:
    nvidia_gpu(proc.root, "NVIDIA GH200 480GB")
    with pytest.raises(Absent, match="superchip"):
        estimate(proc).open()


def test_configured_idle_power_goes_before_the_curves(proc: FakeProc) -> None:
    sensor = estimate(proc, static_w=33.0)
    (device,) = sensor.open()
    assert (device.static_w, device.static_basis) == (33.0, StaticBasis.CONFIG)
    sensor.close()


@pytest.mark.parametrize(
    ("busy", "idle", "power_uw"),
    [(0, 1000, 20_000_000), (500, 500, 110_000_000), (1000, 0, 200_000_000)],
)
def test_power_follows_load(proc: FakeProc, busy: int, idle: int, power_uw: int) -> None:
    proc.cpu_ticks(busy=300, idle=700)
    sensor = estimate(proc)
    sensor.open()
    assert sensor.read() == []
    proc.cpu_ticks(busy=300 + busy, idle=700 + idle)
    assert sensor.read() == [PowerReading("cpu0", 77, power_uw)]
    sensor.close()


def test_the_source_of_the_tdp_is_told(proc: FakeProc) -> None:
    assert "85 W is a default" in estimate(proc, cpu_tdp_w=None).note
    assert estimate(proc).note == "TDP 200 W from config"


def test_no_time_passed_is_no_news(proc: FakeProc) -> None:
    sensor = estimate(proc)
    sensor.open()
    assert [sensor.read(), sensor.read()] == [[], []]
    sensor.close()


def test_a_kernel_that_counts_idle_backwards_gives_no_impossible_load(proc: FakeProc) -> None:
    proc.cpu_ticks(busy=100, idle=1000)
    sensor = estimate(proc)
    sensor.open()
    sensor.read()
    proc.cpu_ticks(busy=200, idle=950)
    assert sensor.read() == [PowerReading("cpu0", 77, 200_000_000)]
    sensor.close()


@pytest.mark.parametrize("text", ["", "cpu 1 2 3\n", "cpu a b c d e f g h\n", "intr 1 2\n"])
def test_garbage_is_a_fault_and_the_next_read_starts_anew(proc: FakeProc, text: str) -> None:
    sensor = estimate(proc)
    sensor.open()
    sensor.read()
    (proc.root / "stat").write_text(text)
    (fault,) = sensor.read()
    assert isinstance(fault, ReadFault)
    assert (fault.device, fault.t_ns) == ("cpu0", 77)
    proc.cpu_ticks(busy=10, idle=0)
    assert sensor.read() == []
    sensor.close()


def test_no_proc_stat_is_absent(tmp_path: Path) -> None:
    with pytest.raises(Absent, match="stat"):
        EstimateSensor(SensorSettings(proc_root=tmp_path)).open()


def test_this_machine_can_be_estimated() -> None:
    sensor = EstimateSensor(SensorSettings(cpu_tdp_w=85.0))
    sensor.open()
    readings = [reading for _ in range(1_000) for reading in sensor.read()]
    sensor.close()
    assert all(isinstance(r, PowerReading) and 8.5e6 <= r.power_uw <= 85e6 for r in readings)
