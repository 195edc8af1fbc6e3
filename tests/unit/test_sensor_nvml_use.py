from __future__ import annotations

import pytest

from fakes.nvml import FakeNvml, RemoteSensor
from wattledger.records import Process, ProcessUse, UseRecord
from wattledger_collectors.sensors.nvml_driver import NvmlError
from wattledger_collectors.sensors.protocol import Absent, SensorSettings

SENSOR = "wattledger_collectors.sensors.nvml_use:NvmlUseSensor"
GIB = 1 << 30
SECOND = 1_000_000_000
H200 = "gpu 0 NVIDIA_H200 GPU-a"


def at(fake: FakeNvml, sensor: RemoteSensor, t_s: float) -> list[UseRecord | Process]:
    fake.set_time(t_s)
    return sensor.sample()


def second_sample(
    *script: str, defines: tuple[str, ...] = (), until_s: float = 2.0
) -> list[UseRecord | Process]:
    """What the sample at `until_s` says after one at 1 s."""
    fake = FakeNvml(script, defines=defines)
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        assert at(fake, sensor, 1.0) == []
        return at(fake, sensor, until_s)


def test_owners_are_told_with_memory_and_mean_utilization() -> None:
    assert second_sample(
        H200,
        f"compute 0 41 {10 * GIB} 0 10 60",
        f"compute 0 42 {30 * GIB} 0 10 20",
    ) == [
        UseRecord(
            "gpu0",
            SECOND,
            2 * SECOND,
            (ProcessUse(41, 60.0, 10 * GIB), ProcessUse(42, 20.0, 30 * GIB)),
        )
    ]


def test_a_process_busy_for_part_of_the_interval_gets_its_part() -> None:
    (record,) = second_sample(H200, f"compute 0 41 {GIB} 0 10 50", f"compute 0 42 {GIB} 1.7 10 50")
    assert isinstance(record, UseRecord)
    assert [use.sm_percent for use in record.processes] == [50.0, 20.0]


def test_only_samples_of_the_interval_count() -> None:
    script = [H200, f"compute 0 41 {GIB} 0 1 100", f"compute 0 42 {GIB} 1 3 30"]
    (record,) = second_sample(*script)
    assert isinstance(record, UseRecord)
    assert record.processes == (ProcessUse(42, 30.0, GIB),)


def test_a_process_that_ended_in_the_interval_keeps_its_utilization() -> None:
    (record,) = second_sample(H200, f"compute 0 41 {GIB} 0 1.5 90", f"compute 0 42 {GIB} 0 9 90")
    assert isinstance(record, UseRecord)
    assert record.processes == (ProcessUse(41, 36.0, 0), ProcessUse(42, 90.0, GIB))


def test_nobody_busy_leaves_it_to_memory() -> None:
    (record,) = second_sample(H200, f"compute 0 41 {GIB} 0 9 0", f"compute 0 42 {GIB} 0 9 0")
    assert isinstance(record, UseRecord)
    assert record.processes == (ProcessUse(41, None, GIB), ProcessUse(42, None, GIB))


def test_mig_tells_no_utilization() -> None:
    (record,) = second_sample(f"{H200} mig", f"compute 0 41 {GIB} 0 9 80")
    assert isinstance(record, UseRecord)
    assert record.processes == (ProcessUse(41, None, GIB),)


def test_nobody_there_is_a_record_too() -> None:
    assert second_sample(H200) == [UseRecord("gpu0", SECOND, 2 * SECOND, ())]


def test_memory_is_held_once_on_both_lists_and_once_per_instance() -> None:
    (record,) = second_sample(
        H200,
        f"compute 0 41 {GIB} 0 9 0",
        f"graphics 0 41 {GIB // 2} 0 9 0",
        f"compute 0 42 {GIB} 0 9 0",
        f"compute 0 42 {GIB} 0 9 0",
        f"graphics 0 43 {GIB} 0 9 0",
        f"compute 0 44 {GIB} 0 9 0",
        f"graphics 0 44 {3 * GIB} 0 9 0",
    )
    assert isinstance(record, UseRecord)
    assert record.processes == (
        ProcessUse(41, None, GIB),
        ProcessUse(42, None, 2 * GIB),
        ProcessUse(43, None, GIB),
        ProcessUse(44, None, 3 * GIB),
    )


def test_a_missing_graphics_symbol_leaves_the_compute_list() -> None:
    (record,) = second_sample(
        H200,
        f"compute 0 41 {GIB} 0 9 80",
        f"graphics 0 43 {GIB} 0 9 0",
        defines=("NO_GRAPHICS_LIST",),
    )
    assert isinstance(record, UseRecord)
    assert record.processes == (ProcessUse(41, 80.0, GIB),)


def test_a_missing_compute_symbol_is_an_error_of_ours() -> None:
    fake = FakeNvml([H200], defines=("NO_COMPUTE_LIST",))
    with (
        fake.sensor(SENSOR, SensorSettings()) as sensor,
        pytest.raises(NvmlError, match="ComputeRunningProcesses"),
    ):
        sensor.sample()


def test_sixty_four_owners() -> None:
    owners = [f"compute 0 {pid} {GIB} 0 9 1" for pid in range(100, 164)]
    (record,) = second_sample(H200, *owners)
    assert isinstance(record, UseRecord)
    assert [use.pid for use in record.processes] == list(range(100, 164))


def test_a_lost_gpu_has_no_record_and_hurts_no_other() -> None:
    fake = FakeNvml([H200, "lost 0 1.5 2.5", "gpu 1 NVIDIA_H200 GPU-b"])
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        at(fake, sensor, 1.0)
        records = [at(fake, sensor, t) for t in (2.0, 3.0, 4.0)]
    intervals = [
        [
            (record.device, record.start_ns // SECOND, record.end_ns // SECOND)
            for record in sample
            if isinstance(record, UseRecord)
        ]
        for sample in records
    ]
    assert intervals == [[("gpu1", 1, 2)], [("gpu1", 2, 3)], [("gpu0", 3, 4), ("gpu1", 3, 4)]]


def test_all_gpus_lost_is_an_error() -> None:
    fake = FakeNvml([H200, "lost 0 2 9"])
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        at(fake, sensor, 1.0)
        for t_s in (2.0, 3.0, 3.1):
            with pytest.raises(NvmlError, match="GPU is lost"):
                at(fake, sensor, t_s)


def test_a_driver_reload_is_survived() -> None:
    fake = FakeNvml([H200, "reload 1.5", f"compute 0 41 {GIB} 0 9 50"])
    with fake.sensor(SENSOR, SensorSettings()) as sensor:
        at(fake, sensor, 1.0)
        with pytest.raises(NvmlError, match="Uninitialized"):
            at(fake, sensor, 2.0)
        assert at(fake, sensor, 3.0) == []
        assert at(fake, sensor, 4.0) == [
            UseRecord("gpu0", 3 * SECOND, 4 * SECOND, (ProcessUse(41, 50.0, GIB),))
        ]
        sensor.close()


def test_no_gpu_is_absent() -> None:
    fake = FakeNvml([])
    with fake.sensor(SENSOR, SensorSettings()) as sensor, pytest.raises(Absent, match="no GPU"):
        sensor.sample()
