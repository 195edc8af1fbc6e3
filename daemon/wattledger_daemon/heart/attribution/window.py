"""Both levels of attribution over one window, rounded once into integers that sum exactly.

All shares are worked out in floating point; each device's static energy, dynamic energy and
time are then apportioned by largest remainder, so the books balance whatever the floats did.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from wattledger.records import (
    CALIBRATED,
    Account,
    Activity,
    CostModel,
    Device,
    Engine,
    Quality,
    UseRecord,
)
from wattledger_daemon.heart.attribution.cost import WindowSteps
from wattledger_daemon.heart.attribution.entries import AccountOf, Draft, Entry
from wattledger_daemon.heart.attribution.laying import DeviceWindow, Laid, lay, stretches_by_use
from wattledger_daemon.heart.attribution.phases import Phases
from wattledger_daemon.heart.attribution.shares import Holder, Nobody, Owner, shares_of
from wattledger_daemon.heart.attribution.steps import BusyTime, Parts, Quantities
from wattledger_daemon.heart.attribution.whose import Owner as OwnerNames
from wattledger_daemon.heart.attribution.whose import Whose
from wattledger_daemon.heart.tenures import Tenures

COARSE = "coarse"
"""The method of phases that are split by counters read now and then."""


@dataclass(frozen=True, slots=True)
class EngineWindow:
    """What is known of one engine in a window, and whose it is; `token_device` has its tokens.

    `whose` tells it of its requests.
    """

    engine: Engine
    cost: CostModel
    steps: WindowSteps
    token_device: str | None
    workload: str | None
    job: str | None
    whose: Whose

    @property
    def method(self) -> str:
        """How its energy is split among requests and phases."""
        return COARSE if self.engine.coarse else self.cost.method


class _EngineBooks:
    """An engine's steps in a window, ready to be asked by every device."""

    def __init__(self, item: EngineWindow, start_ns: int, end_ns: int) -> None:
        weighed = list(item.steps.weighed(item.cost))
        self.item = item
        self.busy = BusyTime(weighed, start_ns, end_ns, by_cost=item.method == CALIBRATED)
        self.phases = Phases(item.steps, weighed, item.cost, item.whose)


_Weights = tuple[float, float, float]
_ByStep = dict[tuple[str, Quality, str], Parts]
"""By engine, quality and basis."""


class WindowBooks:
    """Attributes the energy of every device of a host in [start_ns, end_ns)."""

    def __init__(
        self,
        start_ns: int,
        end_ns: int,
        engines: Sequence[EngineWindow],
        tenures: Tenures,
    ) -> None:
        self._start_ns, self._end_ns = start_ns, end_ns
        self._engines = {
            item.engine.engine: _EngineBooks(item, start_ns, end_ns) for item in engines
        }
        self._engine_of_pid = {
            pid: item.engine.engine for item in engines for pid in item.engine.pids
        }
        self._tenures = tenures
        # Where no step asks when its stretch of energy was spent, that need not be kept.
        self._quiet = not any(books.busy.is_busy for books in self._engines.values())

    def entries(self, devices: Iterable[DeviceWindow]) -> Iterator[Entry]:
        """Every entry of the window; per device they sum to its metered energy and time."""
        for device in devices:
            yield from self._device_entries(device)

    # ---------------------------------------------------------------- one device

    def _device_entries(self, window: DeviceWindow) -> Iterator[Entry]:
        device = window.device
        draft = Draft(device.device)
        by_step: _ByStep = {}
        stretches = stretches_by_use(window, whole=self._quiet)
        energy_uj = sum(item.energy_uj for group in stretches.values() for item in group)
        length_ns = sum(item.length_ns for group in stretches.values() for item in group)
        static_uj = _static_uj(device, energy_uj, length_ns)
        for use, laid in lay(stretches, static_uj, energy_uj - static_uj, length_ns):
            self._share(device, draft, by_step, use, laid)
        for (engine, quality, basis), parts in by_step.items():
            self._to_requests(device, draft, parts, (engine, quality, basis))
        for name, books in self._engines.items():
            if books.item.token_device == device.device:
                self._add_tokens(device, draft, name)
        return draft.entries(static_uj, energy_uj - static_uj, length_ns)

    def _share(
        self,
        device: Device,
        draft: Draft,
        by_step: _ByStep,
        use: UseRecord | None,
        laid: Laid,
    ) -> None:
        """Level 1 under one use record, and level 2 for those holders that are engines."""
        shares = shares_of(device.kind, use)
        by_quality: dict[Quality, Quantities] = defaultdict(Quantities)
        for interval, quantity in laid:
            by_quality[interval.quality].add(quantity, 1.0)
        engines: dict[str, _Weights] = {}
        end_ns = use.end_ns if use is not None else self._end_ns
        # Not a set: the order of float sums must be the same in every run.
        for holder in dict.fromkeys([*shares.static, *shares.dynamic, *shares.time]):
            weights = (
                shares.static.get(holder, 0.0),
                shares.dynamic.get(holder, 0.0),
                shares.time.get(holder, 0.0),
            )
            engine = self._engine_of(holder, end_ns)
            if engine is not None:
                held = engines.get(engine, (0.0, 0.0, 0.0))
                engines[engine] = (
                    held[0] + weights[0],
                    held[1] + weights[1],
                    held[2] + weights[2],
                )
                continue
            for quality, quantity in by_quality.items():
                account = Account(Activity.PROCESS, quality, shares.method, device.static_basis)
                account = self._held(account, holder, end_ns)
                draft.parts[account].add(_scaled(quantity, weights), 1.0)
        for engine, weights in engines.items():
            self._to_steps(device, draft, by_step, (engine, shares.basis, weights), laid)

    def _engine_of(self, holder: Holder, end_ns: int) -> str | None:
        """The engine that a holder lived in at the end of a use record."""
        if not isinstance(holder, int):
            return None
        former = self._tenures.former(holder, end_ns)
        return self._engine_of_pid.get(holder) if former is None else former.engine

    def _held(self, account: Account, holder: Holder, end_ns: int) -> Account:
        """An account as that of a holder at the end of a use record."""
        if holder is Nobody.SYSTEM:
            return replace(account, workload="system")
        if isinstance(holder, Nobody):
            return replace(account, activity=Activity(holder.value))
        if isinstance(holder, Owner):
            return replace(account, workload=holder.workload, job=holder.job)
        process = self._tenures.at(holder, end_ns)
        if process is None:
            return account
        return replace(account, workload=process.workload, job=process.job)

    # ------------------------------------------------------------------- engines

    def _to_steps(
        self,
        device: Device,
        draft: Draft,
        by_step: _ByStep,
        held: tuple[str, str, _Weights],
        laid: Laid,
    ) -> None:
        engine, basis, weights = held
        busy = self._engines[engine].busy
        idle_of: dict[Quality, Quantities] = {}
        parts_of: dict[Quality, Parts] = {}
        # Found once per quality: hashing an account costs more than the sum it finds.
        for quality in dict.fromkeys(interval.quality for interval, _ in laid):
            idle = self._engine_account(device, engine, Activity.ENGINE_IDLE, quality, basis)
            idle_of[quality] = draft.parts[idle]
            parts_of[quality] = by_step.setdefault((engine, quality, basis), busy.parts())
        for interval, quantity in laid:
            idle_of[interval.quality].add(
                busy.split(
                    (interval.start_ns, interval.end_ns),
                    _scaled(quantity, weights),
                    parts_of[interval.quality],
                    static_known=device.static_w is not None,
                ),
                1.0,
            )

    def _to_requests(
        self, device: Device, draft: Draft, parts: Parts, key: tuple[str, Quality, str]
    ) -> None:
        engine, quality, basis = key
        phases = self._engines[engine].phases
        unknown = phases.unknown(parts)
        if unknown != Quantities():
            account = self._engine_account(device, engine, Activity.UNATTRIBUTED, quality, basis)
            draft.parts[account].add(unknown, 1.0)
        draft.share(engine, phases.known, phases.split(parts), self._account_of(device, draft, key))

    def _add_tokens(self, device: Device, draft: Draft, engine: str) -> None:
        """Add the tokens of an engine that this device carries, each step's part in the window."""
        phases = self._engines[engine].phases
        quality = Quality.ESTIMATED if device.estimated else Quality.MEASURED
        tokens = phases.tokens(self._start_ns, self._end_ns)
        draft.count(
            engine, phases.known, tokens, self._account_of(device, draft, (engine, quality, ""))
        )

    def _account_of(self, device: Device, draft: Draft, key: tuple[str, Quality, str]) -> AccountOf:
        """Makes the account of a phase and an owner, each once for a device."""
        engine, quality, basis = key
        made = draft.accounts[key]

        def account(activity: Activity, owner: OwnerNames) -> Account:
            # No activity in the key: to hash one takes longer than all the rest.
            whose = (activity is Activity.DECODE, owner)
            known = made.get(whose)
            if known is None:
                known = self._engine_account(device, engine, activity, quality, basis, owner=owner)
                made[whose] = known
            return known

        return account

    def _engine_account(
        self,
        device: Device,
        engine: str,
        activity: Activity,
        quality: Quality,
        basis: str,
        *,
        owner: OwnerNames | None = None,
    ) -> Account:
        item = self._engines[engine].item
        phased = activity in (Activity.PREFILL, Activity.DECODE)
        method = item.method if phased else "steps"
        workload, job = owner or (item.workload, item.job)
        return Account(
            activity=activity,
            quality=quality,
            method=f"{method}/{basis}" if basis else method,
            static_basis=device.static_basis,
            workload=workload,
            job=job,
            engine=engine,
            model=item.engine.model,
        )


def _static_uj(device: Device, energy_uj: int, length_ns: int) -> int:
    """min(E, P_idle * dt); 0 where idle power is unknown."""
    if device.static_w is None:
        return 0
    return min(energy_uj, round(device.static_w * length_ns / 1000))


def _scaled(quantity: Quantities, weights: _Weights) -> Quantities:
    return Quantities(
        quantity.static_uj * weights[0],
        quantity.dynamic_uj * weights[1],
        quantity.device_ns * weights[2],
    )
