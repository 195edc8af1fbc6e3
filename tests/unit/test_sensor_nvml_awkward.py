"""NVIDIA hardware and drivers that misbehave: what is told of them, and what is not."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from threading import Event, Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.nvml import FakeNvml, RemoteSensor
from fakes.nvml_pair import HUNG, PAIR
from wattledger.records import CounterReading, PowerReading, Quality, UseRecord
from wattledger_collectors.sensors.nvml_counter import Track
from wattledger_collectors.sensors.nvml_driver import NvmlDriver, NvmlError
from wattledger_collectors.sensors.nvml_power import is_superchip
from wattledger_collectors.sensors.protocol import (
    DevicesChanged,
    ReadFault,
    Reading,
    SensorSettings,
)
from wattledger_daemon.heart.metering import EnergyInterval, Meter

SENSOR = "wattledger_collectors.sensors.nvml:NvmlSensor"
H200 = "gpu 0 NVIDIA_H200 GPU-a"
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


def ticks(*script: str, until_s: float) -> list[list[Reading]]:
    """What the sensor reads ten times a second."""
    fake = FakeNvml(script)
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        sensor.open()
        return [at(fake, sensor, tick / 10) for tick in range(round(until_s * 10) + 1)]


def metered(read: list[list[Reading]], until_s: float) -> list[EnergyInterval]:
    """The readings of one GPU, as the books meter them."""
    meter = Meter()
    for reading in (reading for readings in read for reading in readings):
        if isinstance(reading, CounterReading):
            meter.read_counter(reading)
        elif isinstance(reading, PowerReading):
            meter.read_power(reading)
    return meter.intervals(0, round(until_s * SECOND))


# -------------------------------------------------------------------------- counters that lie


def test_an_impossible_reading_is_refused_and_the_next_goes_on() -> None:
    read = ticks(H200, "seg 0 0 100000", "bump 0 1 1.05 5000000000000", until_s=2)
    assert [n for n, readings in enumerate(read) if faults(readings)] == [10]
    assert "which no GPU draws" in faults(read[10])["gpu0"]
    assert [counters(readings)["gpu0"] for readings in (read[9], read[11])] == [
        90_000_000,
        110_000_000,
    ]


def test_a_counter_that_falls_for_a_moment_is_no_reset() -> None:
    script = [H200, "seg 0 0 600000", "bump 0 100 100.05 -1000000"]
    fake = FakeNvml(script)
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        sensor.open()
        at(fake, sensor, 99.9)
        assert faults(at(fake, sensor, 100.0)).keys() == {"gpu0"}
        assert counters(at(fake, sensor, 100.1)) == {"gpu0": 60_060_000_000}


@pytest.mark.parametrize("bump_mj", [5_000_000_000_000, -2_000_000])
def test_a_counter_that_jumps_for_good_is_a_reset_filled_from_power(bump_mj: int) -> None:
    read = ticks(H200, "seg 0 0 400000", f"bump 0 10 99 {bump_mj}", until_s=20)
    cells = metered(read, 20)
    assert {cell.quality for cell in cells} == {Quality.MEASURED, Quality.RESET}
    assert sum(cell.energy_uj for cell in cells) == pytest.approx(20 * 400_000_000, rel=0.001)
    assert max(cell.energy_uj / cell.length_ns for cell in cells) < 0.41


def test_nonsense_is_refused_for_as_long_as_it_lasts() -> None:
    read = ticks(H200, "seg 0 0 100000", "garbage 0 1 3", until_s=4)
    assert [n for n, r in enumerate(read) if "gpu0" not in counters(r)] == list(range(10, 30))
    assert not any(powers(readings) for readings in read[10:30])
    assert sum(cell.energy_uj for cell in metered(read, 4)) == 400_000_000


def test_nonsense_from_the_start_is_waited_out() -> None:
    read = ticks(H200, "seg 0 0 100000", "garbage 0 0 1", until_s=3)
    assert faults(read[0]).keys() == {"gpu0"}
    assert counters(read[30]) == {"gpu0": 300_000_000}
    assert powers(read[30]) == {"gpu0": 100_000_000}


def test_a_gauge_that_talks_nonsense_is_a_fault() -> None:
    script = ["gpu 0 Tesla_P100 GPU-a noenergy", "seg 0 0 30000", "garbage 0 1 2"]
    read = ticks(*script, until_s=4)
    assert "nan W" in faults(read[10])["gpu0"]
    assert {power for readings in read for power in powers(readings).values()} == {30_000_000}


def test_a_counter_that_stood_still_catches_up() -> None:
    read = ticks(H200, "seg 0 0 700000", "stuck 0 1 2", until_s=3)
    assert {counters(readings)["gpu0"] for readings in read[10:20]} == {700_000_000}
    assert counters(read[20]) == {"gpu0": 1_400_000_000}


@given(st.lists(st.tuples(st.integers(1, 5 * SECOND), st.integers(0, 2**64 - 1)), max_size=40))
def test_whatever_a_counter_says_no_more_than_ten_kilowatts_is_told(
    moves: list[tuple[int, int]],
) -> None:
    told: list[tuple[int, int]] = []
    track, t_ns = Track(), 0
    for pause_ns, mj in moves:
        t_ns += pause_ns
        try:
            energy_uj = track.take(mj, t_ns)
        except NvmlError:
            continue
        if not told or told[-1][1] != energy_uj:
            told.append((t_ns, energy_uj))
    for (start_ns, before_uj), (end_ns, after_uj) in pairwise(told):
        slack_ns = max(end_ns - start_ns, SECOND // 10)
        assert after_uj >= 0
        assert after_uj - before_uj <= 10 * slack_ns


@given(st.lists(st.tuples(st.integers(10**6, SECOND), st.integers(0, 100_000)), max_size=40))
def test_what_a_gpu_can_draw_is_told_as_it_is(moves: list[tuple[int, int]]) -> None:
    track, t_ns, mj = Track(), 0, 7
    for pause_ns, rise_mj in moves:
        t_ns, mj = t_ns + pause_ns, mj + rise_mj
        assert track.take(mj, t_ns) == mj * 1000


# -------------------------------------------------------------------------------- which power


@pytest.mark.parametrize(
    ("flags", "power_uw"),
    [("", 300_000_000), ("noinstant", 200_000_000), ("nofields", 200_000_000)],
)
def test_instant_power_comes_first_then_averages(flags: str, power_uw: int) -> None:
    script = [f"{H200} {flags}", "seg 0 0 100000", "seg 0 0.5 300000"]
    assert powers(ticks(*script, until_s=1)[10]) == {"gpu0": power_uw}


def test_on_a_gh200_the_power_is_the_modules_as_the_counter_is() -> None:
    script = ["gpu 0 NVIDIA_GH200_480GB GPU-a", "seg 0 0 400000", "module 0 0 650000"]
    read = ticks(*script, until_s=1)
    assert counters(read[10]) == {"gpu0": 650_000_000}
    assert powers(read[10]) == {"gpu0": 650_000_000}


@pytest.mark.parametrize(
    ("model", "shared"),
    [("NVIDIA GH200 480GB", True), ("NVIDIA GB200", True), ("NVIDIA H200", False), (None, False)],
)
def test_superchips_by_name(model: str | None, shared: bool) -> None:
    assert is_superchip(model) is shared


def test_the_note_tells_what_each_gpu_is_metered_by() -> None:
    fake = FakeNvml(
        [
            *("gpu 0 NVIDIA_H200 GPU-a", "gpu 1 NVIDIA_H200 GPU-b"),
            *("gpu 2 NVIDIA_GH200_480GB GPU-c", "module 2 0 1000"),
            *("gpu 3 Tesla_P100 GPU-d noenergy nofields", "gpu 4 NVIDIA_B200 GPU-e"),
            "module 4 0 1000",
        ]
    )
    with fake.sensor(PAIR, SensorSettings()) as sensor:
        sensor.open()
        told = dict(part.split(": ", 1) for part in sensor.note().split("; gpu"))
    assert told["gpu0, gpu1"] == "energy counter beside instant power (field 186)"
    assert "of the whole module; it may cover the whole module" in told["2"]
    assert told["3"].startswith("no energy counter, nvmlDeviceGetPowerUsage")
    assert told["4"].endswith("what the counter covers is not known")


# ------------------------------------------------------------------------------- hot-plugging


def plug(root: Path, *addresses: str) -> SensorSettings:
    for address in addresses:
        (root / "driver/nvidia/gpus" / address).mkdir(parents=True, exist_ok=True)
    return SensorSettings(proc_root=root)


def test_a_gpu_plugged_in_is_adopted_and_takes_nobodys_place(tmp_path: Path) -> None:
    fake = FakeNvml(
        [
            "gpu 0 NVIDIA_H100 GPU-new",
            "seg 0 0 50000",
            "present 0 30 9999",
            "gpu 1 NVIDIA_H200 GPU-old",
            "seg 1 0 100000",
        ]
    )
    with fake.sensor(PAIR, plug(tmp_path, "0000:02:00.0")) as sensor:
        (old,) = sensor.open()
        assert (old.device, old.model) == ("gpu0", "NVIDIA H200")
        sensor.sample()
        plug(tmp_path, "0000:01:00.0")
        told = [counters(at(fake, sensor, t)) for t in range(30, 60)]
        assert told[-1] == {"gpu0": 5_900_000_000}
        with pytest.raises(DevicesChanged, match="gpu1 was plugged in"):
            at(fake, sensor, 60)
        # NVML lists the new one first; the old one keeps its id, and so its counter's past.
        assert [(d.device, d.model) for d in sensor.open()] == [
            ("gpu1", "NVIDIA H100"),
            ("gpu0", "NVIDIA H200"),
        ]
        assert counters(at(fake, sensor, 61)) == {"gpu0": 6_100_000_000, "gpu1": 3_050_000_000}
        fake.set_time(62)
        sensor.sample()
        fake.set_time(63)
        assert {r.device for r in sensor.sample() if isinstance(r, UseRecord)} == {"gpu0", "gpu1"}
        sensor.close()


def test_a_gpu_pulled_out_is_a_fault_and_comes_back_as_itself(tmp_path: Path) -> None:
    fake = FakeNvml(
        [H200, "seg 0 0 100000", "gpu 1 NVIDIA_H200 GPU-b", "seg 1 0 1000", "lost 1 100 250"]
    )
    with fake.sensor(PAIR, plug(tmp_path, "0000:01:00.0", "0000:02:00.0")) as sensor:
        assert [d.device for d in sensor.open()] == ["gpu0", "gpu1"]
        assert counters(at(fake, sensor, 99)) == {"gpu0": 9_900_000_000, "gpu1": 99_000_000}
        (tmp_path / "driver/nvidia/gpus/0000:02:00.0").rmdir()
        assert faults(at(fake, sensor, 100)).keys() == {"gpu1"}
        for t in range(101, 250):
            assert counters(at(fake, sensor, t)) == {"gpu0": t * 100_000_000}
        plug(tmp_path, "0000:02:00.0")
        told = [counters(at(fake, sensor, t)) for t in range(250, 400)]
    assert all("gpu0" in energy_uj for energy_uj in told)
    assert told[-1] == {"gpu0": 39_900_000_000, "gpu1": 399_000_000}


def test_a_new_gpu_that_tells_nothing_changes_nothing(tmp_path: Path) -> None:
    fake = FakeNvml(
        [H200, "seg 0 0 1000", "gpu 1 Orin GPU-b noenergy nopower", "present 1 30 9999"]
    )
    with fake.sensor(SENSOR, plug(tmp_path, "0000:01:00.0")) as sensor:
        sensor.open()
        plug(tmp_path, "0000:02:00.0")
        with pytest.raises(DevicesChanged):
            at(fake, sensor, 61)
        assert [d.device for d in sensor.open()] == ["gpu0"]
        assert [counters(at(fake, sensor, t)) for t in (122, 183, 244)] == [
            {"gpu0": 122_000_000},
            {"gpu0": 183_000_000},
            {"gpu0": 244_000_000},
        ]


def test_nobody_enumerates_anew_while_another_thread_reads() -> None:
    driver, held, done = NvmlDriver(), Event(), Event()

    def read() -> None:
        with driver.steady:
            held.set()
            done.wait()

    reader = Thread(target=read)
    reader.start()
    held.wait()
    generation = driver.generation
    assert not driver.enumerate_anew()
    assert driver.generation == generation
    done.set()
    reader.join()


def test_a_call_that_hangs_is_a_fault_of_the_counter_after_a_reload_and_no_end_of_it() -> None:
    fake = FakeNvml([H200, "gpu 1 NVIDIA_H200 GPU-b", "seg 0 0 100000", "reload 2"])
    with fake.sensor(HUNG, SensorSettings()) as sensor:
        sensor.open()
        assert counters(at(fake, sensor, 1.0))["gpu0"] == 100_000_000
        sensor.sample()
        assert counters(at(fake, sensor, 1.5))["gpu0"] == 150_000_000
        assert faults(at(fake, sensor, 2.0)).keys() == {"gpu0", "gpu1"}
        busy = at(fake, sensor, 10.0)
        assert faults(busy) == {"gpu0": "NVML is busy", "gpu1": "NVML is busy"}
        # Tried again later and later, as any other failure.
        assert at(fake, sensor, 10.05) == []
        sensor.sample()
        assert counters(at(fake, sensor, 20.0))["gpu0"] == 2_000_000_000


def test_what_cannot_be_released_now_is_released_later() -> None:
    fake = FakeNvml([H200, "seg 0 0 100000"])
    with fake.sensor(HUNG, SensorSettings()) as sensor:
        sensor.open()
        sensor.sample()
        for call in (sensor.close, sensor.open):
            with pytest.raises(NvmlError, match="NVML is busy"):
                call()
        sensor.sample()
        assert [device.device for device in sensor.open()] == ["gpu0"]
        assert counters(at(fake, sensor, 1.0)) == {"gpu0": 100_000_000}
        sensor.close()


def test_what_one_sensor_initialized_again_the_other_finds_again() -> None:
    fake = FakeNvml([H200, "seg 0 0 100000", "reload 2", "compute 0 41 1024 0 9 50"])
    with fake.sensor(PAIR, SensorSettings()) as sensor:
        sensor.open()
        assert counters(at(fake, sensor, 1.0)) == {"gpu0": 100_000_000}
        sensor.sample()
        fake.set_time(2.0)
        with pytest.raises(NvmlError, match="Uninitialized"):
            sensor.sample()
        assert faults(at(fake, sensor, 2.1)).keys() == {"gpu0"}
        fake.set_time(3.0)
        assert sensor.sample() == []
        assert counters(at(fake, sensor, 3.1)) == {"gpu0": 310_000_000}
        fake.set_time(4.0)
        assert [r.device for r in sensor.sample() if isinstance(r, UseRecord)] == ["gpu0"]
        sensor.close()
