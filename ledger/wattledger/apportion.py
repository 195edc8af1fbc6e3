"""Exact integer shares: parts that always sum to the whole.

Two ways to cut an integer: among claimants by weight (largest remainder), and along time
(cumulative rounding).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from operator import sub
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def apportion(total: int, weights: Mapping[K, float]) -> dict[K, int]:
    """Split `total` by non-negative weights into integers that sum to it exactly.

    Largest-remainder rounding; ties go to the lesser key. All-zero weights share equally.
    Returns {} for no claimants. Source: accounting.md section 3, vector V1.
    """
    keys = sorted(weights, key=str)
    parts = apportion_in_order(total, [weights[key] for key in keys]) if keys else ()
    shares = dict(zip(keys, parts, strict=True))
    return {key: shares[key] for key in weights}


def apportion_in_order(total: int, weights: Sequence[float]) -> list[int]:
    """As `apportion`, of claimants in order: ties go to the earlier one.

    Raises ValueError for no claimants.
    """
    scale = math.fsum(weights)
    if scale <= 0.0:
        if not weights:
            raise ValueError("nobody to share among")
        weights = [1.0] * len(weights)
        scale = float(len(weights))
    exact = [total * (weight / scale) for weight in weights]
    parts = list(map(math.floor, exact))
    rest = total - sum(parts)
    if rest > 0:
        # Sorted by what each lacks; a stable sort leaves ties in order.
        order = sorted(range(len(parts)), key=list(map(sub, parts, exact)).__getitem__)
        for turn in range(rest):
            parts[order[turn % len(order)]] += 1
    elif rest < 0:
        # Only float noise leads here: a part rounded up past its exact value. Take it from the
        # largest, which can never fall below zero.
        parts[max(range(len(parts)), key=parts.__getitem__)] += rest
    return parts


def before(total: int, elapsed_ns: int, length_ns: int) -> int:
    """Part of `total` that lies before `elapsed_ns` of an even stretch of `length_ns`.

    Differences of this function telescope: any cutting of the stretch adds up to `total`.
    Rounds half up in integer arithmetic; a stretch of no length lies wholly at its start.
    """
    if elapsed_ns >= length_ns:
        return total
    if elapsed_ns <= 0:
        return 0
    return (2 * total * elapsed_ns + length_ns) // (2 * length_ns)


def between(total: int, start_ns: int, end_ns: int, from_ns: int, to_ns: int) -> int:
    """Part of `total`, even over [start_ns, end_ns), that lies in [from_ns, to_ns).

    A stretch of no length belongs whole to the window that holds its start.
    """
    length_ns = end_ns - start_ns
    if length_ns <= 0:
        return total if from_ns <= start_ns < to_ns else 0
    return before(total, to_ns - start_ns, length_ns) - before(total, from_ns - start_ns, length_ns)
