"""The split's truth table: engines whose every joule is known, calibrated and booked."""

from __future__ import annotations

import sys
from statistics import median

from benchmarks.table import Figure
from fakes.sim_cases import CASES, Result, results

SEEDS = 12
SECONDS = 600.0


def _row(result: Result) -> str:
    cells = [result.case.name, f"{result.identified:.0%}"]
    for name in "abf":
        errors, held = result.errors(name), result.held(name)
        cells.append(f"{median(map(abs, errors)):.2%}" if errors else "-")
        cells.append(f"{max(map(abs, errors)):.2%}" if errors else "-")
        cells.append(f"{held:.0%}" if held is not None else "-")
    requests = sorted(map(abs, result.requests))
    cells += [
        f"{len(requests):,}",
        f"{median(requests):.2%}",
        f"{requests[len(requests) * 9 // 10]:.2%}",
        *(f"{error:+.1%}" for error in result.phases),
        str(result.imbalance_uj),
    ]
    return f"| {' | '.join(cells)} |"


def measure() -> list[Figure]:
    """Every case over its seeds; the table is printed as it grows."""
    print(
        f"{SEEDS} seeds of {SECONDS:.0f} s each\n\n"
        "| case | calibrated | a off | worst | held | b off | worst | held | f off | worst | held "
        "| requests | off, median | p90 | J/prefill token booked | J/decode token booked "
        "| posted - metered uJ |\n|" + "---|" * 17
    )
    found = []
    for result in results(CASES, SEEDS, SECONDS):
        print(_row(result))
        sys.stdout.flush()
        found.append(result)
    held = [result for result in found if result.case.held]
    off = max(median(map(abs, result.errors(name))) for result in held for name in "ab")
    inside = [result.held(name) or 0.0 for result in held for name in "ab"]
    requests = max(median(map(abs, result.requests)) for result in held)
    missed = 1.0 - sum(inside) / len(inside)
    return [
        Figure("J/token by phase: worst median of a case", off * 100, "%", 3.0),
        Figure("95 % intervals of a and b that miss the truth", missed * 100, "%", 10.0),
        Figure("energy of a request: worst median of a case", requests * 100, "%", 5.0),
        Figure("posted less metered", float(sum(r.imbalance_uj for r in found)), "uJ", 0.0),
    ]
