"""The models statement: what each model used on each engine, and what its tokens cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wattledger.fits import Coefficient, Fit, KeptFit, in_words
from wattledger.records import UJ_PER_J, Activity, Device, DeviceKind
from wattledger.statement.jobs import DEFAULT_LIMIT, UsersStatement, models_statement
from wattledger.statement.lines import add_amounts
from wattledger.statement.query import EVERYTHING
from wattledger.statement.totals import Totals, ratio
from wattledger.store.protocol import Filters, FitBook, Slice, Store
from wattledger.timespan import Window, format_instant

_PHASES = (Activity.PREFILL, Activity.DECODE)


@dataclass(frozen=True, slots=True)
class Served:
    """One model on one engine of a host, with the last fit of its cost model, if there is any.

    `devices` are the engine's GPUs in words, else all its devices. `methods` are those that its
    phases were booked under.
    """

    model: str
    host: str
    engine: str | None
    devices: str
    total: Totals
    prefill_uj: int
    methods: tuple[str, ...]
    fit: Fit | None

    @property
    def j_per_prefill_token(self) -> float | None:
        """As booked; None without prefill."""
        return ratio(self.prefill_uj / UJ_PER_J, self.total.amounts.prefill_tokens)

    @property
    def j_per_decode_token(self) -> float | None:
        """As booked; None without decode."""
        return ratio(self.total.decode_uj / UJ_PER_J, self.total.amounts.decode_tokens)

    def to_json(self) -> dict[str, object]:
        """As booked in the window, and the fit; J and s."""
        amounts = self.total.amounts
        return {
            "host": self.host,
            "engine": self.engine,
            "devices": self.devices,
            "energy_j": amounts.energy_uj / UJ_PER_J,
            "prefill_j": self.prefill_uj / UJ_PER_J,
            "decode_j": self.total.decode_uj / UJ_PER_J,
            "requests": amounts.requests,
            "prefill_tokens": amounts.prefill_tokens,
            "cached_tokens": amounts.cached_tokens,
            "decode_tokens": amounts.decode_tokens,
            "j_per_prefill_token": self.j_per_prefill_token,
            "j_per_decode_token": self.j_per_decode_token,
            "methods": list(self.methods),
            "fit": fit_json(self.fit) if self.fit is not None else None,
        }


@dataclass(frozen=True, slots=True)
class ModelsStatement:
    """Models by energy, costliest first, and each one's engines in the same order."""

    users: UsersStatement
    served: tuple[Served, ...]

    def to_json(self) -> dict[str, object]:
        """Schema `wattledger.models/1`; J, s and RFC 3339."""
        document = self.users.to_json()
        lines = document["models"]
        assert isinstance(lines, list)
        document["models"] = [
            {
                **line,
                "j_per_prefill_token": ratio(line["prefill_j"], line["prefill_tokens"]),
                "engines": [s.to_json() for s in self.served if s.model == line["model"]],
            }
            for line in lines
        ]
        return document


def models_report(
    store: Store, window: Window, filters: Filters = EVERYTHING, limit: int = DEFAULT_LIMIT
) -> ModelsStatement:
    """The `limit` models of most energy, by engine; what belongs to no model is not among them."""
    users = models_statement(store, window, filters, limit)
    pieces: dict[tuple[str, str, str | None], list[Slice]] = {}
    for piece in store.slices([window.start_ns, window.end_ns], filters).slices:
        model = piece.account.model
        if model is not None:
            key = (model, piece.host, piece.account.engine)
            pieces.setdefault(key, []).append(piece)
    fits = store.fits(window.start_ns, window.end_ns) if isinstance(store, FitBook) else []
    order = [user.name for user in users.users]
    served = [_served(*key, found, fits) for key, found in pieces.items() if key[0] in order]
    served.sort(
        key=lambda one: (order.index(one.model), -one.total.amounts.energy_uj, one.engine or "")
    )
    return ModelsStatement(users, tuple(served))


def _served(
    model: str, host: str, engine: str | None, pieces: list[Slice], fits: list[KeptFit]
) -> Served:
    devices = in_words(_devices(pieces))
    phases = [piece for piece in pieces if piece.account.activity in _PHASES]
    by_phase = {
        phase: sum(p.amounts.energy_uj for p in phases if p.account.activity is phase)
        for phase in _PHASES
    }
    return Served(
        model,
        host,
        engine,
        devices,
        Totals(add_amounts(piece.amounts for piece in pieces), decode_uj=by_phase[Activity.DECODE]),
        by_phase[Activity.PREFILL],
        tuple(sorted({piece.account.method for piece in phases})),
        _fit_of(host, engine, (model, devices), fits),
    )


def _devices(pieces: Iterable[Slice]) -> list[Device]:
    found = {piece.device.device: piece.device for piece in pieces}
    gpus = [device for device in found.values() if device.kind is DeviceKind.GPU]
    return gpus or list(found.values())


def _fit_of(
    host: str, engine: str | None, what: tuple[str, str], fits: Iterable[KeptFit]
) -> Fit | None:
    """The last fit that this very engine is under: one like it may have another cost model."""
    mine = [
        fit
        for of, fit in fits
        if of == host and (fit.key.model, fit.key.devices) == what and engine in fit.engines
    ]
    return max(mine, key=lambda fit: fit.fitted_ns, default=None)


def fit_json(fit: Fit) -> dict[str, object]:
    """A fit flat: coefficients and bounds in J, null where they are not known."""
    told: dict[str, object] = {
        "kind": fit.key.kind,
        "method": fit.method,
        "since": format_instant(fit.since_ns),
        "fitted": format_instant(fit.fitted_ns),
        "identified": fit.identified,
        "reason": fit.reason or None,
        "rows": fit.rows,
        "rank": fit.rank,
    }
    for name, of in (("f", fit.f), ("a", fit.a), ("b", fit.b), ("c", fit.c)):
        told |= _bounds(name, of)
    return told | {
        "lag_s": fit.lag_s,
        "idle_w": fit.idle_w,
        "idle_basis": fit.idle_basis,
        "residual_ratio": fit.residual_ratio,
    }


def _bounds(name: str, of: Coefficient | None) -> dict[str, object]:
    if of is None:
        return dict.fromkeys((f"{name}_j", f"{name}_low_j", f"{name}_high_j"))
    return {f"{name}_j": of.value_j, f"{name}_low_j": of.low_j, f"{name}_high_j": of.high_j}
