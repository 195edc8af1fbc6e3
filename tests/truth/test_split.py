"""Two jobs on one GPU, through the driver library: vector V12, each second of a minute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from fakes.nvml import FakeNvml
from fakes.waveform_rig import EPOCH_NS
from wattledger.records import (
    NS_PER_S,
    Clock,
    Evidence,
    Page,
    Process,
    StaticBasis,
)
from wattledger_collectors.sensors.protocol import ReadFault, SensorSettings
from wattledger_daemon.heart.accountant import Accountant, AccountantSettings

GIB = 1 << 30
SETTINGS = SensorSettings(static_w={"gpu0": 70.0})
SCRIPT = [
    "gpu 0 NVIDIA_H200 GPU-0",
    "seg 0 0 300000",
    f"compute 0 41 {10 * GIB} 0 1000 60",
    f"compute 0 42 {30 * GIB} 0 1000 20",
]
OWNERS = (Process(41, 1, "a.service", "A"), Process(42, 1, "b.service", "B"))
LENGTH_S = 60


@pytest.fixture(scope="module")
def pages() -> list[Page]:
    accountant = Accountant(Clock("h1", "boot", EPOCH_NS), AccountantSettings(horizon_ns=None))
    for evidence in _evidence():
        accountant.observe(evidence)
    return accountant.flush(LENGTH_S * NS_PER_S)


def _evidence() -> Iterator[Evidence]:
    fake = FakeNvml(SCRIPT)
    sensors = "wattledger_collectors.sensors"
    with (
        fake.sensor(f"{sensors}.nvml:NvmlSensor", SETTINGS) as energy,
        fake.sensor(f"{sensors}.nvml_use:NvmlUseSensor", SETTINGS) as use,
    ):
        yield from OWNERS
        yield from energy.open()
        for tick in range(LENGTH_S * 10 + 1):
            fake.set_time(tick / 10)
            for reading in energy.read():
                assert not isinstance(reading, ReadFault)
                yield reading
            if tick % 10 == 0:
                yield from (record for record in use.sample() if not isinstance(record, Process))


def test_dynamic_goes_by_use_and_static_by_memory(pages: list[Page]) -> None:
    static_uj: Counter[str | None] = Counter()
    dynamic_uj: Counter[str | None] = Counter()
    # The first window holds the first sample, which only sets the mark, and the last a tail.
    for page in pages[1:-1]:
        for posting in page.postings:
            static_uj[posting.account.job] += posting.amounts.static_uj
            dynamic_uj[posting.account.job] += posting.amounts.dynamic_uj
            assert posting.account.static_basis is StaticBasis.CONFIG
    seconds = sum(page.end_ns - page.start_ns for page in pages[1:-1]) / NS_PER_S
    assert seconds > LENGTH_S - 15
    watts = {job: round(uj / 1e6 / seconds, 3) for job, uj in (static_uj + dynamic_uj).items()}
    assert watts == {"A": 190.0, "B": 110.0}
    assert dynamic_uj["A"] / seconds == pytest.approx(172.5e6, rel=1e-6)
    assert dynamic_uj["B"] / seconds == pytest.approx(57.5e6, rel=1e-6)
    assert static_uj["A"] / seconds == pytest.approx(17.5e6, rel=1e-6)
    assert static_uj["B"] / seconds == pytest.approx(52.5e6, rel=1e-6)


def test_the_two_jobs_sum_to_the_meter(pages: list[Page]) -> None:
    posted = sum(posting.amounts.energy_uj for page in pages for posting in page.postings)
    metered = sum(metered.energy_uj for page in pages for metered in page.metered)
    assert posted == metered
    assert metered == 300_000_000 * LENGTH_S
