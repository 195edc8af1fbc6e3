"""What can be asked of a statement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from enum import StrEnum
from typing import TypeVar

from wattledger.carbon.embodied import DEFAULT_LIFETIME_S, check_lifetime
from wattledger.carbon.intensity import IntensitySource
from wattledger.carbon.pue import ASSUMED_PUE, PueSource
from wattledger.errors import InputError
from wattledger.store.protocol import Filters
from wattledger.timespan import Period, Window


class View(StrEnum):
    """Which energy is charged to whom (accounting.md, 4.3)."""

    DIRECT = "direct"
    LOADED = "loaded"
    ACTIVE = "active"


class GroupKey(StrEnum):
    """What a statement can be grouped by; hour, day and month are local to the query's `tz`."""

    HOST = "host"
    DEVICE = "device"
    KIND = "kind"
    WORKLOAD = "workload"
    JOB = "job"
    ENGINE = "engine"
    MODEL = "model"
    ACTIVITY = "activity"
    QUALITY = "quality"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


EVERYTHING = Filters()

ChoiceT = TypeVar("ChoiceT", bound=StrEnum)


def parse_view(text: str) -> View:
    """The view of that name; raises `InputError` that names the nearest."""
    return _choice(View, text, "--view")


def parse_groups(text: str) -> tuple[GroupKey, ...]:
    """Group keys of `job,day`, each once, in that order; raises `InputError` for an unknown one."""
    names = [name.strip() for name in text.split(",")]
    return tuple(dict.fromkeys(_choice(GroupKey, name, "--by") for name in names))


def _choice(choices: type[ChoiceT], text: str, flag: str) -> ChoiceT:
    try:
        return choices(text)
    except ValueError as error:
        from difflib import get_close_matches

        known = [choice.value for choice in choices]
        near = get_close_matches(text, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
        raise InputError(f"{flag} {text!r} is unknown: {hint}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """A selection of the ledger: energy and tokens of a window.

    `by` holds group keys by name; `InputError` for an unknown one.
    """

    window: Window
    filters: Filters = EVERYTHING
    by: tuple[str, ...] = ()
    view: View = View.DIRECT
    tz: tzinfo = UTC

    def __post_init__(self) -> None:
        for name in self.by:
            _choice(GroupKey, name, "--by")

    @property
    def periods(self) -> tuple[Period, ...]:
        """The calendar periods among the group keys."""
        return tuple(period for period in Period if period.value in self.by)


@dataclass(frozen=True, slots=True, kw_only=True)
class CarbonQuery(UsageQuery):
    """A selection of the ledger and the factors to price it with.

    `embodied_kg` maps device models to kg CO2e of the site's own. `in_service_ns` maps (host,
    device) to the UTC nanosecond from which its lifetime runs; a device it does not name is
    taken to be within its lifetime. `min_coverage` is the least share, by energy, of measured or
    constant intensity. Raises `InputError` for a bar or a lifetime out of range.
    """

    intensity: IntensitySource
    zone: str | None = None
    pue: PueSource = ASSUMED_PUE
    lifetime_s: float = DEFAULT_LIFETIME_S
    embodied_kg: Mapping[str, float] = field(default_factory=dict)
    in_service_ns: Mapping[tuple[str, str], int] = field(default_factory=dict)
    include_embodied: bool = True
    min_coverage: float | None = None

    def __post_init__(self) -> None:
        UsageQuery.__post_init__(self)
        check_lifetime(self.lifetime_s)
        if self.min_coverage is not None and not 0.0 <= self.min_coverage <= 1.0:
            raise InputError(f"--min-coverage {self.min_coverage}: give a share from 0 to 1")
