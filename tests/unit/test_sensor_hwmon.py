from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.hwmon import FakeSys, nvidia_gpu
from fakes.sysfs import Opener
from wattledger.records import CounterReading, Device, DeviceKind, PowerReading, StaticBasis
from wattledger_collectors.sensors.hwmon import HwmonSensor
from wattledger_collectors.sensors.hwmon_grace import grace_meters, split_uw
from wattledger_collectors.sensors.protocol import (
    Absent,
    Denied,
    ReadFault,
    Reading,
    SensorSettings,
)

W = 1_000_000
ORIN = {"VDD_GPU_SOC": (19_000, 500), "VDD_CPU_CV": (19_000, 200), "VIN_SYS_5V0": (5_000, 900)}


class Host:
    """A fake host with a hwmon sensor on it; its clock moves one tick per question."""

    def __init__(self, tmp_path: Path) -> None:
        self.sys = FakeSys(tmp_path / "sys")
        self.proc = tmp_path / "proc"
        self.proc.mkdir()
        self.opener = Opener()
        self.tick_ns = 100_000_000
        self._now_ns = count(0, self.tick_ns)
        self.settings = SensorSettings(sysfs_root=self.sys.root, proc_root=self.proc)

    def sensor(self, settings: SensorSettings | None = None) -> HwmonSensor:
        return HwmonSensor(settings or self.settings, lambda: next(self._now_ns), self.opener)

    def opened(self) -> HwmonSensor:
        sensor = self.sensor()
        sensor.open()
        return sensor

    def grace(self, socket: int = 0, *, modules: bool = True, scale: int = 1) -> dict[str, Path]:
        """The meters of one socket: Grace 150 W of which CPU 100 W and SysIO 20 W."""
        figures = {"Grace": 150, "CPU": 100, "SysIO": 20, **({"Module": 600} if modules else {})}
        return {
            name: self.sys.power_meter(
                10 * socket + number, f"{name} Power Socket {socket}", scale * power_w * W
            )
            for number, (name, power_w) in enumerate(figures.items())
        }


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    yield Host(tmp_path)


def told(readings: list[Reading]) -> dict[str, int | str]:
    """Energy or power by device; a fault's reason."""
    figures: dict[str, int | str] = {}
    for reading in readings:
        match reading:
            case CounterReading():
                figures[reading.device] = reading.energy_uj
            case PowerReading():
                figures[reading.device] = reading.power_uw
            case ReadFault():
                figures[reading.device] = reading.reason
    return figures


# ------------------------------------------------------------------------------ Intel


def test_xe_is_read_once_by_its_card_channel(host: Host) -> None:
    card = host.sys.card(1, "0000:03:00.0", "xe", "0xe20b")
    host.sys.energy(card, 3, "xe", card=500, pkg=300)
    sensor = host.sensor()
    assert sensor.open() == (Device("intel0", DeviceKind.GPU, "Intel GPU 0xe20b"),)
    assert sensor.read() == [CounterReading("intel0", host.tick_ns, 500)]
    sensor.close()


def test_xe_without_a_card_channel_says_that_it_is_the_package(host: Host) -> None:
    host.sys.energy(host.sys.card(0, "0000:03:00.0", "xe"), 3, "xe", pkg=300)
    sensor = host.sensor()
    (device,) = sensor.open()
    assert device.model == "Intel GPU 0x56c0 (package alone)"
    assert told(sensor.read()) == {"intel0": 300}
    sensor.close()


def test_i915_is_read_without_its_tiles(host: Host) -> None:
    card = host.sys.card(0, "0000:4d:00.0", "i915")
    host.sys.energy(card, 2, "i915_gt0", plain=7)
    host.sys.energy(card, 10, "i915", plain=9)
    sensor = host.opened()
    assert told(sensor.read()) == {"intel0": 9}
    sensor.close()


def test_cards_are_numbered_by_address_and_integrated_ones_count(host: Host) -> None:
    host.sys.card(0, "0000:00:02.0", "i915")
    for number, pci in ((1, "0000:9a:00.0"), (2, "0000:4d:00.0"), (3, "10000:01:00.0")):
        card = host.sys.card(number, pci, "xe")
        host.sys.energy(card, number, "xe", card=number)
    host.sys.energy(host.sys.card(4, "0000:05:00.0", "amdgpu"), 4, "amdgpu", plain=4)
    sensor = host.opened()
    assert told(sensor.read()) == {"intel1": 2, "intel2": 1, "intel3": 3}
    sensor.close()


def test_an_impossible_step_is_a_fault_and_the_next_reading_counts(host: Host) -> None:
    files = host.sys.energy(host.sys.card(0, "0000:03:00.0", "xe"), 3, "xe", card=1000 * W)
    sensor = host.opened()
    sensor.read()
    files["card"].write_text(f"{9_000_000 * W}\n")
    assert "jumped" in str(told(sensor.read())["intel0"])
    files["card"].write_text(f"{1060 * W}\n")
    assert told(sensor.read()) == {"intel0": 1060 * W}
    sensor.close()


# ------------------------------------------------------------------------------ Grace


def test_grace_is_split_into_cpu_and_memory_which_sum_to_it(host: Host) -> None:
    host.grace(modules=False)
    sensor = host.sensor()
    assert sensor.open() == (
        Device("cpu0", DeviceKind.CPU, "NVIDIA Grace"),
        Device("dram0", DeviceKind.DRAM, "Grace memory (Grace - CPU - SysIO)"),
    )
    assert told(sensor.read()) == {"cpu0": 120 * W, "dram0": 30 * W}
    sensor.close()


def test_sockets_are_devices_and_all_modules_are_one_node_meter(host: Host) -> None:
    host.grace(0)
    host.grace(1, scale=2)
    sensor = host.opened()
    assert told(sensor.read()) == {
        "cpu0": 120 * W,
        "dram0": 30 * W,
        "cpu1": 240 * W,
        "dram1": 60 * W,
        "module0": 1800 * W,
    }
    sensor.close()


def test_files_beside_the_class_device_are_found_too(host: Host) -> None:
    host.sys.power_meter(4, "Grace Power Socket 0", 90 * W, parent=False)
    sensor = host.opened()
    assert told(sensor.read()) == {"cpu0": 90 * W}
    sensor.close()


def test_other_power_meters_are_none_of_ours(host: Host) -> None:
    host.sys.power_meter(0, "System Power", 400 * W)
    host.sys.power_meter(1, "CPU Power Socket 0", 100 * W)
    with pytest.raises(Absent):
        host.sensor().open()


@pytest.mark.parametrize(
    ("model", "devices"),
    [
        ("NVIDIA GH200 480GB", {"module0"}),
        ("NVIDIA GB200", {"module0"}),
        ("NVIDIA H100 PCIe", {"cpu0", "dram0", "module0"}),
    ],
)
def test_grace_is_left_out_where_nvml_meters_the_module(
    host: Host, model: str, devices: set[str]
) -> None:
    host.grace()
    nvidia_gpu(host.proc, model)
    sensor = host.opened()
    assert told(sensor.read()).keys() == devices
    assert ("Grace is left out" in sensor.note) == ("cpu0" not in devices)
    sensor.close()


def test_a_grace_without_its_meters_is_denied_with_the_mend(host: Host) -> None:
    host.sys.grace_chip()
    with pytest.raises(Denied) as denied:
        host.sensor().open()
    assert "acpi_power_meter.force_cap_on=y" in denied.value.mend


def test_a_gh200_needs_no_meters_of_grace(host: Host) -> None:
    host.sys.grace_chip()
    nvidia_gpu(host.proc, "NVIDIA GH200 480GB")
    with pytest.raises(Absent):
        host.sensor().open()


def test_one_failing_file_is_a_fault_of_every_device_it_is_part_of(host: Host) -> None:
    files = host.grace()
    sensor = host.opened()
    sensor.read()
    files["SysIO"].write_text("garbage\n")
    figures = told(sensor.read())
    assert figures["module0"] == 600 * W
    assert str(files["SysIO"]) in str(figures["cpu0"])
    assert str(files["SysIO"]) in str(figures["dram0"])
    files["SysIO"].write_text(f"{10 * W}\n")
    assert told(sensor.read()) == {"cpu0": 110 * W, "dram0": 40 * W, "module0": 600 * W}
    sensor.close()


@given(st.tuples(*[st.integers(0, 10**9)] * 3))
def test_cpu_and_memory_always_sum_to_grace(powers_uw: tuple[int, int, int]) -> None:
    cpu_uw, dram_uw = split_uw(powers_uw)
    assert cpu_uw + dram_uw == powers_uw[0]
    assert dram_uw >= 0


# ----------------------------------------------------------------------------- Jetson


def test_agx_orin_is_gpu_cpu_and_the_sum_of_its_three_supplies(host: Host) -> None:
    host.sys.ina3221(1, **ORIN)
    host.sys.ina3221(2, NC=(0, 0), VDDQ_VDD2_1V8AO=(5_000, 300))
    sensor = host.sensor()
    assert [(d.device, d.kind) for d in sensor.open()] == [
        ("igpu0", DeviceKind.GPU),
        ("cpu0", DeviceKind.CPU),
        ("module0", DeviceKind.NODE),
    ]
    assert told(sensor.read()) == {"igpu0": 9_500_000, "cpu0": 3_800_000, "module0": 17_800_000}
    sensor.close()


def test_orin_nx_meters_cpu_and_gpu_by_one_rail_and_says_so(host: Host) -> None:
    host.sys.ina3221(1, VDD_IN=(19_000, 700), VDD_CPU_GPU_CV=(19_000, 300), VDD_SOC=(19_000, 100))
    sensor = host.opened()
    assert told(sensor.read()) == {"cpu0": 5_700_000, "module0": 13_300_000}
    assert "cpu0 holds the GPU too" in sensor.note
    sensor.close()


def test_agx_xavier_has_a_rail_for_each_part(host: Host) -> None:
    host.sys.ina3221(1, GPU=(19_000, 300), CPU=(19_000, 100), SOC=(19_000, 50))
    host.sys.ina3221(2, CV=(19_000, 10), VDDRQ=(19_000, 40), SYS5V=(5_000, 100))
    sensor = host.opened()
    assert told(sensor.read()) == {
        "igpu0": 5_700_000,
        "cpu0": 1_900_000,
        "dram0": 760_000,
        "module0": 10_000_000,
    }
    sensor.close()


def test_unknown_rails_are_named_and_not_guessed_at(host: Host) -> None:
    host.sys.ina3221(1, VDD_GPU=(19_000, 300), VDD_CPU_SOC_MSS=(19_000, 100))
    with pytest.raises(Absent, match="VDD_CPU_SOC_MSS, VDD_GPU"):
        host.sensor().open()


def test_a_channel_that_is_off_is_no_rail(host: Host) -> None:
    folder = host.sys.ina3221(1, **ORIN)
    (folder / "in3_enable").write_text("0\n")
    with pytest.raises(Absent, match="no known module"):
        host.sensor().open()


def test_noise_below_nothing_is_nothing_and_a_backward_current_is_a_fault(host: Host) -> None:
    folder = host.sys.ina3221(1, **ORIN)
    sensor = host.opened()
    (folder / "curr2_input").write_text("-8\n")
    figures = told(sensor.read())
    assert (figures["cpu0"], figures["module0"]) == (0, 13_848_000)
    (folder / "curr2_input").write_text("-800\n")
    assert told(sensor.read())["cpu0"] == "-15200000 uW cannot be"
    sensor.close()


# ------------------------------------------------------------------------- all of them


def test_nothing_here_is_absent(host: Host, tmp_path: Path) -> None:
    with pytest.raises(Absent, match="no Intel GPU"):
        host.sensor().open()
    with pytest.raises(Absent):
        HwmonSensor(SensorSettings(sysfs_root=tmp_path / "none", proc_root=host.proc)).open()


def test_it_says_that_no_hardware_has_seen_it(host: Host) -> None:
    assert host.sensor().note == "not tested on hardware"


def test_all_refused_is_denied_one_refused_is_a_fault(host: Host) -> None:
    files = host.sys.energy(host.sys.card(0, "0000:03:00.0", "xe"), 3, "xe", card=5)
    host.opener.refused = (files["card"],)
    with pytest.raises(Denied, match=r"sudo chmod a\+r .*energy1_input"):
        host.sensor().open()
    host.grace(modules=False)
    sensor = host.opened()
    assert "Permission denied" in str(told(sensor.read())["intel0"])
    sensor.close()


@pytest.mark.parametrize("text", ["", "garbage\n", "-5\n", "1e9\n", "\0\0", "9" * 40])
def test_garbage_is_a_fault_and_hurts_no_other(host: Host, text: str) -> None:
    files = host.sys.energy(host.sys.card(0, "0000:03:00.0", "xe"), 3, "xe", card=5)
    host.grace(modules=False)
    sensor = host.opened()
    files["card"].write_text(text)
    figures = told(sensor.read())
    assert str(files["card"]) in str(figures["intel0"])
    assert figures["cpu0"] == 120 * W
    files["card"].write_text("6\n")
    assert told(sensor.read())["intel0"] == 6
    sensor.close()


def test_a_file_that_vanishes_is_tried_later_and_later_until_it_is_back(host: Host) -> None:
    files = host.sys.energy(host.sys.card(0, "0000:03:00.0", "xe"), 3, "xe", card=5)
    sensor = host.opened()
    host.opener.vanish(files["card"])
    faults = [bool(sensor.read()) for _ in range(40)]
    assert faults[:2] == [True, True]
    assert 3 < sum(faults) < 12
    host.opener.bring_back(files["card"])
    assert any(isinstance(r, CounterReading) for _ in range(200) for r in sensor.read())
    sensor.close()


def test_a_file_broken_at_the_start_is_a_device_with_faults(host: Host) -> None:
    file = host.sys.power_meter(0, "Grace Power Socket 0", 90 * W)
    file.write_text("garbage\n")
    sensor = host.sensor()
    assert len(sensor.open()) == 1
    assert "garbage" in str(told(sensor.read())["cpu0"])
    sensor.close()


def test_impossible_power_is_a_fault(host: Host) -> None:
    file = host.sys.power_meter(0, "Grace Power Socket 0", 90 * W)
    sensor = host.opened()
    file.write_text(f"{2001 * W}\n")
    assert told(sensor.read()) == {"cpu0": f"{2001 * W} uW cannot be"}
    sensor.close()


def test_config_gives_the_idle_power(host: Host) -> None:
    host.grace()
    settings = SensorSettings(
        sysfs_root=host.sys.root, proc_root=host.proc, static_w={"dram0": 12.0}
    )
    statics = {d.device: (d.static_w, d.static_basis) for d in host.sensor(settings).open()}
    assert statics["dram0"] == (12.0, StaticBasis.CONFIG)
    assert statics["cpu0"] == (None, StaticBasis.UNKNOWN)
    found = grace_meters(settings)
    assert [d.device for meter in found.meters for d in meter.devices] == list(statics)


def test_files_are_opened_once_and_a_closed_sensor_reads_nothing(host: Host) -> None:
    host.grace()
    sensor = host.opened()
    sensor.read()
    sensor.read()
    assert len(host.opener.opened) == 4
    sensor.close()
    sensor.close()
    assert sensor.read() == []
    sensor.open()
    assert len(told(sensor.read())) == 3
    sensor.close()
