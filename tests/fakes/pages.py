"""Pages made in memory: balanced unless told otherwise, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from wattledger.records import (
    NS_PER_S,
    Account,
    Activity,
    Amounts,
    Clock,
    Device,
    DeviceKind,
    FinishedRequest,
    Metered,
    Page,
    Posting,
    Quality,
    StaticBasis,
)

T0_NS = 1_789_999_200 * NS_PER_S  # an hour's edge
CLOCK = Clock("h1", "boot-1", 1_789_000_000 * NS_PER_S)
GPU0 = Device("gpu0", DeviceKind.GPU, "NVIDIA H200", 70.0, StaticBasis.CONFIG)
CPU0 = Device("cpu0", DeviceKind.CPU, None)
NODE0 = Device("node0", DeviceKind.NODE, None)


def account(
    activity: Activity = Activity.PROCESS,
    *,
    job: str | None = None,
    workload: str | None = None,
    engine: str | None = None,
    model: str | None = None,
    quality: Quality = Quality.MEASURED,
    method: str = "direct",
) -> Account:
    return Account(activity, quality, method, StaticBasis.CONFIG, workload, job, engine, model)


def posting(
    start_ns: int,
    end_ns: int,
    amounts: Amounts,
    *,
    device: str = "gpu0",
    to: Account | None = None,
    request: str | None = None,
) -> Posting:
    return Posting(device, to or account(), start_ns, end_ns, amounts, request)


def balanced_page(
    start_ns: int,
    end_ns: int,
    postings: Iterable[Posting],
    *,
    clock: Clock = CLOCK,
    devices: Sequence[Device] = (GPU0,),
    request_postings: Iterable[Posting] = (),
    finished: Iterable[FinishedRequest] = (),
    late: int = 0,
    duplicates: int = 0,
    dropped: int = 0,
) -> Page:
    """A page whose meters saw, over the whole window, exactly what is posted."""
    booked = tuple(postings)
    metered = tuple(
        Metered(
            device.device,
            start_ns,
            end_ns,
            sum(item.amounts.energy_uj for item in booked if item.device == device.device),
            sum(item.amounts.device_ns for item in booked if item.device == device.device),
        )
        for device in devices
    )
    return Page(
        clock,
        start_ns,
        end_ns,
        tuple(devices),
        metered,
        booked,
        tuple(request_postings),
        tuple(finished),
        late,
        duplicates,
        dropped,
    )


def steady_page(
    start_ns: int,
    *,
    seed: int = 0,
    window_ns: int = 5 * NS_PER_S,
    clock: Clock = CLOCK,
    devices: Sequence[Device] = (GPU0, CPU0),
    jobs: int = 3,
) -> Page:
    """A page with one posting per device and job, of amounts that look random."""
    dice = random.Random(f"{seed} {start_ns} {clock}")
    end_ns = start_ns + window_ns
    postings = [
        posting(
            start_ns,
            end_ns,
            Amounts(
                dice.randrange(10**8),
                dice.randrange(10**8),
                window_ns // jobs,
                dice.randrange(1000),
                dice.randrange(100),
                dice.randrange(1000),
            ),
            device=device.device,
            to=account(job=f"job-{job}", engine="vllm-a", model="llama-3-8b"),
        )
        for device in devices
        for job in range(jobs)
    ]
    return balanced_page(start_ns, end_ns, postings, clock=clock, devices=devices)
