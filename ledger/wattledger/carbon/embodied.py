"""Embodied carbon of a device, spread over its lifetime and shared by device time (4.2).

A year is 365 x 86,400 s, as in SCI and ACT.
"""

from __future__ import annotations

import math
import re

from wattledger.errors import InputError
from wattledger.records import NS_PER_S

YEAR_S = 365 * 86_400
DEFAULT_LIFETIME_S = float(5 * YEAR_S)
_LIFETIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)(y|mo|d|h)")
_UNIT_S = {"y": YEAR_S, "mo": YEAR_S / 12, "d": 86_400, "h": 3600}


def embodied_gco2e(kg_co2e: float, device_ns: int, lifetime_s: float) -> float:
    """Grams of CO2e of `device_ns` of use of a device that took `kg_co2e` to make."""
    return 1000.0 * kg_co2e * (device_ns / (lifetime_s * NS_PER_S))


def end_of_life_ns(in_service_ns: int, lifetime_s: float) -> int:
    """UTC nanoseconds at which a device in service since `in_service_ns` is written off."""
    return in_service_ns + round(lifetime_s * NS_PER_S)


def parse_lifetime(text: str) -> float:
    """Seconds of `5y`, `36mo`, `1000d` or `43800h`; raises `InputError` for anything else."""
    match = _LIFETIME.fullmatch(text.strip())
    if match is None:
        raise InputError(f"--lifetime {text!r} is not understood: write 5y, 36mo or 43800h")
    return check_lifetime(float(match[1]) * _UNIT_S[match[2]])


def check_lifetime(lifetime_s: float) -> float:
    """The lifetime itself; raises `InputError` unless it is more than nothing and finite."""
    if not 0.0 < lifetime_s < math.inf:
        raise InputError(f"--lifetime of {lifetime_s} s: a lifetime is longer than nothing")
    return lifetime_s
