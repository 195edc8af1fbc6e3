"""The carbon statement: operational and embodied carbon of a window (accounting.md, section 4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wattledger import __version__
from wattledger.carbon.intensity import covering
from wattledger.carbon.pue import PuePoint
from wattledger.errors import DataMissingError
from wattledger.hardware.factors import EmbodiedFactor
from wattledger.statement.coverage import Coverage, booked_ns, coverage_of, device_books
from wattledger.statement.lines import Line, add_grams
from wattledger.statement.node import NodeBalance, node_balance
from wattledger.statement.notices import carbon_notices, usage_notices
from wattledger.statement.query import EVERYTHING, CarbonQuery, View
from wattledger.statement.selection import select
from wattledger.statement.terms import EmbodiedTerms, service_edges_ns
from wattledger.statement.timeline import priced_timeline
from wattledger.statement.totals import Group, Totals, groups_of, ratio
from wattledger.store.protocol import Store
from wattledger.timespan import Window, format_instant

SCHEMA = "wattledger.carbon/1"


@dataclass(frozen=True, slots=True)
class IntensityFactor:
    """An intensity that priced part of a statement; its value is the energy-weighted mean."""

    tier: str
    source: str
    zone: str | None
    signal: str
    basis: str
    intensity_gco2e_per_kwh: float | None
    share: float | None

    def to_json(self) -> dict[str, object]:
        """Its fields by name."""
        return {
            "tier": self.tier,
            "source": self.source,
            "zone": self.zone,
            "signal": self.signal,
            "basis": self.basis,
            "intensity_gco2e_per_kwh": self.intensity_gco2e_per_kwh,
            "share": self.share,
        }


@dataclass(frozen=True, slots=True)
class Factors:
    """Every factor that went into a statement."""

    pue: tuple[PuePoint, ...]
    intensity: tuple[IntensityFactor, ...]
    embodied: tuple[EmbodiedFactor, ...]
    lifetime_s: float

    def to_json(self) -> dict[str, object]:
        """The contract's `factors`."""
        return {
            "pue": [
                {
                    "from": format_instant(point.start_ns),
                    "to": format_instant(point.end_ns),
                    "pue": point.pue,
                    "source": point.source,
                }
                for point in self.pue
            ],
            "intensity": [factor.to_json() for factor in self.intensity],
            "embodied": [
                {**factor.to_json(), "lifetime_s": self.lifetime_s} for factor in self.embodied
            ],
        }


@dataclass(frozen=True, slots=True)
class CarbonStatement:
    """Carbon, energy and tokens of a selection; `boundary` holds the kinds of device in it."""

    window: Window
    view: View
    boundary: tuple[str, ...]
    total: Totals
    groups: tuple[Group, ...]
    coverage: Coverage
    factors: Factors
    warnings: tuple[str, ...]
    node: NodeBalance | None = None

    def to_json(self) -> dict[str, object]:
        """The contract's `wattledger.carbon/1`: J, kWh, gCO2e and s, null for no value."""
        return {
            "schema": SCHEMA,
            "software": __version__,
            "window": self.window.to_json(),
            "view": self.view.value,
            "boundary": list(self.boundary),
            "total": self.total.carbon_json(),
            "groups": [{"by": group.by, **group.total.carbon_json()} for group in self.groups],
            "coverage": self.coverage.carbon_json(),
            "factors": self.factors.to_json(),
            **({"node": self.node.to_json()} if self.node else {}),
            "warnings": list(self.warnings),
        }


def carbon_statement(store: Store, query: CarbonQuery) -> CarbonStatement:
    """The carbon of a window.

    Without embodied carbon, or a factor for it, `embodied_gco2e` is 0 and
    `coverage.embodied` says how much of the energy it stands for.

    Raises `DataMissingError` where nothing is booked or matches, where a part of the window has
    no intensity or PUE, and where less than `min_coverage` of the energy has a measured one.
    """
    window = query.window
    terms = EmbodiedTerms(query)
    pues = tuple(query.pue.segments(window.start_ns, window.end_ns))
    intensities = covering(query.intensity, window.start_ns, window.end_ns)
    timeline = priced_timeline(query, intensities, pues, service_edges_ns(query))
    chosen = select(store, query, timeline, terms)
    if not chosen.lines:
        raise _nothing(query)
    books = store.books(window.start_ns, window.end_ns)
    booked = booked_ns(device_books(books, query.filters.host))
    coverage = coverage_of(chosen.lines, booked, window, terms)
    _check_coverage(coverage, query)
    node = node_balance(store, query, books)
    return CarbonStatement(
        window=window,
        view=query.view,
        boundary=tuple(sorted({line.key.kind.value for line in chosen.lines})),
        total=chosen.total,
        groups=groups_of(chosen.lines, query.by),
        coverage=coverage,
        factors=_factors(chosen.lines, query, pues, terms),
        warnings=(
            *usage_notices(chosen.lines, booked, window, prorated=chosen.prorated),
            *carbon_notices(chosen.lines, terms, embodied=query.include_embodied),
            *(node.notices() if node else ()),
        ),
        node=node,
    )


def _nothing(query: CarbonQuery) -> DataMissingError:
    what = "nothing" if query.filters == EVERYTHING else "nothing that matches the filters"
    window = query.window
    return DataMissingError(
        f"{what} is booked from {format_instant(window.start_ns)} to "
        f"{format_instant(window.end_ns)}: ask for another window, or see `wattledger doctor` "
        "for what the daemon measures"
    )


def _check_coverage(coverage: Coverage, query: CarbonQuery) -> None:
    measured = coverage.measured_intensity
    if query.min_coverage is None or not coverage.intensity:
        return
    # The share is a sum of quotients: leave their last digits aside.
    if measured + 1e-12 < query.min_coverage:
        raise DataMissingError(
            f"grid intensity is measured for {measured:.4f} of the energy, below --min-coverage "
            f"{query.min_coverage:g}: import the missing hours with `wattledger grid import`"
        )


def _factors(
    lines: Sequence[Line], query: CarbonQuery, pues: tuple[PuePoint, ...], terms: EmbodiedTerms
) -> Factors:
    models = sorted({line.key.device_model for line in lines if line.key.device_model})
    return Factors(
        pue=pues,
        intensity=_intensity_factors(lines, query),
        embodied=tuple(factor for model in models if (factor := terms.factor(model))),
        lifetime_s=query.lifetime_s,
    )


def _intensity_factors(lines: Sequence[Line], query: CarbonQuery) -> tuple[IntensityFactor, ...]:
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line.key.tier or "", line.key.source), []).append(line)
    total_uj = _energy_uj(lines)
    factors: list[IntensityFactor] = []
    for (tier, source), members in sorted(found.items()):
        grams = add_grams(line.grams for line in members)
        factors.append(
            IntensityFactor(
                tier=tier,
                source=source,
                zone=query.zone,
                signal=query.intensity.signal.value,
                basis=query.intensity.basis.value,
                intensity_gco2e_per_kwh=ratio(grams.operational, grams.facility_kwh),
                share=ratio(_energy_uj(members), total_uj),
            )
        )
    return tuple(factors)


def _energy_uj(lines: Iterable[Line]) -> int:
    return sum(line.amounts.energy_uj for line in lines)
