"""Small symmetric linear systems, solved exactly enough and without a library."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import sqrt

_SINGULAR = 1e-10

Matrix = Sequence[Sequence[float]]
Vector = Sequence[float]


def solve(matrix: Matrix, columns: Sequence[Vector]) -> list[list[float]] | None:
    """Solve matrix x = column for each column; None where the symmetric matrix is singular.

    Scaled by its diagonal first, so that joules and tokens of any size weigh alike.
    """
    size = len(matrix)
    scale = [sqrt(matrix[i][i]) if matrix[i][i] > 0.0 else 0.0 for i in range(size)]
    if not all(scale):
        return None
    rows = [
        [matrix[i][j] / (scale[i] * scale[j]) for j in range(size)]
        + [column[i] / scale[i] for column in columns]
        for i in range(size)
    ]
    for at in range(size):
        pivot = max(range(at, size), key=lambda i: abs(rows[i][at]))
        if abs(rows[pivot][at]) < _SINGULAR:
            return None
        rows[at], rows[pivot] = rows[pivot], rows[at]
        for i in range(size):
            if i != at and (factor := rows[i][at] / rows[at][at]):
                rows[i] = [x - factor * y for x, y in zip(rows[i], rows[at], strict=True)]
    return [
        [rows[i][size + k] / rows[i][i] / scale[i] for i in range(size)]
        for k in range(len(columns))
    ]


def least_squares(matrix: Matrix, vector: Vector) -> list[float]:
    """The non-negative x of least squares, from the normal equations; 0 where it cannot be told.

    Every subset is looked at where the plain solution is not it: there are few columns. Of
    subsets that explain alike the smaller one, so that nothing is spread over twins.
    """
    size = len(matrix)
    whole = solve(matrix, [vector])
    if whole is not None and min(whole[0]) >= 0.0:
        return whole[0]
    best, best_gain = [0.0] * size, 0.0
    for count in range(1, size + 1):
        for chosen in combinations(range(size), count):
            found = solve(
                [[matrix[i][j] for j in chosen] for i in chosen], [[vector[i] for i in chosen]]
            )
            if found is None or min(found[0]) < 0.0:
                continue
            gain = sum(x * vector[i] for i, x in zip(chosen, found[0], strict=True))
            if gain > best_gain * (1.0 + 1e-9):
                best, best_gain = [0.0] * size, gain
                for i, x in zip(chosen, found[0], strict=True):
                    best[i] = x
    return best


def inflation(matrix: Matrix, at: int) -> float:
    """By how much the other columns inflate the variance of column `at`; inf where they are it."""
    unit = [1.0 if i == at else 0.0 for i in range(len(matrix))]
    found = solve(matrix, [unit])
    if found is None:
        return float("inf")
    return max(found[0][at] * matrix[at][at], 1.0)
