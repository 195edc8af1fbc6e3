from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path

import pytest

from fakes import powercap_layouts as layouts
from fakes.powercap_layouts import NARROW_UJ, WIDE_UJ, Zone, lay
from fakes.sysfs import FakePowercap, FakeProc, Opener
from wattledger.records import NS_PER_S, CounterReading
from wattledger_collectors.sensors.protocol import (
    Absent,
    DevicesChanged,
    ReadFault,
    SensorSettings,
)
from wattledger_collectors.sensors.rapl import RaplSensor


class Host:
    """A fake host; its clock stands at `now_s` and moves a microsecond per question."""

    def __init__(self, tmp_path: Path, zones: tuple[Zone, ...] = ()) -> None:
        self.powercap = FakePowercap(tmp_path / "sys")
        self.proc = FakeProc(tmp_path / "proc")
        self.opener = Opener()
        self.now_s = 1000.0
        self.waited_s: list[float] = []
        self._micros = count()
        lay(self.powercap, zones)
        settings = SensorSettings(sysfs_root=self.powercap.root, proc_root=self.proc.root)
        self.sensor = RaplSensor(settings, self._clock, self.opener, self.waited_s.append)

    def _clock(self) -> int:
        return round(self.now_s * NS_PER_S) + next(self._micros) * 1000

    def after(self, seconds: float) -> dict[str, int | str]:
        """Read `seconds` later: energy or the fault's reason by device."""
        self.now_s += seconds
        return {
            r.device: r.energy_uj if isinstance(r, CounterReading) else r.reason
            for r in self.sensor.read()
            if isinstance(r, CounterReading | ReadFault)
        }

    def unplug(self, *zones: str) -> None:
        for zone in zones:
            shutil.rmtree(self.powercap.energy_file(zone).parent)


@pytest.mark.parametrize(
    ("zones", "energies"),
    [
        (layouts.DESKTOP, {"cpu0": 190_000_000_000}),
        (
            layouts.TWO_SOCKETS,
            {
                "cpu0": 11_000_000_000,
                "cpu1": 22_000_000_000,
                "dram0": 1_100_000_000,
                "dram1": 2_200_000_000,
            },
        ),
        (
            layouts.TWO_SOCKETS_WITH_DIES,
            {"cpu0": 1, "cpu1": 11, "cpu2": 100, "cpu3": 110}
            | {"dram0": 2, "dram1": 12, "dram2": 101, "dram3": 111},
        ),
        (
            layouts.SERVER_WITH_PSYS,
            {
                "cpu0": 11_000_000_000,
                "cpu1": 22_000_000_000,
                "dram0": 1_100_000_000,
                "dram1": 2_200_000_000,
            },
        ),
        (layouts.DRAM_ON_ONE, {"cpu0": 10, "cpu1": 20, "dram1": 21}),
        (layouts.EPYC, {"cpu0": 31_000_000_000, "cpu1": 32_000_000_000}),
        (layouts.TWICE, {"cpu0": 10}),
        (layouts.DRAM_AT_ZERO, {"cpu0": 10}),
    ],
)
def test_every_joule_of_a_layout_is_counted_once(
    tmp_path: Path, zones: tuple[Zone, ...], energies: dict[str, int]
) -> None:
    host = Host(tmp_path, zones)
    devices = host.sensor.open()
    assert host.after(0.1) == energies
    assert [device.device for device in devices] == sorted(energies)
    ranges = {device.device: device.wrap_uj for device in devices}
    narrow = zones is layouts.EPYC
    assert {ranges[name] for name in ranges if name.startswith("cpu")} == {
        NARROW_UJ if narrow else WIDE_UJ
    }
    assert all(ranges[name] == NARROW_UJ for name in ranges if name.startswith("dram"))
    host.sensor.close()


def test_counters_at_zero_are_nobodys_and_leave_the_cpu_to_the_estimate(tmp_path: Path) -> None:
    host = Host(tmp_path, layouts.ALL_AT_ZERO)
    with pytest.raises(Absent, match=r"no RAPL counter that moves.*can only be estimated"):
        host.sensor.open()
    assert host.waited_s == [0.1]
    assert "left out cpu0, dram0: the counter stands at 0" in host.sensor.note


def test_a_counter_that_leaves_zero_while_it_is_watched_is_alive(tmp_path: Path) -> None:
    host = Host(tmp_path, layouts.DRAM_AT_ZERO)
    settings = SensorSettings(sysfs_root=host.powercap.root, proc_root=host.proc.root)
    sensor = RaplSensor(settings, wait=lambda _: host.powercap.set("intel-rapl:0:0", 7))
    assert [device.device for device in sensor.open()] == ["cpu0", "dram0"]
    assert sensor.note == ""
    sensor.close()


@pytest.mark.parametrize("zones", [(), (layouts.DESKTOP[-1],)])
def test_a_host_without_zones_is_told_what_that_means(
    tmp_path: Path, zones: tuple[Zone, ...]
) -> None:
    with pytest.raises(Absent) as absent:
        Host(tmp_path, zones).sensor.open()
    assert "virtual machine" in absent.value.reason
    assert "modprobe intel_rapl_msr" in absent.value.reason


@pytest.mark.parametrize("range_uj", [WIDE_UJ, NARROW_UJ])
def test_a_wrap_is_let_through(tmp_path: Path, range_uj: int) -> None:
    host = Host(tmp_path, (("intel-rapl:0", "package-0", range_uj - 10, range_uj),))
    host.sensor.open()
    assert host.after(0.1) == {"cpu0": range_uj - 10}
    host.powercap.set("intel-rapl:0", 20)
    assert host.after(0.1) == {"cpu0": 20}
    host.sensor.close()


@pytest.mark.parametrize(("range_uj", "blind_s"), [(WIDE_UJ, 264.0), (NARROW_UJ, 68.0)])
def test_a_count_that_began_anew_is_no_wrap(tmp_path: Path, range_uj: int, blind_s: float) -> None:
    host = Host(tmp_path, (("intel-rapl:0", "package-0", 30_000_000_000, range_uj),))
    host.sensor.open()
    assert host.after(0.1) == {"cpu0": 30_000_000_000}
    host.powercap.set("intel-rapl:0", 5)
    assert "more than 1000 W" in str(host.after(0.1)["cpu0"])
    told = host.after(blind_s - 60.0)
    assert isinstance(told["cpu0"], str)
    # By now the meter takes it for a gap, whatever it says.
    told = host.after(61.0)
    assert told == {"cpu0": 5}
    host.sensor.close()


def test_one_wild_value_is_a_fault_and_the_next_good_one_goes_on(tmp_path: Path) -> None:
    host = Host(tmp_path, (("intel-rapl:0", "package-0", 30_000_000_000, WIDE_UJ),))
    host.sensor.open()
    host.after(0.1)
    for wild_uj in (200_000_000_000, 0):
        host.powercap.set("intel-rapl:0", wild_uj)
        assert isinstance(host.after(0.1)["cpu0"], str)
        host.powercap.set("intel-rapl:0", 30_000_000_001)
        assert host.after(0.2)["cpu0"] == 30_000_000_001
    host.sensor.close()


@pytest.mark.parametrize("garbage", ["garbage\n", "40000000000\n"])
def test_a_wrap_behind_one_bad_reading_is_let_through(tmp_path: Path, garbage: str) -> None:
    host = Host(tmp_path, (("intel-rapl:0", "package-0", NARROW_UJ - 10, NARROW_UJ),))
    host.sensor.open()
    host.after(0.1)
    host.powercap.write("intel-rapl:0", garbage)
    assert isinstance(host.after(0.1)["cpu0"], str)
    host.powercap.set("intel-rapl:0", 20)
    assert host.after(0.1) == {"cpu0": 20}
    host.sensor.close()


def test_a_counter_that_stands_still_is_a_fault_until_it_moves(tmp_path: Path) -> None:
    host = Host(tmp_path, layouts.DRAM_ON_ONE)
    host.sensor.open()
    host.after(0.1)
    assert host.after(9.0) == {"cpu0": 10, "cpu1": 20, "dram1": 21}
    host.powercap.set("intel-rapl:1", 1020)
    told = host.after(2.0)
    assert "stands still at 10" in str(told["cpu0"])
    assert told["cpu1"] == 1020
    host.powercap.set("intel-rapl:0", 11)
    assert host.after(2.0)["cpu0"] == 11
    host.sensor.close()


def test_a_package_that_is_unplugged_and_plugged_keeps_the_others_names(tmp_path: Path) -> None:
    host = Host(tmp_path, layouts.TWO_SOCKETS)
    host.sensor.open()
    host.after(0.1)
    host.unplug("intel-rapl:0", "intel-rapl:0:0")
    with pytest.raises(DevicesChanged, match="come or gone"):
        host.after(31.0)
    assert [device.device for device in host.sensor.open()] == ["cpu1", "dram1"]
    host.powercap.zone("intel-rapl:0", "package-0", 7)
    with pytest.raises(DevicesChanged):
        host.after(31.0)
    assert [device.device for device in host.sensor.open()] == ["cpu0", "cpu1", "dram1"]
    host.powercap.set("intel-rapl:1", 22_000_000_001)
    told = host.after(0.1)
    # What came back counts from the start again: no wrap, and held until it is a gap.
    assert isinstance(told["cpu0"], str)
    assert told["cpu1"] == 22_000_000_001
    host.sensor.close()


def test_zones_that_all_go_are_waited_for(tmp_path: Path) -> None:
    host = Host(tmp_path, layouts.TWICE)
    host.sensor.open()
    host.unplug("intel-rapl:0", "intel-rapl:1")
    with pytest.raises(DevicesChanged):
        host.after(31.0)
    with pytest.raises(OSError, match="any more"):
        host.sensor.open()
    lay(host.powercap, layouts.TWICE)
    assert [device.device for device in host.sensor.open()] == ["cpu0"]
    host.sensor.close()


def test_a_zone_denied_midway_is_a_fault_of_its_own(tmp_path: Path) -> None:
    host = Host(tmp_path, layouts.EPYC)
    host.sensor.open()
    file = host.powercap.energy_file("intel-rapl:0")
    host.opener.vanish(file)
    host.opener.bring_back(file)
    host.opener.refused = (file,)
    assert isinstance(host.after(0.1)["cpu0"], str)
    told = host.after(0.2)
    assert "Permission denied" in str(told["cpu0"])
    assert told["cpu1"] == 32_000_000_000
    host.sensor.close()
