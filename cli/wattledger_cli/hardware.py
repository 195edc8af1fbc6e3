"""`wattledger hardware`: the device catalogue and what it took to make each device."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from wattledger_cli.figures import Quantity, Scale, figure
from wattledger_cli.options import options_of
from wattledger_cli.output import draw_notes, draw_table, emit
from wattledger_cli.tables import Cells, numbers, words

if TYPE_CHECKING:
    from wattledger.hardware.catalogue import GpuSpec
    from wattledger.hardware.factors import EmbodiedFactor, EmbodiedRow

app = typer.Typer(add_completion=False, rich_markup_mode=None)
_POWER = Quantity((Scale("W", 1.0),), ())
_MEMORY = Quantity((Scale("GB", 1.0),), ())
_MASS = Quantity((Scale("kgCO2e", 1.0),), ())


@app.callback()
def hardware() -> None:
    """Device catalogue and embodied factors."""


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the catalogue with the embodied factor each device gets.

    Example: wattledger hardware list
    """
    from wattledger.hardware.catalogue import list_gpus
    from wattledger.hardware.factors import embodied_factor

    specs = list_gpus()
    factors = [embodied_factor(spec.name) for spec in specs]
    records = [_record(spec, factor) for spec, factor in zip(specs, factors, strict=True)]

    def draw() -> None:
        draw_table(
            (
                words("device", [spec.name for spec in specs]),
                numbers("TDP", _POWER, [spec.tdp_w for spec in specs]),
                numbers("memory", _MEMORY, [spec.memory_gb for spec in specs]),
                numbers("embodied", _MASS, [f.kg if f else None for f in factors]),
                numbers("low", _MASS, [f.low_kg if f else None for f in factors]),
                numbers("high", _MASS, [f.high_kg if f else None for f in factors]),
                words("grade", [f.confidence if f else None for f in factors]),
            )
        )
        draw_notes((("sources", "wattledger hardware show NAME"),))

    document = {"schema": "wattledger.hardware/1", "devices": records}
    emit(options_of(context), document, records, draw)


@app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As the driver or the list has it.")],
) -> None:
    """Show one device: its specification, and every embodied figure known of it.

    Example: wattledger hardware show "NVIDIA H200"
    """
    from wattledger.hardware.catalogue import require_gpu
    from wattledger.hardware.factors import embodied_factor, embodied_rows

    spec = require_gpu(name)
    factor = embodied_factor(spec.name)
    rows = embodied_rows(spec.name)
    document = {
        "schema": "wattledger.hardware/1",
        "devices": [{**asdict(spec), "embodied": factor and factor.to_json()}],
        "figures": [asdict(row) for row in rows],
    }

    def draw() -> None:
        draw_notes(_notes(spec, factor))
        if rows:
            _draw_rows(rows)

    emit(options_of(context), document, [_record(spec, factor)], draw)


def _record(spec: GpuSpec, factor: EmbodiedFactor | None) -> dict[str, object]:
    return {
        "device": spec.name,
        "tdp_w": spec.tdp_w,
        "memory_gb": spec.memory_gb,
        "year": spec.year,
        "embodied_kgco2e": factor and factor.kg,
        "embodied_kgco2e_low": factor and factor.low_kg,
        "embodied_kgco2e_high": factor and factor.high_kg,
        "method": factor and factor.method,
        "source": factor and factor.source,
        "confidence": factor and factor.confidence,
    }


def _notes(spec: GpuSpec, factor: EmbodiedFactor | None) -> list[tuple[str, str]]:
    peak = spec.fp16_dense_tflops
    notes = [
        ("device", spec.name),
        ("also", ", ".join(spec.aliases)),
        ("die", f"{spec.die}, {spec.process_nm} nm, {spec.year}"),
        ("memory", f"{figure(spec.memory_gb)} GB {spec.memory_type}"),
        ("power", f"{figure(spec.tdp_w)} W TDP"),
        ("peak", f"{figure(peak)} TFLOP/s dense FP16" if peak else ""),
        ("source", spec.spec_source),
        ("doubt", spec.note),
    ]
    if factor is None:
        notes.append(("embodied", f"none known: give --embodied '{spec.name}=KG'"))
    else:
        bounds = ""
        if factor.low_kg < factor.high_kg:
            span = f"{figure(factor.low_kg)} to {figure(factor.high_kg)}"
            bounds = f" ({span}: {factor.range_reason})"
        notes += [
            ("embodied", f"{figure(factor.kg)} kgCO2e{bounds}"),
            ("method", f"{factor.method}; {factor.scope}"),
            ("source", factor.source),
        ]
    return [(label, text) for label, text in notes if text]


def _draw_rows(rows: tuple[EmbodiedRow, ...]) -> None:
    draw_table(
        (
            numbers("embodied", _MASS, [row.kg_co2e for row in rows]),
            words("class", [row.factor_class for row in rows]),
            words("grade", [row.grade for row in rows]),
            words("scope", [row.scope for row in rows], holds=Cells.PROSE),
        )
    )
