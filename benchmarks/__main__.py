"""`python -m benchmarks [NAME...]`; without a name hook, cli, daemon and peers.

`truth`, `split`, `export`, `tokens`, `throughput`, `soak` and `peers-apart` run only by name.
Exit 1: a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from benchmarks import (
    cli_cost,
    daemon_cost,
    engine_throughput,
    export_cost,
    hook_cost,
    peers,
    soak,
    split,
    tokens_cost,
    truth,
)
from benchmarks.table import BenchError, Figure, print_table

USUAL = ("hook", "cli", "daemon", "peers")
BENCHES = {
    "hook": hook_cost.measure,
    "cli": cli_cost.measure,
    "daemon": daemon_cost.measure,
    "peers": peers.measure,
    "peers-apart": peers.measure_apart,
    "truth": truth.measure,
    "split": split.measure,
    "export": export_cost.measure,
    "tokens": tokens_cost.measure,
    "throughput": engine_throughput.measure,
}


def main(argv: list[str]) -> int:
    """Run the benches named and print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHES)} or soak")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the soak")
    parser.add_argument("--csv", type=Path, help="where the soak's samples go")
    arguments = parser.parse_args(argv)
    benches = {**BENCHES, "soak": lambda: soak.measure(arguments.minutes, arguments.csv)}
    for name in arguments.names:
        if name not in benches:
            parser.error(f"unknown {name!r}; known: {', '.join(benches)}")
    figures: list[Figure] = []
    failed = []
    for name in arguments.names or USUAL:
        print(f"measuring: {name}", file=sys.stderr)
        try:
            figures += benches[name]()
        except BenchError as error:
            failed.append(f"{name} was not measured: {error}")
    held = print_table(figures)
    for line in failed:
        print(f"benchmarks: {line}", file=sys.stderr)
    return 0 if held and not failed else 1


sys.exit(main(sys.argv[1:]))
