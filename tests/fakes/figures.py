"""Figures as an exporter gets them, of a host with a few GPUs and workloads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fakes.pages import GPU0, NODE0, T0_NS, account, balanced_page, posting
from wattledger.records import NS_PER_S, Activity, Amounts, Device, Page, Quality
from wattledger_daemon.export.figures import Figures, Identity
from wattledger_daemon.export.totals import Totals
from wattledger_daemon.health import DeviceHealth, Snapshot
from wattledger_daemon.sampling import SensorHealth, SensorState

IDENTITY = Identity("h1", "1.2.3", "run-1", 0)
WINDOW_NS = 5 * NS_PER_S


def gpus(count: int) -> tuple[Device, ...]:
    return tuple(replace(GPU0, device=f"gpu{number}") for number in range(count))


def busy_page(
    window: int = 0, *, devices: Sequence[Device] = (GPU0,), workloads: Sequence[str] = ("a", "b")
) -> Page:
    """Every workload decodes on every device; the first device carries the tokens."""
    start_ns = T0_NS + window * WINDOW_NS
    postings = [
        posting(
            start_ns,
            start_ns + WINDOW_NS,
            Amounts(
                static_uj=1_000_001 * (number + 1),
                dynamic_uj=250_000,
                prefill_tokens=0 if at else 100,
                decode_tokens=0 if at else 7,
                cached_tokens=0 if at else 3,
                requests=0 if at else 1,
            ),
            device=device.device,
            to=account(Activity.DECODE, workload=name, engine="vllm-a", model="llama-3-8b"),
        )
        for at, device in enumerate(devices)
        for number, name in enumerate(workloads)
    ]
    return balanced_page(start_ns, start_ns + WINDOW_NS, postings, devices=devices, late=2)


def a_snapshot(devices: Sequence[Device] = (GPU0,), power_w: float | None = 250.5) -> Snapshot:
    return Snapshot(
        90 * NS_PER_S,
        tuple(DeviceHealth(device, power_w, Quality.MEASURED, 0, 0) for device in devices),
        sensors=(SensorHealth("nvml", SensorState.RUNNING, "", 900, 2, 0.0004, 0.25, 1, 0, 0.1),),
        queue_depth=12,
        windows_booked=18,
    )


def figures(*pages: Page, snapshot: Snapshot | None = None) -> Figures:
    totals = Totals()
    for page in pages:
        totals.add(page)
    return Figures(IDENTITY, totals.standing(), snapshot or a_snapshot())


def node_page() -> Page:
    """The whole machine's meter beside a GPU's."""
    end_ns = T0_NS + WINDOW_NS
    postings = [
        posting(T0_NS, end_ns, Amounts(dynamic_uj=2_000_000)),
        posting(T0_NS, end_ns, Amounts(dynamic_uj=9_000_000), device="node0"),
    ]
    return balanced_page(T0_NS, end_ns, postings, devices=(GPU0, NODE0))
