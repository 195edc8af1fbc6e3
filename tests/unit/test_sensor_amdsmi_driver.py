from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fakes import amdsmi as fake
from fakes.amdsmi import FakeAmdSmi, FakeGpu
from wattledger_collectors.sensors.amdsmi_driver import AmdDriver, AmdError, NotSupported

BDF = "0000:05:00.0"


def driver(gpu: FakeGpu) -> AmdDriver:
    opened = AmdDriver(lambda: FakeAmdSmi([gpu]))
    opened.open()
    return opened


@pytest.mark.parametrize("key", ["energy_accumulator", "power"])
def test_energy_is_the_count_times_what_the_resolution_meant(key: str) -> None:
    gpu = FakeGpu(BDF, energy_key=key, base_uj=15.3e15 + 20)
    amd = driver(gpu)
    count = int((15.3e15 + 20) / fake.RESOLUTION_UJ)
    assert amd.energy_uj(amd.gpus()[0]) == count * 153 // 10


@pytest.mark.parametrize("resolution_uj", [0.0, -1.0, float("nan"), float("inf")])
def test_a_resolution_that_is_none_is_no_counter(resolution_uj: float) -> None:
    amd = driver(FakeGpu(BDF, resolution_uj=resolution_uj))
    with pytest.raises(NotSupported):
        amd.energy_uj(amd.gpus()[0])


@pytest.mark.parametrize("key", ["current_socket_power", "socket_power", "average_socket_power"])
def test_power_is_the_figure_that_is_told(key: str) -> None:
    amd = driver(FakeGpu(BDF, power_key=key, power_w=412.5))
    assert amd.power_uw(amd.gpus()[0]) == 412_500_000


@pytest.mark.parametrize("power_w", [0.0, -3.0, 65535.0, float("nan")])
def test_power_that_cannot_be_is_not_told(power_w: float) -> None:
    amd = driver(FakeGpu(BDF, power_w=power_w))
    with pytest.raises(NotSupported):
        amd.power_uw(amd.gpus()[0])


def test_a_call_that_the_bindings_lack_is_an_error_of_ours() -> None:
    smi = FakeAmdSmi([FakeGpu(BDF)])
    opened = AmdDriver(lambda: smi)
    opened.close()
    opened.open()
    (gpu,) = opened.gpus()
    for garbage in (KeyError("socket_power"), TypeError("no")):
        smi.garbage = garbage
        with pytest.raises(AmdError, match=r"amdsmi_get_energy_count: .*Error"):
            opened.energy_uj(gpu)


def test_an_address_that_is_none_is_an_error_of_ours() -> None:
    with pytest.raises(AmdError):
        driver(FakeGpu("N/A")).gpus()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("print('where is ROCm?')\nraise KeyError('libamd_smi.so')\n", "does not load"),
        ("print('hello')\nraise OSError('cannot open')\n", "does not load"),
        (None, "not installed"),
    ],
)
def test_an_import_that_fails_is_absent_and_says_nothing_on_stdout(
    tmp_path: Path, source: str | None, reason: str
) -> None:
    if source is not None:
        (tmp_path / "amdsmi.py").write_text(source)
    program = (
        "from wattledger_collectors.sensors.amdsmi_driver import AmdDriver\n"
        "from wattledger_collectors.sensors.protocol import Absent\n"
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "try:\n    AmdDriver()\nexcept Absent as absent:\n    sys.stderr.write(absent.reason)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert reason in done.stderr
