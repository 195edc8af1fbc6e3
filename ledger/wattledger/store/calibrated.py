"""Calibrations and their fits; the caller holds the transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

from wattledger.fits import Calibrated, Coefficient, Fit, FitKey, KeptFit

FITS_KEPT = 100
"""Per key: an hour under load tells a few."""
KEYS_KEPT = 256
"""Per host."""

_WHERE = "host = ? AND kind = ? AND ifnull(model, x'') = ifnull(?, x'') AND devices = ?"
_SCALARS = (
    "engine, fitted_ns, rows, rank, identified, reason, lag_s, idle_w, idle_basis, "
    "residual_ratio, method, since_ns, engines"
)
_COEFFICIENTS = ", ".join(f"{name}_{part}" for name in "fabc" for part in ("j", "low_j", "high_j"))


def calibrate(conn: sqlite3.Connection, host: str, told: Iterable[Calibrated]) -> None:
    """As `FitBook.calibrate`."""
    for item in told:
        row = (host, *item.key)
        found = conn.execute(f"SELECT id FROM calibration WHERE {_WHERE}", row).fetchone()  # noqa: S608 - ours
        if found is None:
            found = conn.execute(
                """INSERT INTO calibration (host, kind, model, devices, taught_ns, state)
                VALUES (?, ?, ?, ?, ?, ?) RETURNING id""",
                (*row, item.taught_ns, item.state),
            ).fetchone()
        else:
            conn.execute(
                "UPDATE calibration SET taught_ns = ?, state = ? WHERE id = ?",
                (item.taught_ns, item.state, found[0]),
            )
        if item.fit is not None:
            _add_fit(conn, found[0], item.fit)
    conn.execute(
        """DELETE FROM calibration WHERE host = ? AND id NOT IN (SELECT id FROM calibration
        WHERE host = ? ORDER BY taught_ns DESC, id DESC LIMIT ?)""",
        (host, host, KEYS_KEPT),
    )


def _add_fit(conn: sqlite3.Connection, calibration: int, fit: Fit) -> None:
    scalars = (
        fit.engine, fit.fitted_ns, fit.rows, fit.rank, fit.identified, fit.reason, fit.lag_s,
        fit.idle_w, fit.idle_basis, fit.residual_ratio, fit.method, fit.since_ns,
        json.dumps(fit.engines),
    )  # fmt: skip
    coefficients: list[float | None] = []
    for of in (fit.f, fit.a, fit.b, fit.c):
        coefficients += [None] * 3 if of is None else [of.value_j, of.low_j, of.high_j]
    values = (calibration, *scalars, *coefficients)
    conn.execute(
        f"""INSERT OR REPLACE INTO fit (calibration, {_SCALARS}, {_COEFFICIENTS})
        VALUES ({", ".join("?" * len(values))})""",  # noqa: S608 - ours
        values,
    )
    conn.execute(
        """DELETE FROM fit WHERE calibration = ? AND fitted_ns NOT IN (SELECT fitted_ns FROM fit
        WHERE calibration = ? ORDER BY fitted_ns DESC LIMIT ?)""",
        (calibration, calibration, FITS_KEPT),
    )


def calibrations(conn: sqlite3.Connection, host: str) -> list[str]:
    """As `FitBook.calibrations`."""
    rows = conn.execute(
        "SELECT state FROM calibration WHERE host = ? ORDER BY taught_ns, id", (host,)
    )
    return [state for (state,) in rows]


def fits(conn: sqlite3.Connection, start_ns: int, end_ns: int) -> list[KeptFit]:
    """As `FitBook.fits`."""
    rows = conn.execute(
        f"""SELECT host, kind, model, devices, {_SCALARS}, {_COEFFICIENTS}
        FROM fit JOIN calibration ON calibration.id = calibration
        WHERE fitted_ns < ? AND fitted_ns >= ifnull((SELECT max(fitted_ns) FROM fit AS last
            WHERE last.calibration = fit.calibration AND last.fitted_ns <= ?), 0)
        ORDER BY host, kind, model, devices, fitted_ns""",  # noqa: S608 - ours
        (end_ns, start_ns),
    )
    return [_kept(*row) for row in rows]


def _kept(  # noqa: PLR0917 - the columns of the query above
    host: str, kind: str, model: str | None, devices: str, engine: str, fitted_ns: int, rows: int,
    rank: int, identified: int, reason: str, lag_s: float, idle_w: float | None, idle_basis: str,
    residual_ratio: float, method: str, since_ns: int, engines: str,
    *coefficients: float | None,
) -> KeptFit:  # fmt: skip
    f, a, b, c = (_coefficient(*coefficients[at : at + 3]) for at in range(0, 12, 3))
    key = FitKey(kind, model, devices)
    fit = Fit(
        key, engine, fitted_ns, rows, rank, bool(identified), reason, f, a, b, c, lag_s, idle_w,
        idle_basis, residual_ratio, method, since_ns, tuple(json.loads(engines)),
    )  # fmt: skip
    return KeptFit(host, fit)


def _coefficient(
    value_j: float | None, low_j: float | None, high_j: float | None
) -> Coefficient | None:
    if value_j is None or low_j is None or high_j is None:
        return None
    return Coefficient(value_j, low_j, high_j)
