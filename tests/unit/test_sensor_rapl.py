from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from fakes.sysfs import RANGE_UJ, FakePowercap, FakeProc, Opener
from wattledger.records import CounterReading, Device, DeviceKind, StaticBasis
from wattledger_collectors.sensors.protocol import Absent, Denied, ReadFault, SensorSettings
from wattledger_collectors.sensors.rapl import RaplSensor

CPU = "Fake CPU @ 2.00GHz"


class Host:
    """A fake host with a RAPL sensor on it; its clock moves one tick per question."""

    def __init__(self, tmp_path: Path, opener: Opener | None = None) -> None:
        self.powercap = FakePowercap(tmp_path / "sys")
        self.proc = FakeProc(tmp_path / "proc")
        self.opener = opener or Opener()
        self.tick_ns = 100_000_000
        self._now_ns = count(0, self.tick_ns)
        self.settings = SensorSettings(sysfs_root=self.powercap.root, proc_root=self.proc.root)

    def sensor(self, settings: SensorSettings | None = None) -> RaplSensor:
        return RaplSensor(settings or self.settings, lambda: next(self._now_ns), self.opener)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    yield Host(tmp_path)


def energies(sensor: RaplSensor) -> dict[str, int]:
    return {r.device: r.energy_uj for r in sensor.read() if isinstance(r, CounterReading)}


def faults(sensor: RaplSensor) -> dict[str, str]:
    return {r.device: r.reason for r in sensor.read() if isinstance(r, ReadFault)}


def test_packages_and_their_dram_are_devices(host: Host) -> None:
    host.powercap.zone("intel-rapl:0", "package-1", 10)
    host.powercap.zone("intel-rapl:0:0", "core", 11)
    host.powercap.zone("intel-rapl:0:1", "dram", 12)
    host.powercap.zone("intel-rapl:1", "package-0", 20)
    host.powercap.zone("intel-rapl:1:0", "dram", 22)
    sensor = host.sensor()
    assert sensor.open() == (
        Device("cpu0", DeviceKind.CPU, CPU, wrap_uj=RANGE_UJ),
        Device("cpu1", DeviceKind.CPU, CPU, wrap_uj=RANGE_UJ),
        Device("dram0", DeviceKind.DRAM, wrap_uj=RANGE_UJ),
        Device("dram1", DeviceKind.DRAM, wrap_uj=RANGE_UJ),
    )
    assert energies(sensor) == {"cpu0": 20, "cpu1": 10, "dram0": 22, "dram1": 12}
    sensor.close()


def test_amd_tells_the_package_alone(host: Host) -> None:
    host.powercap.zone("intel-rapl:0", "package-0", 10)
    host.powercap.zone("intel-rapl:0:0", "core", 11)
    sensor = host.sensor()
    assert [device.device for device in sensor.open()] == ["cpu0"]
    assert energies(sensor) == {"cpu0": 10}
    sensor.close()


def test_packages_are_ordered_by_number_not_by_letter(host: Host) -> None:
    for package in (10, 9, 2):
        host.powercap.zone(f"intel-rapl:{package}", f"package-{package}", package)
    sensor = host.sensor()
    sensor.open()
    assert energies(sensor) == {"cpu0": 2, "cpu1": 9, "cpu2": 10}
    sensor.close()


def test_dies_are_devices_of_their_own(host: Host) -> None:
    host.powercap.zone("intel-rapl:0", "package-1-die-0", 10)
    host.powercap.zone("intel-rapl:1", "package-0-die-1", 1)
    host.powercap.zone("intel-rapl:2", "package-0-die-0", 3)
    sensor = host.sensor()
    sensor.open()
    assert energies(sensor) == {"cpu0": 3, "cpu1": 1, "cpu2": 10}
    sensor.close()


def test_psys_and_mmio_count_the_packages_again_and_are_left_out(host: Host) -> None:
    host.powercap.zone("intel-rapl:0", "package-0", 10)
    host.powercap.zone("intel-rapl:1", "psys", 99)
    host.powercap.zone("intel-rapl-mmio:0", "package-0", 98)
    sensor = host.sensor()
    sensor.open()
    assert energies(sensor) == {"cpu0": 10}
    sensor.close()


def test_psys_alone_is_the_cpu_and_says_so(host: Host) -> None:
    host.powercap.zone("intel-rapl:0", "psys", 99)
    sensor = host.sensor()
    (device,) = sensor.open()
    assert (device.device, device.kind, device.model) == ("cpu0", DeviceKind.CPU, f"{CPU} (psys)")
    assert energies(sensor) == {"cpu0": 99}
    sensor.close()


def test_a_wrap_is_left_to_the_meter_with_the_range(host: Host) -> None:
    host.powercap.zone("intel-rapl:0", "package-0", 262143000000, range_uj=262143328850)
    sensor = host.sensor()
    (device,) = sensor.open()
    assert device.wrap_uj == 262143328850
    assert energies(sensor) == {"cpu0": 262143000000}
    host.powercap.set("intel-rapl:0", 1000000)
    assert energies(sensor) == {"cpu0": 1000000}
    sensor.close()


def test_an_unreadable_range_leaves_a_decrease_to_be_a_reset(host: Host) -> None:
    host.powercap.zone("intel-rapl:0", "package-0", 1)
    (host.powercap.energy_file("intel-rapl:0").parent / "max_energy_range_uj").unlink()
    sensor = host.sensor()
    assert [device.wrap_uj for device in sensor.open()] == [None]
    sensor.close()


def test_the_file_is_opened_once_and_each_reading_stamped_after_it(host: Host) -> None:
    host.powercap.zone("intel-rapl:0", "package-0", 5)
    host.powercap.zone("intel-rapl:0:0", "dram", 6)
    sensor = host.sensor()
    sensor.open()
    first, second = sensor.read(), sensor.read()
    assert [reading.t_ns // host.tick_ns for reading in first + second] == [1, 2, 4, 5]
    assert len(host.opener.opened) == 2
    sensor.close()


def test_denied_names_the_file_and_the_mend(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.powercap.zone("intel-rapl:0", "package-0", 5)
    file = host.powercap.energy_file("intel-rapl:0")
    host.opener.refused = (file,)
    with pytest.raises(Denied) as denied:
        host.sensor().open()
    assert str(file) in denied.value.reason
    assert "sudo chmod a+r" in denied.value.mend
    assert "CAP_DAC_READ_SEARCH" in str(denied.value)


@pytest.mark.parametrize("zones", [[], ["intel-rapl-mmio:0"]])
def test_no_zone_is_absent(host: Host, zones: list[str]) -> None:
    for zone in zones:
        host.powercap.zone(zone, "package-0", 1)
    with pytest.raises(Absent, match="no RAPL package"):
        host.sensor().open()


def test_no_tree_is_absent(tmp_path: Path) -> None:
    with pytest.raises(Absent):
        RaplSensor(SensorSettings(sysfs_root=tmp_path)).open()


@pytest.mark.parametrize("text", ["", "\n", "garbage\n", "-5\n", "1e9\n", "\0\0\0"])
def test_garbage_is_a_fault_and_hurts_no_other(host: Host, text: str) -> None:
    host.powercap.zone("intel-rapl:0", "package-0", 5)
    host.powercap.zone("intel-rapl:1", "package-1", 6)
    sensor = host.sensor()
    sensor.open()
    host.powercap.write("intel-rapl:0", text)
    cpu0, cpu1 = sensor.read()
    assert isinstance(cpu0, ReadFault)
    assert str(host.powercap.energy_file("intel-rapl:0")) in cpu0.reason
    assert isinstance(cpu1, CounterReading)
    host.powercap.set("intel-rapl:0", 7)
    assert energies(sensor) == {"cpu0": 7, "cpu1": 6}
    sensor.close()


def test_a_zone_that_vanishes_is_a_fault_until_it_is_back(host: Host) -> None:
    host.powercap.zone("intel-rapl:0", "package-0", 5)
    file = host.powercap.energy_file("intel-rapl:0")
    sensor = host.sensor()
    sensor.open()
    host.opener.vanish(file)
    assert "directory" in faults(sensor)["cpu0"]
    assert "No such file" in faults(sensor)["cpu0"]
    host.opener.bring_back(file)
    host.powercap.set("intel-rapl:0", 9)
    assert energies(sensor) == {"cpu0": 9}
    sensor.close()


def test_a_zone_that_failed_long_ago_is_tried_at_once_when_it_fails_again(host: Host) -> None:
    host.powercap.zone("intel-rapl:0", "package-0", 5)
    sensor = host.sensor()
    sensor.open()
    host.powercap.write("intel-rapl:0", "garbage")
    failed_reads = [bool(faults(sensor)) for _ in range(40)]
    assert 3 < sum(failed_reads) < 10
    host.powercap.set("intel-rapl:0", 6)
    assert any(energies(sensor) for _ in range(100))
    host.powercap.write("intel-rapl:0", "garbage")
    assert [bool(faults(sensor)) for _ in range(2)] == [True, True]
    sensor.close()


def test_a_zone_broken_at_the_start_is_a_device_with_faults(host: Host) -> None:
    host.powercap.zone("intel-rapl:0", "package-0", 5)
    host.powercap.write("intel-rapl:0", "garbage")
    sensor = host.sensor()
    assert len(sensor.open()) == 1
    assert faults(sensor).keys() == {"cpu0"}
    sensor.close()


def test_config_gives_the_idle_power(host: Host) -> None:
    host.powercap.zone("intel-rapl:0", "package-0", 5)
    settings = SensorSettings(
        sysfs_root=host.powercap.root, proc_root=host.proc.root, static_w={"cpu0": 40.0}
    )
    sensor = host.sensor(settings)
    (device,) = sensor.open()
    assert (device.static_w, device.static_basis) == (40.0, StaticBasis.CONFIG)
    sensor.close()


def test_a_closed_sensor_reads_nothing_and_opens_again(host: Host) -> None:
    host.powercap.zone("intel-rapl:0", "package-0", 5)
    sensor = host.sensor()
    sensor.close()
    sensor.open()
    sensor.close()
    assert sensor.read() == []
    assert len(sensor.open()) == 1
    assert energies(sensor) == {"cpu0": 5}
    sensor.close()
