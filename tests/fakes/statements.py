"""The hour of TV20 and what is asked of it, for the tests of carbon statements."""

from __future__ import annotations

import csv

from fakes.entries import DATA, Entry, window
from fakes.memory_store import MemoryStore
from wattledger.carbon.intensity import ConstantIntensity, IntensityPoint, StepSeries
from wattledger.carbon.pue import ConstantPue
from wattledger.records import Activity
from wattledger.statement.carbon import CarbonStatement, carbon_statement
from wattledger.statement.query import CarbonQuery
from wattledger.store.protocol import ImportedEntry
from wattledger.timespan import parse_instant

HOUR_S = 3600
CISO_262 = ConstantIntensity(262.0)


def at(text: str) -> int:
    return parse_instant(text, 0)


def ciso(*, without: tuple[str, ...] = ()) -> StepSeries:
    with (DATA / "ciso_2019-01-01_lifecycle.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["start_utc"] not in without]
    return StepSeries(
        [
            IntensityPoint(at(r["start_utc"]), at(r["end_utc"]), float(r["g_co2e_per_kwh"]))
            for r in rows
        ],
        source="ciso.csv",
    )


def two_jobs_and_idle() -> MemoryStore:
    """One hour of TV20: A half of it, B a quarter, idle the rest."""
    return MemoryStore(
        imports=[
            Entry(0, 1800, 540_000.0, static_j=108_000.0, job="A", decode=1000).on(),
            Entry(1800, 2700, 180_000.0, static_j=54_000.0, job="B").on(),
            Entry(2700, 3600, 54_000.0, static_j=54_000.0, activity=Activity.IDLE).on(),
        ]
    )


HOUR = CarbonQuery(window=window(0, HOUR_S), intensity=CISO_262, pue=ConstantPue(1.2), by=("job",))


def by_job(statement: CarbonStatement) -> dict[str | None, tuple[float, float]]:
    """Operational and embodied grams per job."""
    return {
        group.by["job"]: (group.total.grams.operational, group.total.grams.embodied)
        for group in statement.groups
    }


def only_line(*entries: ImportedEntry, query: CarbonQuery = HOUR) -> CarbonStatement:
    return carbon_statement(MemoryStore(imports=entries), query)
