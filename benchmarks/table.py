"""Figures beside their bars, and how they are printed."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime


class BenchError(Exception):
    """A bench that cannot be measured here."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure; `bar` None where there is only something to compare."""

    what: str
    value: float
    unit: str
    bar: float | None = None

    @property
    def held(self) -> bool:
        """Whether the bar is held; no bar is always held."""
        return self.bar is None or self.value <= self.bar


def print_table(figures: list[Figure]) -> bool:
    """Print a Markdown table with date and machine kind; whether every bar is held."""
    now = datetime.now(UTC).strftime("%Y-%m-%d")
    print(
        f"\n{now}, {os.cpu_count()}-core {platform.machine()} virtual machine without GPU, "
        f"{platform.system()}, Python {platform.python_version()}, `make bench`\n"
    )
    print("| what | measured | bar | |\n|---|---|---|---|")
    for figure in figures:
        bar = "" if figure.bar is None else f"<= {figure.bar:g} {figure.unit}"
        verdict = "" if figure.bar is None else ("held" if figure.held else "**missed**")
        print(f"| {figure.what} | {figure.value:.3g} {figure.unit} | {bar} | {verdict} |")
    sys.stdout.flush()
    return all(figure.held for figure in figures)
