"""`python -m benchmarks [daemon] [hook] [cli]`: all without a name. Exit 1: a bar is missed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from benchmarks import cli_cost, daemon_cost, hook_cost
from benchmarks.table import Figure, print_table

BENCHES = {"hook": hook_cost.measure, "cli": cli_cost.measure, "daemon": daemon_cost.measure}


def main(names: list[str]) -> int:
    """Run the benches named and print one table."""
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        print(f"benchmarks: unknown {unknown[0]!r}; known: {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    figures: list[Figure] = []
    for name in names or BENCHES:
        print(f"measuring: {name}", file=sys.stderr)
        figures += BENCHES[name]()
    return 0 if print_table(figures) else 1


sys.exit(main(sys.argv[1:]))
