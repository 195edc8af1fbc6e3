"""Level 2 of the accounting, as plainly as it can be said: per step and request, in fractions.

Written from accounting.md section 3 alone; it shares no code with the heart and knows no tricks.
It answers for one device of which an engine holds fixed shares.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from wattledger.records import CostModel, RequestTokens, Step

IDLE, UNKNOWN = "engine_idle", "unattributed"
Split = dict[tuple[str, str], Fraction]
"""Microjoules by (request, activity); idle and unattributed stand under the request ""."""


@dataclass(frozen=True)
class Cell:
    """A stretch in which the meter rose evenly."""

    start_ns: int
    end_ns: int
    energy_uj: Fraction


def cells_of(points: Sequence[tuple[int, int]], start_ns: int, end_ns: int) -> list[Cell]:
    """A counter that rose at each of `points` (ns, uJ), cut to a window."""
    cells = []
    for (t0, e0), (t1, e1) in pairwise(points):
        low, high = max(t0, start_ns), min(t1, end_ns)
        if low < high:
            cells.append(Cell(low, high, Fraction((e1 - e0) * (high - low), t1 - t0)))
    return cells


def split(
    cells: Sequence[Cell],
    static_w: float | None,
    shares: tuple[Fraction, Fraction],
    steps: Sequence[Step],
    cost: CostModel,
) -> Split:
    """An engine's part of a window's cells; `shares` are of static and dynamic energy.

    Steps that end together are one forward pass: its f goes by heads among all in it.
    """
    fixed = {step: _fixed(step, steps, cost) for step in steps}
    length_ns = sum(cell.end_ns - cell.start_ns for cell in cells)
    energy_uj = sum((cell.energy_uj for cell in cells), Fraction(0))
    idle_uj_per_ns = Fraction(static_w or 0.0) / 1000
    static_uj = min(energy_uj, idle_uj_per_ns * length_ns)
    excess = {
        cell: max(cell.energy_uj - idle_uj_per_ns * (cell.end_ns - cell.start_ns), Fraction(0))
        for cell in cells
    }
    above_uj = sum(excess.values(), Fraction(0))
    found: Split = defaultdict(Fraction)
    for cell in cells:
        static = static_uj * Fraction(cell.end_ns - cell.start_ns, length_ns) * shares[0]
        dynamic = Fraction(0)
        if above_uj:
            dynamic = (energy_uj - static_uj) * excess[cell] / above_uj * shares[1]
        busy_ns = _busy_ns(cell, steps)
        busy = Fraction(busy_ns, cell.end_ns - cell.start_ns)
        if static_w is None:
            work = (static + dynamic) * busy
        else:
            work = static * busy + (dynamic if busy_ns else 0)
        found["", IDLE] += static + dynamic - work
        for piece_ns, live in _pieces(cell, steps):
            _piece(found, work * Fraction(piece_ns, busy_ns), live, fixed, cost)
    return found


def _pieces(cell: Cell, steps: Sequence[Step]) -> list[tuple[int, list[Step]]]:
    """The cell cut at every edge of a step: (length, steps alive), where any is."""
    edges = {cell.start_ns, cell.end_ns}
    for step in steps:
        edges |= {t for t in (step.start_ns, step.end_ns) if cell.start_ns < t < cell.end_ns}
    pieces = [
        (high - low, [s for s in steps if s.start_ns <= low and high <= s.end_ns])
        for low, high in pairwise(sorted(edges))
    ]
    return [(length, live) for length, live in pieces if live]


def _busy_ns(cell: Cell, steps: Sequence[Step]) -> int:
    return sum(length for length, _ in _pieces(cell, steps))


def _fixed(step: Step, steps: Sequence[Step], cost: CostModel) -> Fraction:
    """A step's part of the f of its pass."""
    if not step.requests:
        return Fraction(cost.f_j)
    in_pass = sum(
        len(other.requests)
        for other in steps
        if other.end_ns == step.end_ns and other.start_ns < other.end_ns
    )
    return Fraction(cost.f_j) * len(step.requests) / (in_pass or 1)


def _piece(
    found: Split,
    energy_uj: Fraction,
    live: Sequence[Step],
    fixed: Mapping[Step, Fraction],
    cost: CostModel,
) -> None:
    rates = [_weight(step, fixed[step], cost) / (step.end_ns - step.start_ns) for step in live]
    if not any(rates):
        rates = [Fraction(len(_phases(step.requests, fixed[step], cost)) or 1) for step in live]
    for step, rate in zip(live, rates, strict=True):
        _step(found, energy_uj * rate / sum(rates), step, fixed[step], cost)


def _step(found: Split, energy_uj: Fraction, step: Step, fixed: Fraction, cost: CostModel) -> None:
    phases = _phases(step.requests, fixed, cost)
    if not phases:
        found["", UNKNOWN] += energy_uj
        return
    total = sum((weight for _, _, weight in phases), Fraction(0))
    for request, activity, weight in phases:
        share = weight / total if total else Fraction(1, len(phases))
        found[request, activity] += energy_uj * share


def _weight(step: Step, fixed: Fraction, cost: CostModel) -> Fraction:
    if not step.requests:
        return fixed + Fraction(cost.b_j)
    return sum((_own(tokens, cost) for tokens in step.requests), fixed)


def _own(tokens: RequestTokens, cost: CostModel) -> Fraction:
    return (
        Fraction(cost.a_j) * tokens.prefill_tokens
        + Fraction(cost.b_j) * tokens.decode_tokens
        + Fraction(cost.c_j) * tokens.context_tokens
    )


def _phases(
    requests: Iterable[RequestTokens], step_fixed: Fraction, cost: CostModel
) -> list[tuple[str, str, Fraction]]:
    """Per request and phase: f/n by the request's own mix, context with its decode."""
    parts = list(requests)
    found = []
    for tokens in parts:
        fixed = step_fixed / len(parts)
        own, prefill = _own(tokens, cost), Fraction(cost.a_j) * tokens.prefill_tokens
        if not tokens.decode_tokens:
            found.append((tokens.request, "prefill", own + fixed))
        elif not tokens.prefill_tokens:
            found.append((tokens.request, "decode", own + fixed))
        else:
            mix = prefill / own if own else Fraction(1)
            found.append((tokens.request, "prefill", prefill + fixed * mix))
            found.append((tokens.request, "decode", own - prefill + fixed * (1 - mix)))
    return found


def tokens_of(steps: Sequence[Step], start_ns: int, end_ns: int) -> dict[tuple[str, str], int]:
    """Tokens of a window by (request, activity), cut linearly with cumulative rounding."""
    found: dict[tuple[str, str], int] = defaultdict(int)
    for step in steps:
        for tokens in step.requests:
            for activity, count in (
                ("prefill", tokens.prefill_tokens),
                ("decode", tokens.decode_tokens),
            ):
                inside = _until(step, count, end_ns) - _until(step, count, start_ns)
                if inside:
                    found[tokens.request, activity] += inside
    return dict(found)


def _until(step: Step, count: int, t_ns: int) -> int:
    """Tokens of a step before `t_ns`, rounded half up; all at its start where it has no length."""
    length_ns = step.end_ns - step.start_ns
    if not length_ns:
        return count if step.start_ns < t_ns else 0
    gone_ns = min(max(t_ns - step.start_ns, 0), length_ns)
    exact = Fraction(count * gone_ns, length_ns)
    return int(exact + Fraction(1, 2))
