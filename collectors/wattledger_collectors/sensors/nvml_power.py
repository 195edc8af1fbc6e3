"""A GPU's power gauge: which figure NVML has, of what, checked before it is believed."""

from __future__ import annotations

import ctypes
import math
from enum import Enum
from typing import Any

from wattledger_collectors.sensors.nvml_driver import Handle, NotSupported, NvmlDriver, NvmlError

HIGHEST_POWER_W = 10_000
"""No board, nor module of two, comes near: what says more is nonsense."""

_FIELDS_CALL = "nvmlDeviceGetFieldValues"
_USAGE_CALL = "nvmlDeviceGetPowerUsage"
_FIELD_AVERAGE = 185
_FIELD_INSTANT = 186
_SCOPE_GPU = 0
_SCOPE_MODULE = 1
_UW_PER_MW = 1000
_SUPERCHIPS = ("GH200", "GB200", "GB300")


def is_superchip(model: str | None) -> bool:
    """Whether this GPU shares a module with Grace CPUs, whose own meters may not be added to it.

    On a GH200 NVML's counter covers the whole module. Whether it does on a GB200 or GB300 is not
    known here: they are taken for superchips, since a joule left out is seen and a joule counted
    twice is not.
    """
    return model is not None and any(name in model.upper() for name in _SUPERCHIPS)


class PowerSource(Enum):
    """Which of NVML's figures a gauge tells, best first."""

    INSTANT = "instant power (field 186)"
    AVERAGE = "power averaged over 1 s (field 185)"
    USAGE = "nvmlDeviceGetPowerUsage (a 1 s average on Ampere, except GA100, or newer)"


class PowerGauge:
    """One GPU's power; settled on the first source that answers, and anew when that one ends.

    On a GH200 it is the module's, as the counter is. Source: NVML_FI_DEV_POWER_INSTANT (186),
    NVML_FI_DEV_POWER_AVERAGE (185), scopeId 1 for the module; nvmlDeviceGetPowerUsage; all mW.
    """

    def __init__(self, driver: NvmlDriver) -> None:
        self.source: PowerSource | None = None
        self.module_told = False
        self._driver = driver
        self._module = False
        self._call: Any = None
        self._mw = ctypes.c_uint()
        self._mw_out = ctypes.byref(self._mw)
        self._fields = (driver.nvml.c_nvmlFieldValue_t * 1)()
        self._fields_out = ctypes.byref(self._fields)

    def settle(self, gpu: Handle, model: str | None) -> int:
        """Find the source; its first figure in microwatts. Raises `NvmlError`."""
        self.source = None
        self.module_told = self._answers(gpu, _FIELD_INSTANT, _SCOPE_MODULE)
        self._module = self.module_told and "GH200" in (model or "").upper()
        scope = _SCOPE_MODULE if self._module else _SCOPE_GPU
        for source, field in (
            (PowerSource.INSTANT, _FIELD_INSTANT),
            (PowerSource.AVERAGE, _FIELD_AVERAGE),
        ):
            if self._answers(gpu, field, scope):
                self.source = source
                return self.read_uw(gpu)
        self._call = self._driver.raw(_USAGE_CALL)
        if self._call is None:
            raise NotSupported(f"{_USAGE_CALL}: not in this driver")
        self.source = PowerSource.USAGE
        try:
            return self.read_uw(gpu)
        except NvmlError:
            self.source = None
            raise

    def read_uw(self, gpu: Handle) -> int:
        """Power now, microwatts; raises `NvmlError`, also where the figure is nonsense."""
        if self.source is PowerSource.USAGE:
            if status := self._call(gpu.pointer, self._mw_out):
                raise self._driver.error(_USAGE_CALL, status)
            return _believed(self._mw.value)
        status = self._call(gpu.pointer, 1, self._fields_out) or self._fields[0].nvmlReturn
        if status:
            raise self._driver.error(_FIELDS_CALL, status)
        return _believed(self._told())

    @property
    def note(self) -> str:
        """What is read, in words."""
        if self.source is None:
            return "no power"
        scope = " of the whole module" if self._module else ""
        return f"{self.source.value}{scope}"

    def _answers(self, gpu: Handle, field: int, scope: int) -> bool:
        """Whether the driver has this field; raises `NvmlError` where the GPU does not answer."""
        self._call = self._driver.raw(_FIELDS_CALL)
        if self._call is None:
            return False
        self._fields[0].fieldId, self._fields[0].scopeId = field, scope
        if status := self._call(gpu.pointer, 1, self._fields_out):
            failure = self._driver.error(_FIELDS_CALL, status)
            if isinstance(failure, NotSupported):
                return False
            raise failure
        return bool(self._fields[0].nvmlReturn == 0)

    def _told(self) -> float:
        """The field's value by the type that it says it has."""
        nvml, field = self._driver.nvml, self._fields[0]
        if field.valueType == nvml.NVML_VALUE_TYPE_UNSIGNED_INT:
            return int(field.value.uiVal)
        if field.valueType in (
            nvml.NVML_VALUE_TYPE_UNSIGNED_LONG,
            nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,
        ):
            return int(field.value.ullVal)
        if field.valueType == nvml.NVML_VALUE_TYPE_DOUBLE:
            return float(field.value.dVal)
        raise NvmlError(f"{_FIELDS_CALL}: power of type {field.valueType}, which is none we know")


def _believed(power_mw: float) -> int:
    """Microwatts; raises `NvmlError` for what no GPU draws, NaN among it."""
    if not (math.isfinite(power_mw) and 0 <= power_mw <= HIGHEST_POWER_W * 1000):
        raise NvmlError(f"the driver tells a power of {power_mw / 1000:g} W, which no GPU draws")
    return round(power_mw * _UW_PER_MW)
