from __future__ import annotations

import os
from pathlib import Path

import pytest

from fakes.nvml import FakeNvml, RemoteSensor
from wattledger.records import (
    CounterReading,
    Device,
    DeviceKind,
    PowerReading,
    StaticBasis,
)
from wattledger_collectors.sensors.protocol import Absent, ReadFault, Reading, SensorSettings

SENSOR = "wattledger_collectors.sensors.nvml:NvmlSensor"
MS = 1_000_000
SECOND = 1_000_000_000


def counters(readings: list[Reading]) -> dict[str, int]:
    return {r.device: r.energy_uj for r in readings if isinstance(r, CounterReading)}


def powers(readings: list[Reading]) -> dict[str, int]:
    return {r.device: r.power_uw for r in readings if isinstance(r, PowerReading)}


def faults(readings: list[Reading]) -> dict[str, str]:
    return {r.device: r.reason for r in readings if isinstance(r, ReadFault)}


def at(fake: FakeNvml, sensor: RemoteSensor, t_s: float) -> list[Reading]:
    fake.set_time(t_s)
    return sensor.read()


def test_a_square_wave_is_counted_to_its_integral() -> None:
    script = ["gpu 0 NVIDIA_H200 GPU-a"]
    script += [f"seg 0 {n / 2} {700_000 if n % 2 else 70_000}" for n in range(20)]
    fake = FakeNvml(script)
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        assert sensor.open() == (Device("gpu0", DeviceKind.GPU, "NVIDIA H200"),)
        seen = [counters(at(fake, sensor, tick / 10))["gpu0"] for tick in range(101)]
    assert seen[0] == 0
    assert seen[5] == 35_000_000
    assert seen[10] == 385_000_000
    assert seen[100] == 10 * 385_000_000
    assert seen == sorted(seen)


def test_a_reading_is_stamped_when_it_was_read() -> None:
    fake = FakeNvml(["gpu 0 NVIDIA_H200 GPU-a", "seg 0 0 100000"])
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        sensor.open()
        readings = at(fake, sensor, 3.123456)
    assert readings == [
        CounterReading("gpu0", 3_123_456_000, 310_000_000),
        PowerReading("gpu0", 3_123_456_000, 100_000_000),
    ]


def test_power_comes_at_its_own_lower_rate() -> None:
    fake = FakeNvml(["gpu 0 NVIDIA_H200 GPU-a", "seg 0 0 100000", "seg 0 1 300000"])
    with fake.sensor(SENSOR, SensorSettings(power_period_s=1.0)) as sensor:
        sensor.open()
        told = [powers(at(fake, sensor, tick / 10)) for tick in range(21)]
    assert [n for n, power in enumerate(told) if power] == [0, 10, 20]
    assert told[20] == {"gpu0": 300_000_000}


def test_a_reset_counter_is_told_as_it_is() -> None:
    fake = FakeNvml(["gpu 0 NVIDIA_H200 GPU-a", "seg 0 0 100000", "reset 0 2"])
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        sensor.open()
        assert counters(at(fake, sensor, 1.9)) == {"gpu0": 190_000_000}
        assert counters(at(fake, sensor, 2.5)) == {"gpu0": 50_000_000}


def test_without_an_energy_counter_the_gauge_is_read_at_each_tick() -> None:
    fake = FakeNvml(
        [
            "gpu 0 Tesla_P100 GPU-a noenergy nofields",
            "seg 0 0 30000",
            "gpu 1 Tesla_P40 GPU-b noenergy",
            "seg 1 0 50000",
            "seg 1 0.1 60000",
        ]
    )
    with fake.sensor(SENSOR, SensorSettings(power_period_s=60.0)) as sensor:
        sensor.open()
        at(fake, sensor, 0.0)
        readings = at(fake, sensor, 0.1)
    assert counters(readings) == {}
    assert powers(readings) == {"gpu0": 30_000_000, "gpu1": 60_000_000}


def test_a_lost_gpu_is_a_fault_and_hurts_no_other() -> None:
    fake = FakeNvml(
        [
            "gpu 0 NVIDIA_H200 GPU-a",
            "seg 0 0 100000",
            "lost 0 1 5",
            "gpu 1 NVIDIA_H200 GPU-b",
            "seg 1 0 200000",
        ]
    )
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        sensor.open()
        at(fake, sensor, 0.9)
        readings = at(fake, sensor, 1.0)
        assert "GPU is lost" in faults(readings)["gpu0"]
        assert counters(readings) == {"gpu1": 200_000_000}
        ticks = [at(fake, sensor, 1 + tick / 10) for tick in range(1, 100)]
    assert all("gpu1" in counters(readings) for readings in ticks)
    tries = [n for n, readings in enumerate(ticks, start=1) if faults(readings)]
    assert tries == [1, 2, 4, 8, 16, 32]
    back = next(n for n, readings in enumerate(ticks, start=1) if "gpu0" in counters(readings))
    assert back == 64
    assert counters(ticks[back - 1])["gpu0"] == 740_000_000
    assert all("gpu0" in counters(readings) for readings in ticks[back:])


def test_a_gpu_that_came_back_is_tried_at_once_when_lost_again() -> None:
    fake = FakeNvml(["gpu 0 NVIDIA_H200 GPU-a", "lost 0 1 2"])
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        sensor.open()
        for tick in range(10, 40):
            at(fake, sensor, tick / 10)
        # Script time goes back to where the GPU is lost; the sensor's own tries go on from there.
        fake.set_time(1.5)
        assert [bool(faults(sensor.read())) for _ in range(2)] == [True, True]


def test_a_gpu_lost_at_the_start_is_settled_when_it_answers() -> None:
    fake = FakeNvml(["gpu 0 Tesla_P100 GPU-a noenergy", "seg 0 0 30000", "lost 0 0 1"])
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        assert sensor.open() == (Device("gpu0", DeviceKind.GPU, None),)
        assert faults(at(fake, sensor, 0.5))
        assert powers(at(fake, sensor, 1.5)) == {"gpu0": 30_000_000}


def test_a_driver_reload_finds_the_same_gpus_again() -> None:
    fake = FakeNvml(
        [
            "gpu 0 NVIDIA_H200 GPU-a",
            "seg 0 0 100000",
            "gpu 1 NVIDIA_H200 GPU-b",
            "seg 1 0 200000",
            "absent 0 2",
            "reload 2",
        ]
    )
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        sensor.open()
        assert counters(at(fake, sensor, 1.0)) == {"gpu0": 100_000_000, "gpu1": 200_000_000}
        assert faults(at(fake, sensor, 2.0)).keys() == {"gpu0", "gpu1"}
        readings = at(fake, sensor, 2.1)
        sensor.close()
    # gpu1 is the first of the enumeration now, and is gpu1 still.
    assert counters(readings) == {"gpu1": 420_000_000}
    assert "Not Found" in faults(readings)["gpu0"]


def test_config_gives_the_idle_power() -> None:
    fake = FakeNvml(["gpu 0 NVIDIA_H200 GPU-a", "gpu 1 NVIDIA_H200 GPU-b"])
    with fake.sensor(SENSOR, SensorSettings(static_w={"gpu1": 70.0})) as sensor:
        first, second = sensor.open()
    assert (first.static_w, first.static_basis) == (None, StaticBasis.UNKNOWN)
    assert (second.static_w, second.static_basis) == (70.0, StaticBasis.CONFIG)


def test_mig_leaves_the_board_one_device() -> None:
    fake = FakeNvml(["gpu 0 NVIDIA_H200 GPU-a mig", "seg 0 0 100000"])
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        assert [d.device for d in sensor.open()] == ["gpu0"]
        assert counters(at(fake, sensor, 1.0)) == {"gpu0": 100_000_000}


def test_a_gpu_that_tells_nothing_is_left_out() -> None:
    fake = FakeNvml(
        ["gpu 0 Orin GPU-a noenergy nopower", "gpu 1 NVIDIA_H200 GPU-b nopower", "seg 1 0 1000"]
    )
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        assert [d.device for d in sensor.open()] == ["gpu1"]
        assert at(fake, sensor, 1.0) == [CounterReading("gpu1", SECOND, 1_000_000)]


def test_no_gpu_that_tells_is_absent() -> None:
    fake = FakeNvml(["gpu 0 Orin GPU-a noenergy nopower"])
    with fake.sensor(SENSOR, SensorSettings()) as sensor, pytest.raises(Absent, match="no GPU"):
        sensor.open()


def test_no_library_is_absent(tmp_path: Path) -> None:
    fake = FakeNvml([])
    fake.set_time(0.0)
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"not a library")
    env = {**fake.env(), "LD_LIBRARY_PATH": str(tmp_path)}
    with RemoteSensor(SENSOR, SensorSettings(), env) as sensor, pytest.raises(Absent) as absent:
        sensor.open()
    assert "libnvidia-ml.so.1" in absent.value.reason
    assert os.linesep not in absent.value.reason


def test_sixteen_gpus_read_in_one_tick() -> None:
    script = [line for n in range(16) for line in (f"gpu {n} A100 GPU-{n}", f"seg {n} 0 1000")]
    fake = FakeNvml(script)
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        assert len(sensor.open()) == 16
        assert counters(at(fake, sensor, 1.0)) == {f"gpu{n}": 1_000_000 for n in range(16)}


def test_a_closed_sensor_reads_nothing_and_opens_again() -> None:
    fake = FakeNvml(["gpu 0 NVIDIA_H200 GPU-a", "seg 0 0 100000"])
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        sensor.close()
        sensor.open()
        sensor.close()
        assert sensor.read() == []
        sensor.open()
        assert counters(at(fake, sensor, 1.0)) == {"gpu0": 100_000_000}
