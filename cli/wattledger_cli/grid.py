"""`wattledger grid`: the intensities that statements can use."""

from __future__ import annotations

import typer

from wattledger_cli.figures import Quantity, Scale
from wattledger_cli.options import options_of
from wattledger_cli.output import draw_notes, draw_table, emit
from wattledger_cli.tables import numbers, words

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, help="Grid intensities that statements can use."
)
_INTENSITY = Quantity((Scale("gCO2e/kWh", 1.0),), ())


@app.callback()
def grid() -> None:
    """Grid intensities that statements can use."""


@app.command()
def zones(context: typer.Context) -> None:
    """List the bundled annual means.

    Each zone's latest is shown. --zone takes its code, its name, or the two-letter code.

    Example: wattledger grid zones --format csv
    """
    from wattledger.carbon.annual import ATTRIBUTION, annual_intensity
    from wattledger.carbon.annual import zones as known

    series = [annual_intensity(zone.code) for zone in known()]
    latest = [(one.zone, max(one.by_year), one.by_year[max(one.by_year)]) for one in series]
    records = [
        {"zone": zone.code, "name": zone.entity, "year": year, "gco2e_per_kwh": value}
        for zone, year, value in latest
    ]
    years = sorted({year for one in series for year in one.by_year})

    def draw() -> None:
        draw_table(
            (
                words("zone", [zone.code for zone, _, _ in latest]),
                words("name", [zone.entity for zone, _, _ in latest]),
                words("year", [str(year) for _, year, _ in latest]),
                numbers("intensity", _INTENSITY, [value for _, _, value in latest]),
            )
        )
        draw_notes(
            (
                ("years", f"{years[0]} to {years[-1]}; a later one gets the latest mean"),
                ("basis", "life cycle, average; annual means hide hours and seasons"),
                ("source", ATTRIBUTION),
            )
        )

    document = {"schema": "wattledger.zones/1", "source": ATTRIBUTION, "zones": records}
    emit(options_of(context), document, records, draw)
