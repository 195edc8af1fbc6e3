"""The jobs and models statements: what used most energy in a window."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from wattledger.carbon.operational import refine
from wattledger.records import NS_PER_S, UJ_PER_J, Account, Activity, Amounts
from wattledger.statement.lines import add_amounts, is_coarse
from wattledger.statement.notices import coarse_notices
from wattledger.statement.query import EVERYTHING
from wattledger.statement.totals import Totals
from wattledger.store.protocol import Filters, Slice, Store
from wattledger.timespan import Window, format_instant

DEFAULT_LIMIT = 20
_MINUTE_NS = 60 * NS_PER_S
# First and last use are told to a minute, an hour or a day, whichever keeps the cells few.
_GRIDS_NS = (_MINUTE_NS, 60 * _MINUTE_NS, 24 * 60 * _MINUTE_NS)
_MAX_CELLS = 1500


@dataclass(frozen=True, slots=True)
class UserLine:
    """What one job or model used; `first_ns` and `last_ns` bound its use, to `grid_ns`."""

    name: str
    total: Totals
    prefill_uj: int
    hosts: tuple[str, ...]
    first_ns: int
    last_ns: int


@dataclass(frozen=True, slots=True)
class UsersStatement:
    """Jobs (or models) by energy, costliest first; `found` counts all of them."""

    kind: str
    window: Window
    users: tuple[UserLine, ...]
    found: int
    grid_ns: int
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Schema `wattledger.jobs/1` or `wattledger.models/1`; J, s and RFC 3339."""
        return {
            "schema": f"wattledger.{self.kind}s/1",
            "window": self.window.to_json(),
            f"{self.kind}s": [self._line(user) for user in self.users],
            "found": self.found,
            "time_resolution_s": self.grid_ns / NS_PER_S,
            "warnings": list(self.warnings),
        }

    def _line(self, user: UserLine) -> dict[str, object]:
        return {
            self.kind: user.name,
            **user.total.usage_json(),
            "prefill_j": user.prefill_uj / UJ_PER_J,
            "decode_j": user.total.decode_uj / UJ_PER_J,
            "first": format_instant(user.first_ns),
            "last": format_instant(user.last_ns),
            "hosts": list(user.hosts),
        }


def jobs_statement(
    store: Store, window: Window, filters: Filters = EVERYTHING, limit: int = DEFAULT_LIMIT
) -> UsersStatement:
    """The `limit` jobs of most energy; what belongs to no job is not among them."""
    return _users(store, window, filters, limit, kind="job", name_of=lambda x: x.job)


def models_statement(
    store: Store, window: Window, filters: Filters = EVERYTHING, limit: int = DEFAULT_LIMIT
) -> UsersStatement:
    """The `limit` models of most energy; what belongs to no model is not among them."""
    return _users(store, window, filters, limit, kind="model", name_of=lambda x: x.model)


def _users(
    store: Store,
    window: Window,
    filters: Filters,
    limit: int,
    *,
    kind: str,
    name_of: Callable[[Account], str | None],
) -> UsersStatement:
    grid_ns = next((g for g in _GRIDS_NS if window.length_ns <= g * _MAX_CELLS), _GRIDS_NS[-1])
    first_edge_ns = (window.start_ns // grid_ns + 1) * grid_ns
    edges = refine(window.start_ns, window.end_ns, range(first_edge_ns, window.end_ns, grid_ns))
    users: dict[str, list[Slice]] = {}
    for piece in store.slices(edges, filters).slices:
        name = name_of(piece.account)
        if name is not None and piece.amounts != Amounts():
            users.setdefault(name, []).append(piece)
    lines = sorted((_line(name, pieces) for name, pieces in users.items()), key=_costliest)
    warnings = tuple(coarse_notices(_coarse_ratio(users.values())))
    return UsersStatement(kind, window, tuple(lines[:limit]), len(lines), grid_ns, warnings)


def _line(name: str, pieces: list[Slice]) -> UserLine:
    return UserLine(
        name=name,
        total=Totals(
            add_amounts(piece.amounts for piece in pieces),
            decode_uj=_energy_uj(pieces, Activity.DECODE),
        ),
        prefill_uj=_energy_uj(pieces, Activity.PREFILL),
        hosts=tuple(sorted({piece.host for piece in pieces})),
        first_ns=min(piece.start_ns for piece in pieces),
        last_ns=max(piece.end_ns for piece in pieces),
    )


def _energy_uj(pieces: Iterable[Slice], activity: Activity) -> int:
    return sum(piece.amounts.energy_uj for piece in pieces if piece.account.activity is activity)


def _coarse_ratio(users: Iterable[Iterable[Slice]]) -> float:
    pieces = [piece for found in users for piece in found]
    total_uj = sum(piece.amounts.energy_uj for piece in pieces)
    coarse = (piece for piece in pieces if is_coarse(piece.account.method))
    return sum(piece.amounts.energy_uj for piece in coarse) / total_uj if total_uj else 0.0


def _costliest(line: UserLine) -> tuple[int, str]:
    return -line.total.amounts.energy_uj, line.name
