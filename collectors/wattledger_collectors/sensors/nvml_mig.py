"""MIG: how much of a board each of its GPU instances used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from wattledger.records import NS_PER_S
from wattledger_collectors.sensors.nvml_driver import Handle, NvmlDriver, NvmlError
from wattledger_collectors.sensors.nvml_processes import Owner

BY_ACTIVITY = "mig-activity"
BY_SLICE = "mig-slice"
_LAYOUT_NS = 60 * NS_PER_S
_RETRY_NS = 10 * NS_PER_S
_SHORTEST_NS = NS_PER_S // 10
"""GPM wants its two samples at least so far apart."""


class Part(NamedTuple):
    """What a GPU instance is of its board: shares between 0 and 1."""

    sm_share: float
    slice_share: float


class MigBoard:
    """One board with MIG on. The board's energy is counted once; these are weights to split it.

    A weight is SM activity of the instance, in percent of the board's SMs, where GPM tells it
    for every instance in use (Hopper or newer); else the instance's slices, busy or not.
    Source: nvmlGpmMigSampleGet and NVML_GPM_METRIC_SM_UTIL, taken to be in percent of the
    instance's own SMs; nvmlDeviceGetAttributes of the MIG devices and
    nvmlDeviceGetGpuInstanceProfileInfo, of which the largest is the whole board.
    """

    def __init__(self, driver: NvmlDriver) -> None:
        self._driver = driver
        self._parts: dict[int, Part] = {}
        self._learned_ns: int | None = None
        self._activity: dict[int, _Activity] = {}

    def weights(
        self, gpu: Handle, in_use: Iterable[int], now_ns: int
    ) -> tuple[Mapping[int, float], str]:
        """Percent of the board by GPU instance in use, and the basis; empty where unknown."""
        wanted = set(in_use)
        self._learn(gpu, wanted, now_ns)
        if not wanted <= self._parts.keys():
            return {}, ""
        busy = {instance: self._busy(gpu, instance, now_ns) for instance in self._parts}
        active = {
            instance: percent * self._parts[instance].sm_share
            for instance, percent in busy.items()
            if percent is not None
        }
        if wanted <= active.keys():
            return {instance: active[instance] for instance in wanted}, BY_ACTIVITY
        return {
            instance: 100.0 * self._parts[instance].slice_share for instance in wanted
        }, BY_SLICE

    def restart(self) -> None:
        """Forget the last samples: what comes next is about another interval."""
        for activity in self._activity.values():
            activity.restart()

    def close(self) -> None:
        """Free what GPM holds; the next call starts anew."""
        for activity in self._activity.values():
            activity.free()
        self._activity = {}
        self._parts = {}
        self._learned_ns = None

    def _learn(self, gpu: Handle, wanted: set[int], now_ns: int) -> None:
        """Which instances there are: asked once a minute, and where an unknown one is in use.

        A call for a MIG device may take 50 ms.
        """
        if self._learned_ns is not None and now_ns - self._learned_ns < _LAYOUT_NS:
            if wanted <= self._parts.keys():
                return
            if now_ns - self._learned_ns < _RETRY_NS:
                return
        self._learned_ns = now_ns
        try:
            self._parts = _layout(self._driver, gpu)
        except NvmlError:
            self._parts = {}
        for gone in self._activity.keys() - self._parts.keys():
            self._activity.pop(gone).free()

    def _busy(self, gpu: Handle, instance: int, now_ns: int) -> float | None:
        try:
            if instance not in self._activity:
                self._activity[instance] = _Activity(self._driver)
            return self._activity[instance].percent(gpu, instance, now_ns)
        except NvmlError:
            return None


class _Activity:
    """SM activity of one GPU instance between two calls, by GPM."""

    def __init__(self, driver: NvmlDriver) -> None:
        self._driver = driver
        self._before: Any = driver.call("nvmlGpmSampleAlloc")
        self._after: Any = driver.call("nvmlGpmSampleAlloc")
        self._before_ns: int | None = None

    def percent(self, gpu: Handle, instance: int, now_ns: int) -> float | None:
        """Percent of the instance's SMs since the last call; None where that is not told."""
        before_ns = self._before_ns
        if before_ns is not None and 0 <= now_ns - before_ns < _SHORTEST_NS:
            return None
        self._before_ns = None
        self._driver.call("nvmlGpmMigSampleGet", gpu.pointer, instance, self._after)
        self._before, self._after = self._after, self._before
        self._before_ns = now_ns
        return None if before_ns is None else self._between()

    def restart(self) -> None:
        """Have the next call set the mark."""
        self._before_ns = None

    def free(self) -> None:
        """Give the samples back."""
        for sample in (self._before, self._after):
            try:
                self._driver.call("nvmlGpmSampleFree", sample)
            except NvmlError:
                # The library forgot them with everything else.
                return

    def _between(self) -> float | None:
        nvml = self._driver.nvml
        asked = nvml.c_nvmlGpmMetricsGet_t()
        asked.version = nvml.NVML_GPM_METRICS_GET_VERSION
        asked.numMetrics = 1
        # They were exchanged: the older one is in the place of the next.
        asked.sample1, asked.sample2 = self._after, self._before
        asked.metrics[0].metricId = nvml.NVML_GPM_METRIC_SM_UTIL
        self._driver.call("nvmlGpmMetricsGet", asked)
        percent = float(asked.metrics[0].value)
        if asked.metrics[0].nvmlReturn or not math.isfinite(percent) or not 0 <= percent <= 101:
            return None
        return min(percent, 100.0)


def shared(owners: Sequence[Owner], weights: Mapping[int, float]) -> dict[int, float]:
    """Each process's part of its instances' weights, by memory held; equal where none is told."""
    held_bytes: Counter[int] = Counter()
    crowd: Counter[int] = Counter()
    for owner in owners:
        if owner.instance is not None:
            held_bytes[owner.instance] += owner.memory_bytes or 0
            crowd[owner.instance] += 1
    percent: dict[int, float] = dict.fromkeys((owner.pid for owner in owners), 0.0)
    for owner in owners:
        if owner.instance is None:
            continue
        held = held_bytes[owner.instance]
        share = (owner.memory_bytes or 0) / held if held else 1 / crowd[owner.instance]
        percent[owner.pid] += weights.get(owner.instance, 0.0) * share
    return percent


def _layout(driver: NvmlDriver, gpu: Handle) -> dict[int, Part]:
    """Every GPU instance's part of the board; compute instances of one are added up."""
    sms: Counter[int] = Counter()
    slices: dict[int, int] = {}
    for index in range(int(driver.call("nvmlDeviceGetMaxMigDeviceCount", gpu.pointer))):
        try:
            device = driver.call("nvmlDeviceGetMigDeviceHandleByIndex", gpu.pointer, index)
        except NvmlError:
            # Indices have gaps where instances were destroyed.
            continue
        instance = int(driver.call("nvmlDeviceGetGpuInstanceId", device))
        attributes = driver.call("nvmlDeviceGetAttributes", device)
        sms[instance] += int(attributes.multiprocessorCount)
        slices[instance] = int(attributes.gpuInstanceSliceCount)
    board_sms, board_slices = _board(driver, gpu)
    return {
        instance: Part(sms[instance] / board_sms, slices[instance] / board_slices)
        for instance in slices
    }


def _board(driver: NvmlDriver, gpu: Handle) -> tuple[int, int]:
    """(SMs, slices) of the largest instance that the board could be; raises `NvmlError`."""
    largest = (0, 0)
    for profile in range(driver.nvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            info = driver.call("nvmlDeviceGetGpuInstanceProfileInfo", gpu.pointer, profile)
        except NvmlError:
            continue
        largest = max(largest, (int(info.multiprocessorCount), int(info.sliceCount)))
    if not all(largest):
        raise NvmlError("no GPU instance profile tells its size")
    return largest
