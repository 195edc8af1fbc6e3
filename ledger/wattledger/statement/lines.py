"""Lines: slices of the ledger added up per account and device, and priced.

Energy, time and tokens stay integers; grams are the exactly rounded sum of what each interval's
energy cost, so that no order of the slices changes a digit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from wattledger.carbon.intensity import Tier
from wattledger.carbon.operational import facility_kwh
from wattledger.records import Account, Activity, Amounts, DeviceKind, Quality, StaticBasis
from wattledger.statement.query import EVERYTHING, GroupKey, View
from wattledger.statement.terms import EmbodiedTerms
from wattledger.statement.timeline import Interval, Price, Timeline
from wattledger.store.protocol import Filters, Slice

AMOUNT_NAMES = (
    "static_uj",
    "dynamic_uj",
    "device_ns",
    "prefill_tokens",
    "cached_tokens",
    "decode_tokens",
    "requests",
)
COARSE = "coarse"
_amounts = attrgetter(*AMOUNT_NAMES)
GRAM_NAMES = (
    "facility_kwh",
    "operational_low",
    "operational",
    "operational_high",
    "embodied_low",
    "embodied",
    "embodied_high",
)
_grams = attrgetter(*GRAM_NAMES)


@dataclass(frozen=True, slots=True)
class Grams:
    """Facility energy in kWh, and gCO2e with low and high bounds."""

    facility_kwh: float = 0.0
    operational_low: float = 0.0
    operational: float = 0.0
    operational_high: float = 0.0
    embodied_low: float = 0.0
    embodied: float = 0.0
    embodied_high: float = 0.0

    def scaled(self, ratio: float) -> Grams:
        """The same grams times `ratio`."""
        return Grams(*(value * ratio for value in _grams(self)))


NO_GRAMS = Grams()


@dataclass(frozen=True, slots=True)
class LineKey:
    """What makes slices one line: the groups asked for, and what coverage and views need.

    `by` holds the values of the query's group keys, in their order. `static_known` tells that the
    device's idle power is known, `owned` that somebody is named as its cause, `selected` that
    the account passes the filters, `coarse` that its engine told of stretches of time alone.
    """

    by: tuple[str | None, ...]
    host: str
    device: str
    kind: DeviceKind
    device_model: str | None
    activity: Activity
    quality: Quality
    static_known: bool
    tier: Tier | None
    source: str
    in_service: bool
    owned: bool
    selected: bool
    coarse: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One priced line."""

    key: LineKey
    amounts: Amounts
    grams: Grams


Tally = dict[tuple[LineKey, Price], list[int]]


def is_coarse(method: str) -> bool:
    """Whether a method is that of engines whose counters are read now and then."""
    return method.partition("/")[0] == COARSE


def add_amounts(parts: Iterable[Amounts]) -> Amounts:
    """The sum of amounts, column by column."""
    columns = zip(*map(_amounts, parts), strict=True)
    return Amounts(*(sum(column) for column in columns))


def add_grams(parts: Iterable[Grams]) -> Grams:
    """The exactly rounded sum of grams, column by column; independent of order."""
    columns = zip(*map(_grams, parts), strict=True)
    return Grams(*(math.fsum(column) for column in columns))


def tally(
    slices: Iterable[Slice],
    timeline: Timeline,
    by: Sequence[str],
    terms: EmbodiedTerms,
    filters: Filters = EVERYTHING,
) -> Tally:
    """Integer sums per line and price; `filters` decide which lines are `selected`."""
    sums: Tally = {}
    passes: dict[Account, bool] = {}
    for piece in slices:
        interval = timeline.at(piece.start_ns)
        account = piece.account
        if account not in passes:
            passes[account] = filters.match_account(account)
        key = LineKey(
            by=tuple(_value(name, piece, interval) for name in by),
            host=piece.host,
            device=piece.device.device,
            kind=piece.device.kind,
            device_model=piece.device.model,
            activity=account.activity,
            quality=account.quality,
            static_known=account.static_basis is not StaticBasis.UNKNOWN,
            tier=interval.price.tier,
            source=interval.price.source,
            in_service=terms.in_service(piece.host, piece.device.device, interval.start_ns),
            owned=bool(account.workload or account.job or account.engine),
            selected=passes[account],
            coarse=is_coarse(account.method),
        )
        counts = sums.setdefault((key, interval.price), [0] * len(AMOUNT_NAMES))
        for column, amount in enumerate(_amounts(piece.amounts)):
            counts[column] += amount
    return sums


def priced_lines(sums: Tally, view: View, terms: EmbodiedTerms) -> list[Line]:
    """Lines of a tally, priced; the active view keeps dynamic energy only, and all device time."""
    parts: dict[LineKey, list[tuple[Price, Amounts]]] = {}
    for (key, price), counts in sums.items():
        static_uj, *others = counts
        kept_uj = 0 if view is View.ACTIVE else static_uj
        parts.setdefault(key, []).append((price, Amounts(kept_uj, *others)))
    return [_line(key, priced, terms) for key, priced in parts.items()]


def _line(key: LineKey, priced: Sequence[tuple[Price, Amounts]], terms: EmbodiedTerms) -> Line:
    amounts = add_amounts(part for _, part in priced)
    charged_ns = amounts.device_ns if key.in_service else 0
    embodied = terms.grams(key.device_model, charged_ns)
    kwh = [(price, facility_kwh(part.energy_uj, price.pue)) for price, part in priced]
    grams = Grams(
        math.fsum(value for _, value in kwh),
        math.fsum(value * price.low_gco2e_per_kwh for price, value in kwh),
        math.fsum(value * price.intensity_gco2e_per_kwh for price, value in kwh),
        math.fsum(value * price.high_gco2e_per_kwh for price, value in kwh),
        *embodied,
    )
    return Line(key, amounts, grams)


def _value(name: str, piece: Slice, interval: Interval) -> str | None:
    match name:
        case GroupKey.HOST:
            return piece.host
        case GroupKey.DEVICE:
            return piece.device.device
        case GroupKey.KIND:
            return piece.device.kind.value
        case GroupKey.HOUR | GroupKey.DAY | GroupKey.MONTH:
            return interval.labels[name]
        case _:
            value: str | None = getattr(piece.account, name)
            return None if value is None else str(value)
