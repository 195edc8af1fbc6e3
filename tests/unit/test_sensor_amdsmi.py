from __future__ import annotations

from pathlib import Path

import pytest

from fakes import amdsmi as fake
from fakes.amdsmi import FakeAmdSmi, FakeGpu
from fakes.hwmon import FakeSys
from wattledger.records import (
    CounterReading,
    Device,
    DeviceKind,
    PowerReading,
    Quality,
    StaticBasis,
)
from wattledger_collectors.sensors.amdsmi import AmdSmiSensor
from wattledger_collectors.sensors.amdsmi_driver import AmdError
from wattledger_collectors.sensors.protocol import (
    Absent,
    Denied,
    ReadFault,
    Reading,
    SensorSettings,
)
from wattledger_daemon.heart.metering import Meter

S = 1_000_000_000
W = 1_000_000
PCI = ("0000:05:00.0", "0000:26:00.0", "0000:46:00.0", "0000:65:00.0")


class Host:
    """A host with AMD GPUs in sysfs and in AMD SMI; its clock stands where the test puts it."""

    def __init__(self, tmp_path: Path, *gpus: FakeGpu) -> None:
        self.t_ns = 0
        self.sys = FakeSys(tmp_path / "sys")
        for number, pci in enumerate(sorted({gpu.bdf.lower() for gpu in gpus})):
            self.sys.card(number, pci, "amdgpu")
        self.smi = FakeAmdSmi(list(gpus), now_s=lambda: self.t_ns / S)
        self.settings = SensorSettings(sysfs_root=self.sys.root)

    def sensor(self, settings: SensorSettings | None = None) -> AmdSmiSensor:
        return AmdSmiSensor(settings or self.settings, lambda: self.t_ns, lambda: self.smi)

    def opened(self) -> AmdSmiSensor:
        sensor = self.sensor()
        sensor.open()
        return sensor

    def run(self, sensor: AmdSmiSensor, until_s: float) -> list[Reading]:
        """Ten reads a second, the last of them at `until_s`."""
        readings: list[Reading] = []
        while self.t_ns < round(until_s * S):
            self.t_ns += S // 10
            readings += sensor.read()
        return readings


def counters(readings: list[Reading], device: str = "amd0") -> list[CounterReading]:
    return [r for r in readings if isinstance(r, CounterReading) and r.device == device]


def powers(readings: list[Reading], device: str = "amd0") -> list[PowerReading]:
    return [r for r in readings if isinstance(r, PowerReading) and r.device == device]


def faults(readings: list[Reading]) -> list[ReadFault]:
    return [r for r in readings if isinstance(r, ReadFault)]


# ------------------------------------------------------------------------- the trial


def test_a_right_counter_is_trusted_and_none_of_its_readings_is_lost(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0]))
    sensor = host.opened()
    assert host.run(sensor, 0.5) == []
    readings = host.run(sensor, 2.0)
    told = counters(readings)
    assert [r.t_ns for r in told] == [S // 10 * n for n in range(1, 21)]
    assert told[-1].energy_uj - told[0].energy_uj == pytest.approx(300 * 1.9 * W, rel=1e-6)
    assert isinstance(readings[0], CounterReading)
    assert sensor.note == "not tested on hardware"
    sensor.close()


@pytest.mark.parametrize(
    ("scale", "reason"),
    [(0.0, "does not move"), (0.4, "0.4 times"), (2.5, "2.5 times"), (-0.1, "fell")],
)
def test_a_wrong_counter_leaves_it_to_the_gauge_and_the_note_says_so(
    tmp_path: Path, scale: float, reason: str
) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0], counter_scale=scale))
    sensor = host.opened()
    readings = host.run(sensor, 6.0)
    assert not counters(readings)
    assert [r.t_ns for r in powers(readings)] == [S // 10 * n for n in range(1, 61)]
    assert {r.power_uw for r in powers(readings)} == {300 * W}
    assert reason in sensor.note
    sensor.close()


@pytest.mark.parametrize("scale", [0.55, 1.9])
def test_off_by_less_than_two_is_trusted(tmp_path: Path, scale: float) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0], counter_scale=scale))
    sensor = host.opened()
    assert len(counters(host.run(sensor, 1.0))) == 10
    sensor.close()


def test_what_was_settled_holds_when_the_sensor_is_opened_again(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0]))
    sensor = host.opened()
    host.run(sensor, 1.0)
    host.smi.gpus[0].counter_scale = 0.0
    sensor.open()
    assert len(counters(host.run(sensor, 1.2))) == 2
    sensor.close()


def test_long_periods_settle_at_the_second_reading(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0]))
    sensor = host.opened()
    sensor.read()
    host.t_ns = 10 * S
    assert len(counters(sensor.read())) == 2
    sensor.close()


def test_without_a_counter_the_gauge_is_read_at_once(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0], energy_error=fake.NOT_SUPPORTED))
    sensor = host.opened()
    assert len(powers(host.run(sensor, 0.5))) == 5
    sensor.close()


def test_without_a_gauge_a_counter_that_moves_is_trusted(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0], power_error=fake.NOT_SUPPORTED))
    sensor = host.opened()
    readings = host.run(sensor, 1.0)
    assert len(counters(readings)) == len(readings) == 10
    sensor.close()


def test_neither_a_moving_counter_nor_power_is_a_fault_and_never_a_zero(tmp_path: Path) -> None:
    gpu = FakeGpu(PCI[0], counter_scale=0.0, power_error=fake.NOT_SUPPORTED)
    host = Host(tmp_path, gpu)
    sensor = host.opened()
    readings = host.run(sensor, 20.0)
    assert readings
    assert faults(readings) == readings
    assert "does not move, and no power is told" in faults(readings)[0].reason
    sensor.close()


@pytest.mark.parametrize(("scale", "quality"), [(1.0, Quality.MEASURED), (0.0, Quality.INTEGRATED)])
def test_the_books_miss_nothing_of_the_trial(
    tmp_path: Path, scale: float, quality: Quality
) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0], counter_scale=scale))
    sensor, meter = host.opened(), Meter()
    for reading in host.run(sensor, 10.1):
        if isinstance(reading, CounterReading):
            meter.read_counter(reading)
        elif isinstance(reading, PowerReading):
            meter.read_power(reading)
    intervals = meter.intervals(0, 11 * S)
    assert {interval.quality for interval in intervals} == {quality}
    assert sum(i.length_ns for i in intervals) == 10 * S
    assert sum(i.energy_uj for i in intervals) == pytest.approx(3000 * W, rel=1e-6)
    sensor.close()


# --------------------------------------------------------------------- steady reading


def test_power_is_told_once_a_second_beside_the_counter(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0]))
    sensor = host.opened()
    host.run(sensor, 2.0)
    assert len(powers(host.run(sensor, 12.0))) == 10
    sensor.close()


def test_power_that_goes_is_missed_by_the_gauge_alone(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0]), FakeGpu(PCI[1], counter_scale=0.0))
    sensor = host.opened()
    host.run(sensor, 6.0)
    for gpu in host.smi.gpus:
        gpu.power_error = fake.NOT_SUPPORTED
    readings = host.run(sensor, 8.0)
    assert len(counters(readings)) == 20
    assert {fault.device for fault in faults(readings)} == {"amd1"}
    sensor.close()
    assert sensor.read() == []


def test_a_failing_gpu_is_a_fault_and_hurts_no_other(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0]), FakeGpu(PCI[1]))
    sensor = host.opened()
    host.run(sensor, 2.0)
    host.smi.gpus[0].energy_error = fake.BUSY
    readings = host.run(sensor, 4.0)
    assert len(counters(readings, "amd1")) == 20
    assert not counters(readings)
    assert 3 <= len(faults(readings)) < 10
    assert "\n" not in faults(readings)[0].reason
    host.smi.gpus[0].energy_error = None
    assert counters(host.run(sensor, 8.0))
    sensor.close()


def test_a_counter_that_jumps_is_a_fault(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0]))
    sensor = host.opened()
    host.run(sensor, 2.0)
    host.smi.gpus[0].added_uj = 1e15
    (fault,) = faults(host.run(sensor, 2.1))
    assert "jumped" in fault.reason
    host.smi.gpus[0].added_uj = 0.0
    assert len(counters(host.run(sensor, 2.2))) == 1
    sensor.close()


def test_a_driver_reload_is_survived(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0]))
    sensor = host.opened()
    host.run(sensor, 2.0)
    host.smi.initialized = False
    assert len(faults(host.run(sensor, 2.1))) == 1
    assert counters(host.run(sensor, 2.5))
    assert host.smi.inits == 2
    host.smi.initialized, host.smi.init_error = False, fake.DRIVER_NOT_LOADED
    assert "not loaded" in faults(host.run(sensor, 2.8))[-1].reason
    sensor.close()


@pytest.mark.parametrize("garbage", ["N/A", {}, {"power": "N/A", "counter_resolution": 15.3}, 7])
def test_answers_of_another_shape_are_faults(tmp_path: Path, garbage: object) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0]))
    sensor = host.opened()
    host.run(sensor, 2.0)
    host.smi.garbage = garbage
    assert len(faults(host.run(sensor, 2.1))) == 1
    sensor.close()


# ----------------------------------------------------------------------------- boards


def test_boards_are_numbered_by_their_address(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeGpu(PCI[2].upper(), "B"), FakeGpu(PCI[0], "A"))
    settings = SensorSettings(sysfs_root=host.sys.root, static_w={"amd0": 90.0})
    assert host.sensor(settings).open() == (
        Device("amd0", DeviceKind.GPU, "A", 90.0, StaticBasis.CONFIG),
        Device("amd1", DeviceKind.GPU, "B"),
    )


def test_an_mi250_is_one_device_of_two_dies(tmp_path: Path) -> None:
    dies = [
        FakeGpu(pci, "AMD INSTINCT MI250 (MCM) OAM AC MBA", base_uj=(1 - n % 2) * 1e9)
        for n, pci in enumerate(PCI)
    ]
    for odd in dies[1::2]:
        odd.power_w = 0.0
    sensor = Host(tmp_path, *dies).sensor()
    assert [device.device for device in sensor.open()] == ["amd0", "amd2"]


def test_an_mi250_whose_dies_both_count_is_two_devices(tmp_path: Path) -> None:
    sensor = Host(tmp_path, *(FakeGpu(pci, "AMD Instinct MI250X") for pci in PCI[:2])).sensor()
    assert [device.device for device in sensor.open()] == ["amd0", "amd1"]


def test_dies_that_do_not_answer_are_a_board_and_a_gpu_may_have_no_name(tmp_path: Path) -> None:
    dies = [FakeGpu(pci, "AMD Instinct MI250X", energy_error=fake.BUSY) for pci in PCI[:2]]
    host = Host(tmp_path, *dies, FakeGpu(PCI[2], "N/A"), FakeGpu(PCI[3], name_error=fake.BUSY))
    assert [(d.device, d.model) for d in host.sensor().open()] == [
        ("amd0", "AMD Instinct MI250X"),
        ("amd2", None),
        ("amd3", None),
    ]


def test_a_socket_with_cpu_cores_is_told_to_hold_them(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0], "AMD Instinct MI300A"), FakeGpu(PCI[1]))
    sensor = host.opened()
    assert "amd0 holds its CPU too" in sensor.note
    assert "amd1" not in sensor.note
    sensor.close()


def test_partitions_of_a_gpu_are_metered_once(tmp_path: Path) -> None:
    partitions = [FakeGpu(f"0000:05:00.{n}") for n in range(4)]
    host = Host(tmp_path, *partitions[:1])
    host.smi.gpus = [*partitions, FakeGpu(PCI[3])]
    assert [device.device for device in host.sensor().open()] == ["amd0", "amd1"]


def test_no_amd_card_is_absent_without_an_import(tmp_path: Path) -> None:
    def load() -> None:
        raise AssertionError("imported")

    FakeSys(tmp_path).card(0, PCI[0], "xe")
    with pytest.raises(Absent, match="no AMD GPU"):
        AmdSmiSensor(SensorSettings(sysfs_root=tmp_path), load=load).open()


def test_an_init_that_fails_says_what_it_is(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0]))
    for error, raised in (
        (fake.DRIVER_NOT_LOADED, Absent),
        (fake.NO_PERMISSION, Denied),
        (fake.BUSY, AmdError),
    ):
        host.smi.init_error = error
        with pytest.raises(raised):
            host.sensor().open()


def test_no_gpu_is_absent_and_close_shuts_the_library_down(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeGpu(PCI[0]))
    host.smi.gpus = []
    with pytest.raises(Absent, match="shows no GPU"):
        host.sensor().open()
    assert host.smi.shut_downs == 1
