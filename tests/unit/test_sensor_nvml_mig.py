"""Boards that are shared out: MIG instances, MPS, and what it costs to look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.nvml import FakeNvml
from wattledger.records import ProcessUse, UseRecord
from wattledger_collectors.sensors.nvml_driver import Handle, NvmlDriver, RawCall
from wattledger_collectors.sensors.nvml_mig import shared
from wattledger_collectors.sensors.nvml_processes import Owner, ProcessLists
from wattledger_collectors.sensors.protocol import SensorSettings

SENSOR = "wattledger_collectors.sensors.nvml_use:NvmlUseSensor"
GIB = 1 << 30
MIG = "gpu 0 NVIDIA_H100 GPU-a mig"
HALVES = ("instance 0 1 66 4", "instance 0 2 33 3")


def samples(
    *script: str, times_s: tuple[float, ...] = (1.0, 2.0), proc_root: Path = Path("/proc")
) -> list[UseRecord]:
    """What the samples at these times say."""
    fake = FakeNvml(script)
    with fake.sensor(SENSOR, SensorSettings(proc_root=proc_root)) as sensor:
        told = []
        for t_s in times_s:
            fake.set_time(t_s)
            told += [record for record in sensor.sample() if isinstance(record, UseRecord)]
        sensor.close()
        return told


def percent(record: UseRecord) -> dict[int, float | None]:
    return {use.pid: use.sm_percent for use in record.processes}


def test_an_instance_weighs_its_activity_times_its_part_of_the_board() -> None:
    (record,) = samples(
        f"{MIG} gpm",
        *HALVES,
        "activity 0 1 0 80",
        "activity 0 2 0 20",
        f"compute 0 41 {10 * GIB} 0 9 0 1",
        f"compute 0 42 {30 * GIB} 0 9 0 1",
        f"compute 0 43 {GIB} 0 9 0 2",
    )
    # 80 % of 66 of 132 SMs, by memory; 20 % of 33 of 132.
    assert record.processes == (
        ProcessUse(41, 10.0, 10 * GIB),
        ProcessUse(42, 30.0, 30 * GIB),
        ProcessUse(43, 5.0, GIB),
    )
    assert record.basis == "mig-activity"


def test_activity_is_that_of_the_interval() -> None:
    script = [f"{MIG} gpm", *HALVES, "activity 0 1 0 0", "activity 0 1 2.5 100"]
    script += [f"compute 0 41 {GIB} 0 9 0 1"]
    told = samples(*script, times_s=(1.0, 2.0, 3.0, 4.0))
    assert [percent(record) for record in told] == [{41: 0.0}, {41: 25.0}, {41: 50.0}]


def test_without_gpm_the_slices_weigh() -> None:
    (record,) = samples(MIG, *HALVES, f"compute 0 41 {GIB} 0 9 0 1", f"compute 0 42 {GIB} 0 9 0 2")
    assert percent(record) == {41: pytest.approx(400 / 7), 42: pytest.approx(300 / 7)}
    assert record.basis == "mig-slice"


def test_samples_too_close_for_gpm_go_by_slices() -> None:
    told = samples(
        f"{MIG} gpm",
        *HALVES,
        "activity 0 1 0 50",
        f"compute 0 41 {GIB} 0 9 0 1",
        times_s=(1.0, 2.0, 2.05, 3.0),
    )
    assert [record.basis for record in told] == ["mig-activity", "mig-slice", "mig-activity"]
    assert percent(told[2]) == {41: 25.0}


def test_an_instance_that_nobody_knows_leaves_it_to_memory() -> None:
    (record,) = samples(MIG, *HALVES, f"compute 0 41 {GIB} 0 9 0 1", f"compute 0 42 {GIB} 0 9 0 5")
    assert record.processes == (ProcessUse(41, None, GIB), ProcessUse(42, None, GIB))
    assert record.basis == ""


def test_a_process_on_two_instances_has_both_parts_and_both_memories() -> None:
    (record,) = samples(
        MIG,
        *HALVES,
        f"compute 0 41 {GIB} 0 9 0 1",
        f"compute 0 41 {2 * GIB} 0 9 0 2",
        f"graphics 0 41 {GIB} 0 9 0 2",
    )
    (use,) = record.processes
    assert use.sm_percent == pytest.approx(100.0)
    assert use.memory_bytes == 3 * GIB


def test_an_instance_made_later_is_found() -> None:
    script = [f"{MIG} gpm", *HALVES, "activity 0 1 0 50", "activity 0 2 0 100"]
    script += [f"compute 0 41 {GIB} 0 9 0 1", f"compute 0 42 {GIB} 2.5 9 0 2"]
    told = samples(*script, times_s=(1.0, 2.0, 3.0))
    assert [record.basis for record in told] == ["mig-activity", "mig-activity"]
    assert percent(told[1]) == {41: 25.0, 42: 25.0}


@given(
    st.lists(
        st.builds(
            Owner,
            st.integers(1, 9),
            st.integers(0, 6),
            st.none() | st.integers(0, 80 * GIB),
        ),
        max_size=20,
        unique_by=lambda owner: owner[:2],
    ),
    st.lists(st.floats(0, 100), min_size=7, max_size=7),
)
def test_processes_of_an_instance_share_its_weight_and_no_more(
    owners: list[Owner], percents: list[float]
) -> None:
    weights = dict(enumerate(percents))
    in_use = {owner.instance for owner in owners}
    told = shared(owners, weights)
    assert told.keys() == {owner.pid for owner in owners}
    assert min(told.values(), default=0.0) >= 0.0
    expected = sum(weight for instance, weight in weights.items() if instance in in_use)
    assert sum(told.values()) == pytest.approx(expected)


# ---------------------------------------------------------------------------------------- MPS


def proc(root: Path, comms: dict[int, str]) -> Path:
    for pid, comm in comms.items():
        (root / str(pid)).mkdir()
        (root / str(pid) / "comm").write_text(f"{comm}\n")
    return root


def test_an_mps_server_alone_is_flagged(tmp_path: Path) -> None:
    root = proc(tmp_path, {41: "nvidia-cuda-mps"})
    (record,) = samples("gpu 0 A100 GPU-a", f"compute 0 41 {GIB} 0 9 50", proc_root=root)
    assert (record.basis, percent(record)) == ("mps", {41: 50.0})


def test_an_mps_server_beside_its_clients_is_not(tmp_path: Path) -> None:
    root = proc(tmp_path, {41: "nvidia-cuda-mps", 42: "python"})
    script = ["gpu 0 A100 GPU-a", f"compute 0 41 {GIB} 0 9 0", f"compute 0 42 {GIB} 0 9 50"]
    (record,) = samples(*script, proc_root=root)
    assert record.basis == ""


def test_a_process_that_is_not_in_our_proc_is_told_as_it_is(tmp_path: Path) -> None:
    (record,) = samples("gpu 0 A100 GPU-a", f"compute 0 41 {GIB} 0 9 50", proc_root=tmp_path)
    assert record.processes == (ProcessUse(41, 50.0, GIB),)
    assert record.basis == ""


# --------------------------------------------------------------------------------------- cost


def test_graphics_are_looked_up_at_every_fifth_sample_while_there_are_none() -> None:
    times_s = tuple(map(float, range(1, 16)))
    script = ["gpu 0 RTX_4090 GPU-a", f"graphics 0 41 {GIB} 1.5 13.5 0"]
    told = samples(*script, times_s=times_s)
    seen = [round(record.end_ns / 1e9) for record in told if record.processes]
    assert seen == [6, 7, 8, 9, 10, 11, 12, 13]


class CountingDriver(NvmlDriver):
    """Lists one process, and counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def raw(self, name: str) -> RawCall | None:
        def call(pointer: object, count: Any, array: Any) -> int:
            self.asked += 1
            room, count._obj.value = count._obj.value, 1
            if not room:
                return int(self.nvml.NVML_ERROR_INSUFFICIENT_SIZE)
            array[0].pid, array[0].usedGpuMemory, array[0].gpuInstanceId = 41, GIB, 2**32 - 1
            return 0

        return call


def test_once_there_is_room_a_list_is_one_call_into_the_driver() -> None:
    driver = CountingDriver()
    lists = ProcessLists(driver)
    for asked in (2, 3, 4):
        assert lists.compute(Handle(None)) == [Owner(41, None, GIB)]
        assert driver.asked == asked
