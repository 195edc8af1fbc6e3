"""The truth table: known power through the real library path, booked beside spent."""

from __future__ import annotations

import sys

from benchmarks.table import Figure
from fakes.waveform_cases import groups
from fakes.waveform_rig import Outcome, run

HOUR_S = 3600


def _row(outcome: Outcome) -> str:
    booked, case = outcome.booked, outcome.case
    if case.bar is None:
        verdict = "cannot"
    else:
        verdict = f"<= {case.bar:.1%}" + ("" if abs(outcome.error) <= case.bar else " **missed**")
    cells = (
        case.name,
        f"{outcome.truth_uj / 1e6:,.0f}",
        f"{booked.energy_uj / 1e6:,.0f}",
        f"{outcome.error:+.3%}",
        verdict,
        f"{outcome.worst_minute:.2%}",
        outcome.quality,
        f"{booked.gaps}/{booked.resets}/{booked.wraps}",
        f"{outcome.unmetered_s:,.0f}",
        f"{booked.posted_uj - booked.energy_uj}",
    )
    return f"| {' | '.join(cells)} |"


def measure() -> list[Figure]:
    """Every case over a simulated hour; the table is printed as it grows."""
    worst = {"counter": 0.0, "gauge": 0.0}
    imbalance_uj = 0
    print(
        "| case | truth J | booked J | error | bar | worst minute | quality | gaps/resets/wraps "
        "| unmetered s | posted - metered uJ |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for group in groups():
        print(f"| **{group.name}** |" + " |" * 9)
        for outcome in run(group, HOUR_S):
            print(_row(outcome))
            booked, bar = outcome.booked, outcome.case.bar
            imbalance_uj += abs(booked.posted_uj - booked.energy_uj)
            if bar is not None:
                kind = "counter" if bar < 0.01 else "gauge"
                worst[kind] = max(worst[kind], abs(outcome.error) * 100)
        sys.stdout.flush()
    return [
        Figure("counters: worst error of an hour", worst["counter"], "%", 0.5),
        Figure("gauges: worst error of an hour where it can be held", worst["gauge"], "%", 2.0),
        Figure("posted less metered, summed over all cases", float(imbalance_uj), "uJ", 0.0),
    ]
