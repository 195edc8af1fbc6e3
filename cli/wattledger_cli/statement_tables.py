"""Carbon and usage statements as tables, with what a reader must know below them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from wattledger.carbon.embodied import YEAR_S
from wattledger.records import NS_PER_S, UJ_PER_J
from wattledger.timespan import format_instant
from wattledger_cli.figures import (
    CARBON_G,
    COUNT,
    ENERGY_J,
    figure,
    quantity,
    share,
    shares,
)
from wattledger_cli.output import draw_notes, draw_table, left_out_note
from wattledger_cli.tables import Cells, Column, numbers, words

if TYPE_CHECKING:
    from wattledger.statement.carbon import CarbonStatement
    from wattledger.statement.node import NodeBalance
    from wattledger.statement.totals import Group, Totals
    from wattledger.statement.usage import UsageStatement
    from wattledger.timespan import Window
    from wattledger_cli.figures import Quantity

Value = Callable[["Totals"], float | None]

# Their ends tell them apart, so that they are never cut.
_PERIODS = {"hour", "day", "month"}
# What a narrow terminal goes without, the highest first.
_PER_TOKEN, _HALVES, _PARTS, _TOKENS = 4, 3, 2, 1


def draw_carbon(statement: CarbonStatement) -> None:
    """Draw a carbon statement."""
    table = _Table(statement.groups, statement.total)
    carbon: Sequence[Value] = (
        lambda x: x.grams.operational,
        lambda x: x.grams.embodied,
        lambda x: x.carbon_gco2e,
    )
    peers = [value for of in carbon for value in table.values(of)]
    left_out = draw_table(
        (
            *table.keys(),
            table.numbers("energy", ENERGY_J, _energy_j),
            *table.tokens(("tokens", lambda x: x.tokens)),
            *(
                table.numbers(title, CARBON_G, of, peers=peers, suffix="CO2e", spare=spare)
                for title, of, spare in zip(
                    ("operat.", "embodied", "carbon"), carbon, (_PARTS, _PARTS, 0), strict=True
                )
            ),
            *table.per_token(),
        ),
        totals=bool(statement.groups),
    )
    told = [*_about(statement), *_priced(statement), *_known(statement)]
    draw_notes((*told, *_parts(statement, left_out), *left_out_note(left_out)))


def draw_usage(statement: UsageStatement) -> None:
    """Draw a usage statement."""
    table = _Table(statement.groups, statement.total)
    energies: Sequence[Value] = (
        _energy_j,
        lambda x: x.amounts.static_uj / UJ_PER_J,
        lambda x: x.amounts.dynamic_uj / UJ_PER_J,
    )
    peers = [value for of in energies for value in table.values(of)]
    left_out = draw_table(
        (
            *table.keys(),
            *(
                table.numbers(title, ENERGY_J, of, peers=peers, spare=spare)
                for title, of, spare in zip(
                    ("energy", "static", "dynamic"), energies, (0, _HALVES, _HALVES), strict=True
                )
            ),
            *table.tokens(
                ("prefill", lambda x: x.amounts.prefill_tokens),
                ("decode", lambda x: x.amounts.decode_tokens),
            ),
            *table.per_token(),
        ),
        totals=bool(statement.groups),
    )
    draw_notes((*_about(statement), *_known(statement), *left_out_note(left_out)))


class _Table:
    """The rows of a statement: its groups with their total, or the total alone."""

    def __init__(self, groups: Sequence[Group], total: Totals) -> None:
        self._groups = groups
        self._total = total
        self._rows = [group.total for group in groups] or [total]

    def values(self, of: Value) -> list[float | None]:
        return [of(row) for row in self._rows]

    def keys(self) -> list[Column]:
        names = list(self._groups[0].by) if self._groups else []
        return [
            words(
                name,
                [group.by[name] for group in self._groups],
                "" if at else "total",
                holds=Cells.WHOLE if name in _PERIODS else Cells.LABELS,
            )
            for at, name in enumerate(names)
        ]

    def numbers(
        self,
        title: str,
        unit: Quantity,
        of: Value,
        *,
        peers: Sequence[float | None] = (),
        suffix: str = "",
        spare: int = 0,
    ) -> Column:
        total = of(self._total)
        return numbers(title, unit, self.values(of), total, peers=peers, suffix=suffix, spare=spare)

    def tokens(self, *columns: tuple[str, Value]) -> list[Column]:
        if not self._total.tokens:
            return []
        return [self.numbers(title, COUNT, of, spare=_TOKENS) for title, of in columns]

    def per_token(self) -> list[Column]:
        if not self._total.tokens:
            return []
        return [self.numbers("per token", ENERGY_J, _j_per_token, spare=_PER_TOKEN)]


def _energy_j(total: Totals) -> float:
    return total.amounts.energy_uj / UJ_PER_J


def _j_per_token(total: Totals) -> float | None:
    return _energy_j(total) / total.tokens if total.tokens else None


def window_note(window: Window) -> tuple[str, str]:
    """The window in words, its edges to the millisecond."""
    first, last = (
        format_instant(t_ns // 1_000_000 * 1_000_000) for t_ns in (window.start_ns, window.end_ns)
    )
    return ("window", f"{first} to {last}, {figure(window.length_ns / NS_PER_S)} s")


def _about(statement: CarbonStatement | UsageStatement) -> list[tuple[str, str]]:
    amounts = statement.total.amounts
    counted = (
        (amounts.requests, "requests"),
        (amounts.prefill_tokens, "prefill"),
        (amounts.cached_tokens, "cached"),
        (amounts.decode_tokens, "decode tokens"),
    )
    notes = [
        window_note(statement.window),
        ("view", f"{statement.view}; {', '.join(statement.boundary) or 'no device'}"),
    ]
    if any(count for count, _ in counted):
        notes.append(("tokens", ", ".join(f"{count:,} {name}" for count, name in counted)))
    return notes


def _priced(statement: CarbonStatement) -> list[tuple[str, str]]:
    factors = statement.factors
    grams = statement.total.grams
    notes = []
    for used in factors.intensity:
        mean = figure(used.intensity_gco2e_per_kwh)
        kind = used.tier.replace("_", " ")
        notes.append(("intensity", f"{mean} gCO2e/kWh, {kind}: {used.source}"))
    notes += [("PUE", f"{figure(point.pue)}, {point.source}") for point in factors.pue]
    years = figure(factors.lifetime_s / YEAR_S)
    for made in factors.embodied:
        text = f"{made.device_model}: {figure(made.kg)} kgCO2e over {years} years, {made.method}"
        notes.append(("embodied", text))
    if not factors.embodied:
        notes.append(("embodied", "0: no factor for these devices, or none asked for"))
    low_g = grams.operational_low + grams.embodied_low
    high_g = grams.operational_high + grams.embodied_high
    if low_g < high_g:
        notes.append(("bounds", f"{_grams(low_g)} to {_grams(high_g)}"))
    return notes


def _parts(statement: CarbonStatement, left_out: Sequence[str]) -> list[tuple[str, str]]:
    """A total stands beside its two parts (accounting.md, 4.5), below the table if not in it."""
    if "embodied" not in left_out:
        return []
    grams = statement.total.grams
    return [
        ("carbon", f"{_grams(grams.operational)} operational, {_grams(grams.embodied)} embodied")
    ]


def _grams(value_g: float) -> str:
    return f"{quantity(value_g, CARBON_G)}CO2e"


def _known(statement: CarbonStatement | UsageStatement) -> list[tuple[str, str]]:
    coverage = statement.coverage
    notes = []
    if coverage.energy:
        notes.append(("energy", shares(coverage.energy)))
    notes.append(("time", f"{share(coverage.time)} of the devices' time is booked"))
    return [*notes, *_unmetered(statement.node)]


def _unmetered(node: NodeBalance | None) -> list[tuple[str, str]]:
    """What whole-node meters saw and no part did; beside the total, never in it."""
    if node is None:
        return []
    unmetered, whole, parts = (
        quantity(value_uj / UJ_PER_J, ENERGY_J)
        for value_uj in (node.unmetered_uj, node.energy_uj, node.parts_uj)
    )
    compared = f"both known {share(node.coverage_time)} of the time"
    return [("unmetered", f"{unmetered}: node {whole} less parts {parts}, {compared}")]


def records_of(document: Mapping[str, object]) -> list[dict[str, object]]:
    """A statement's document as CSV records: its groups, their keys first; else its total."""
    groups = document["groups"]
    if isinstance(groups, list) and groups:
        return [{**group.pop("by"), **group} for group in (dict(group) for group in groups)]
    total = document["total"]
    return [dict(total)] if isinstance(total, dict) else []
