from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.drm import FakeHolders
from fakes.hwmon import FakeSys
from wattledger.records import Device, DeviceKind, Process, ProcessUse, UseRecord
from wattledger_collectors.sensors.drm_use import DrmUseSensor
from wattledger_collectors.sensors.protocol import Absent, Denied, SensorSettings

S = 1_000_000_000
MIB = 1 << 20
AMD, ARC = "0000:05:00.0", "0000:9a:00.0"


def amdgpu(client: int, gfx_ns: int, vram_mib: int, pci: str = AMD) -> tuple[str, ...]:
    """What amdgpu's fdinfo says, both names of each figure among it."""
    return (
        "drm-driver:\tamdgpu",
        f"drm-client-id:\t{client}",
        f"drm-pdev:\t{pci}",
        f"drm-total-vram:\t{vram_mib + 5} MiB",
        f"drm-resident-vram:\t{vram_mib} MiB",
        f"drm-memory-vram:\t{vram_mib * 1024} KiB",
        "drm-resident-gtt:\t900 MiB",
        f"drm-engine-gfx:\t{gfx_ns} ns",
        "drm-engine-compute:\t0 ns",
        "drm-engine-dec:\t0 ns",
    )


def xe(client: int, ccs: int, clock: int, vram: str) -> tuple[str, ...]:
    """What xe's fdinfo says: cycles, and what its clock has counted."""
    return (
        "drm-driver:\txe",
        f"drm-client-id:\t{client}",
        f"drm-pdev:\t{ARC}",
        "drm-resident-gtt:\t192 KiB",
        f"drm-resident-vram0:\t{vram}",
        "drm-cycles-rcs:\t0",
        f"drm-total-cycles-rcs:\t{clock}",
        f"drm-cycles-ccs:\t{ccs}",
        f"drm-total-cycles-ccs:\t{clock}",
        "drm-engine-capacity-ccs:\t4",
    )


class Host:
    """An AMD and an Intel GPU, both metered, and processes that hold them."""

    def __init__(self, tmp_path: Path) -> None:
        self.sys = FakeSys(tmp_path / "sys")
        self.sys.card(0, AMD, "amdgpu")
        self.sys.card(1, ARC, "xe")
        self.proc = FakeHolders(tmp_path / "proc")
        self.t_ns = 0
        settings = SensorSettings(sysfs_root=self.sys.root, proc_root=self.proc.root)
        self.sensor = DrmUseSensor(settings, lambda: self.t_ns, self.proc.look)
        self.meter("amd0", "intel0")

    def meter(self, *devices: str, model: str | None = None) -> None:
        self.sensor.set_devices([Device(name, DeviceKind.GPU, model) for name in devices])

    def at(self, t_s: float) -> list[UseRecord | Process]:
        self.t_ns = round(t_s * S)
        return self.sensor.sample()

    def uses(self, t_s: float, device: str = "amd0") -> tuple[ProcessUse, ...] | None:
        records = [r for r in self.at(t_s) if isinstance(r, UseRecord) and r.device == device]
        return records[0].processes if records else None


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    yield Host(tmp_path)


def test_holders_are_told_with_memory_and_the_share_of_their_busiest_engine(host: Host) -> None:
    host.proc.client(41, 7, *amdgpu(1, 0, 100))
    host.proc.client(42, 9, *xe(1, 0, 0, "2048 KiB"))
    host.proc.process(43, fd1="/dev/null", fd2="socket:[123]")
    assert host.at(10) == []
    host.proc.client(41, 7, *amdgpu(1, 250_000_000, 110))
    host.proc.client(42, 9, *xe(1, 3_000, 1_000, "1 MiB"))
    assert host.at(11) == [
        UseRecord("amd0", 10 * S, 11 * S, (ProcessUse(41, 25.0, 110 * MIB),)),
        UseRecord("intel0", 10 * S, 11 * S, (ProcessUse(42, 75.0, MIB),)),
    ]


def test_nobody_there_is_a_record_too(host: Host) -> None:
    host.proc.process(43, fd1="/dev/null")
    host.at(10)
    assert host.at(11) == [UseRecord(device, 10 * S, 11 * S, ()) for device in ("amd0", "intel0")]


def test_a_client_counts_once_however_many_hold_it(host: Host) -> None:
    for pid, descriptor in ((50, 3), (41, 7), (41, 8), (60, 3)):
        host.proc.client(pid, descriptor, *amdgpu(1, 0, 100))
    host.proc.client(41, 9, *amdgpu(2, 0, 10))
    host.at(10)
    for pid, descriptor in ((50, 3), (41, 7), (41, 8), (60, 3)):
        host.proc.client(pid, descriptor, *amdgpu(1, S // 2, 100))
    host.proc.client(41, 9, *amdgpu(2, S // 10, 10))
    assert host.uses(11) == (ProcessUse(41, 60.0, 110 * MIB),)


def test_a_new_client_has_no_share_until_it_was_read_twice(host: Host) -> None:
    host.at(10)
    host.proc.client(41, 7, *amdgpu(1, 90 * S, 100))
    assert host.uses(15) == (ProcessUse(41, None, 100 * MIB),)
    host.proc.client(41, 7, *amdgpu(1, 91 * S, 100))
    assert host.uses(16) == (ProcessUse(41, 100.0, 100 * MIB),)


def test_a_count_that_falls_tells_nothing_until_it_has_caught_up(host: Host) -> None:
    host.proc.client(41, 7, *amdgpu(1, 10 * S, 1))
    host.at(10)
    told: list[float | None] = []
    for t_s, gfx_ns in ((11, 9 * S), (12, 10 * S), (13, 10 * S + S // 2)):
        host.proc.client(41, 7, *amdgpu(1, gfx_ns, 1))
        (use,) = host.uses(t_s) or ()
        told.append(use.sm_percent)
    assert told == [0.0, 0.0, 50.0]


def test_rocm_compute_is_not_in_fdinfo_so_memory_decides(host: Host) -> None:
    host.proc.client(41, 7, *amdgpu(1, 0, 900))
    host.proc.process(41, fd9="/dev/kfd")
    host.proc.client(42, 7, *amdgpu(2, 0, 100))
    host.at(10)
    host.proc.client(42, 7, *amdgpu(2, S // 100, 100))
    assert host.uses(11) == (
        ProcessUse(41, None, 900 * MIB),
        ProcessUse(42, None, 100 * MIB),
    )


def test_the_odd_die_of_an_mi250_is_its_board(host: Host) -> None:
    host.sys.card(2, "0000:06:00.0", "amdgpu")
    host.meter("amd0", model="AMD INSTINCT MI250 (MCM) OAM AC MBA")
    host.proc.client(41, 7, *amdgpu(1, 0, 10))
    host.proc.client(42, 7, *amdgpu(1, 0, 20, pci="0000:06:00.0"))
    host.at(10)
    assert [use.pid for use in host.uses(11) or ()] == [41, 42]
    host.sys.card(3, "0000:05:01.0", "xe")
    host.sensor.close()
    host.meter("intel1")
    host.meter("amd0", model="AMD INSTINCT MI250 (MCM) OAM AC MBA")
    host.at(11.5)
    assert [use.pid for use in host.uses(12) or ()] == [41]
    host.meter("amd0", model="AMD Instinct MI300X")
    assert [use.pid for use in host.uses(13) or ()] == [41]


def test_a_gpu_that_nobody_meters_is_not_told(host: Host) -> None:
    host.meter("intel0", "gpu0")
    host.proc.client(41, 7, *amdgpu(1, 0, 10))
    host.at(10)
    assert [r.device for r in host.at(11) if isinstance(r, UseRecord)] == ["intel0"]


def test_without_such_gpus_no_process_is_looked_at(host: Host) -> None:
    host.meter("gpu0", "cpu0")
    host.proc.client(41, 7, *amdgpu(1, 0, 10))
    assert [host.at(10), host.at(11), host.proc.looks] == [[], [], []]


@pytest.mark.parametrize(
    "lines",
    [
        ("garbage", ":::", "drm-client-id: x"),
        ("drm-client-id: 1", "drm-engine-gfx: 5 ns"),
        ("drm-pdev: 0000:05:00.0", "drm-client-id: -1"),
        ("drm-pdev: \udcff".encode(errors="surrogateescape").decode(errors="replace"),),
    ],
)
def test_what_is_no_client_is_left_out(host: Host, lines: tuple[str, ...]) -> None:
    host.proc.client(41, 7, *lines)
    host.at(10)
    assert host.uses(11) == ()


def test_odd_figures_of_a_client_are_left_out(host: Host) -> None:
    lines = (
        f"drm-pdev: {AMD}",
        "drm-client-id: 1",
        "drm-engine-gfx: 7 parsecs",
        "drm-engine-compute: 5",
        "drm-cycles-rcs: 10",
        "drm-total-cycles-ccs: 4096",
        "drm-engine-capacity-gfx: 0",
        "drm-resident-vram: 7 furlongs",
        "drm-resident-gtt: 3 KiB",
    )
    host.proc.client(41, 7, *lines)
    host.at(10)
    assert host.uses(11) == (ProcessUse(41, None, 3 * 1024),)


# ----------------------------------------------------------------------- finding them


def test_a_process_that_opens_a_gpu_late_is_found(host: Host) -> None:
    host.proc.process(41, fd1="/dev/null")
    for t_s in range(60):
        host.at(t_s)
    looks = len(host.proc.looks)
    assert 3 <= looks <= 5
    host.proc.client(41, 7, *amdgpu(1, 0, 10))
    assert any(host.uses(t_s) for t_s in range(60, 240))


def test_holders_are_looked_at_at_every_scan_and_forgotten_when_they_close(host: Host) -> None:
    host.proc.client(41, 7, *amdgpu(1, 0, 10))
    for t_s in range(0, 100, 5):
        assert t_s == 0 or host.uses(t_s)
        if t_s == 0:
            host.at(0)
    assert len(host.proc.looks) == 20
    (host.proc.root / "41" / "fd" / "7").unlink()
    assert host.uses(100) == ()


def test_a_process_that_ends_is_forgotten_and_its_pid_is_anothers(host: Host) -> None:
    host.proc.client(41, 7, *amdgpu(1, 0, 10))
    host.at(0)
    host.proc.end(41)
    assert host.uses(1) == ()
    host.proc.client(41, 3, *amdgpu(9, 5 * S, 20))
    assert host.uses(5) == (ProcessUse(41, None, 20 * MIB),)


def test_thousands_of_processes_are_looked_at_over_several_scans(host: Host) -> None:
    for pid in range(1, 2501):
        host.proc.process(pid)
    host.proc.client(2501, 7, *amdgpu(1, 0, 10))
    host.at(0)
    assert len(host.proc.looks) == 1000
    host.at(5)
    host.at(10)
    assert set(range(1, 2502)) == set(host.proc.looks)


def test_nobody_to_be_looked_into_is_denied_with_the_mend(host: Host) -> None:
    host.proc.client(41, 7, *amdgpu(1, 0, 10))
    host.proc.refused = {41}
    with pytest.raises(Denied) as denied:
        host.at(0)
    assert "CAP_SYS_PTRACE" in denied.value.mend


def test_a_thousand_refusals_are_not_yet_all(host: Host) -> None:
    for pid in range(1, 1201):
        host.proc.process(pid)
    host.proc.refused = set(range(1, 1201))
    host.at(0)
    with pytest.raises(Denied):
        host.at(5)


def test_hidden_processes_are_flagged_and_never_nobody(host: Host) -> None:
    host.proc.client(41, 7, *amdgpu(1, 0, 10))
    host.proc.process(1)
    host.proc.refused = {1}
    host.at(0)
    assert host.at(1) == [
        UseRecord("amd0", 0, S, (ProcessUse(41, 0.0, 10 * MIB),), basis="hidden-owners")
    ]


def test_no_proc_and_no_card_are_absent(tmp_path: Path) -> None:
    sensor = DrmUseSensor(SensorSettings(sysfs_root=tmp_path, proc_root=tmp_path / "none"))
    with pytest.raises(Absent, match="no AMD or Intel GPU"):
        sensor.sample()
    sensor.set_devices([Device("amd0", DeviceKind.GPU)])
    with pytest.raises(Absent, match="none"):
        sensor.sample()


def test_a_process_that_ends_under_the_look_is_no_holder(host: Host) -> None:
    host.proc.client(41, 7, *amdgpu(1, 0, 10))
    for child in (host.proc.root / "41" / "fd").iterdir():
        child.unlink()
    (host.proc.root / "41" / "fd").rmdir()
    host.at(0)
    assert host.uses(1) == ()


def test_a_closed_sensor_starts_anew(host: Host) -> None:
    host.proc.client(41, 7, *amdgpu(1, 0, 10))
    host.at(0)
    host.sensor.close()
    assert host.at(1) == []
    assert host.uses(2) == (ProcessUse(41, 0.0, 10 * MIB),)
