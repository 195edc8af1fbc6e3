"""Both levels of attribution over one window, rounded once into integers that sum exactly.

All shares are worked out in floating point; each device's static energy, dynamic energy and
time are then apportioned by largest remainder, so the books balance whatever the floats did.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from wattledger.apportion import apportion, between
from wattledger.records import (
    Account,
    Activity,
    Amounts,
    CostModel,
    Device,
    Engine,
    Quality,
    Step,
    UseRecord,
)
from wattledger_daemon.heart.attribution.cost import mixes, phase_shares
from wattledger_daemon.heart.attribution.laying import DeviceWindow, Laid, lay, stretches_by_use
from wattledger_daemon.heart.attribution.shares import Holder, Nobody, Owner, shares_of
from wattledger_daemon.heart.attribution.steps import BusyTime, Quantities
from wattledger_daemon.heart.tenures import Tenures


@dataclass(frozen=True, slots=True)
class EngineWindow:
    """What is known of one engine in a window, and whose it is; `token_device` has its tokens."""

    engine: Engine
    cost: CostModel
    steps: Sequence[Step]
    token_device: str | None
    workload: str | None
    job: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One account's part of a device over the whole window, before it is dated."""

    device: str
    account: Account
    request: str | None
    amounts: Amounts


_Key = tuple[Account, str | None]
_Weights = tuple[float, float, float]


class _Draft:
    """One device's parts before rounding: by account, and by mix of an engine's steps."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.parts: dict[_Key, Quantities] = defaultdict(Quantities)
        self.by_mix: dict[tuple[str, int, Quality, str], Quantities] = defaultdict(Quantities)


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
        self._engines = {item.engine.engine: item for item in engines}
        self._engine_of_pid = {
            pid: item.engine.engine for item in engines for pid in item.engine.pids
        }
        self._tenures = tenures
        self._mixes = {name: mixes(item.steps, item.cost) for name, item in self._engines.items()}
        self._busy = {
            name: BusyTime(item.steps, item.cost, start_ns, end_ns)
            for name, item in self._engines.items()
        }

        # Where no step asks when its stretch of energy was spent, that need not be kept.
        self._quiet = not any(busy.is_busy for busy in self._busy.values())

    def entries(self, devices: Iterable[DeviceWindow]) -> list[Entry]:
        """Every entry of the window; per device they sum to its metered energy and time."""
        return [entry for device in devices for entry in self._device_entries(device)]

    # ---------------------------------------------------------------- one device

    def _device_entries(self, window: DeviceWindow) -> Iterator[Entry]:
        draft = _Draft(window.device)
        stretches = stretches_by_use(window, whole=self._quiet)
        energy_uj = sum(item.energy_uj for group in stretches.values() for item in group)
        length_ns = sum(item.length_ns for group in stretches.values() for item in group)
        static_uj = _static_uj(window.device, energy_uj, length_ns)
        for use, laid in lay(stretches, static_uj, energy_uj - static_uj, length_ns):
            self._share(draft, use, laid)
        self._to_requests(draft)
        amounts = _round(draft.parts, static_uj, energy_uj - static_uj, length_ns)
        self._add_tokens(window.device, amounts)
        for (account, request), amount in amounts.items():
            if amount != Amounts():
                yield Entry(window.device.device, account, request, amount)

    def _share(self, draft: _Draft, use: UseRecord | None, laid: Laid) -> None:
        """Level 1 under one use record, and level 2 for those holders that are engines."""
        shares = shares_of(draft.device.kind, use)
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
                account = Account(
                    Activity.PROCESS, quality, shares.method, draft.device.static_basis
                )
                account = self._held(account, holder, end_ns)
                draft.parts[account, None].add(_scaled(quantity, weights), 1.0)
        for engine, weights in engines.items():
            self._to_steps(draft, engine, weights, laid, shares.basis)

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
        self, draft: _Draft, engine: str, weights: _Weights, laid: Laid, basis: str
    ) -> None:
        busy, (mix_of, _) = self._busy[engine], self._mixes[engine]
        device, activity = draft.device, Activity.ENGINE_IDLE
        # Found once per quality: hashing an account costs more than the sum it finds.
        idle_of = {
            quality: draft.parts[
                self._engine_account(device, engine, activity, quality, basis), None
            ]
            for quality in dict.fromkeys(interval.quality for interval, _ in laid)
        }
        for interval, quantity in laid:
            steps, idle = busy.split(
                interval.start_ns,
                interval.end_ns,
                _scaled(quantity, weights),
                static_known=draft.device.static_w is not None,
            )
            idle_of[interval.quality].add(idle, 1.0)
            for index, part in steps.items():
                draft.by_mix[engine, mix_of[index], interval.quality, basis].add(part, 1.0)

    def _to_requests(self, draft: _Draft) -> None:
        for (engine, mix, quality, basis), part in draft.by_mix.items():
            step = self._mixes[engine][1][mix]
            if not step.requests:
                account = self._engine_account(
                    draft.device, engine, Activity.UNATTRIBUTED, quality, basis
                )
                draft.parts[account, None].add(part, 1.0)
            accounts = {
                activity: self._engine_account(draft.device, engine, activity, quality, basis)
                for activity in (Activity.PREFILL, Activity.DECODE)
            }
            for request, activity, share in phase_shares(step, self._engines[engine].cost):
                draft.parts[accounts[activity], request].add(part, share)

    def _engine_account(
        self, device: Device, engine: str, activity: Activity, quality: Quality, basis: str = ""
    ) -> Account:
        item = self._engines[engine]
        phased = activity in (Activity.PREFILL, Activity.DECODE)
        method = item.cost.method if phased else "steps"
        return Account(
            activity=activity,
            quality=quality,
            method=f"{method}/{basis}" if basis else method,
            static_basis=device.static_basis,
            workload=item.workload,
            job=item.job,
            engine=engine,
            model=item.engine.model,
        )

    # -------------------------------------------------------------------- tokens

    def _add_tokens(self, device: Device, amounts: dict[_Key, Amounts]) -> None:
        """Add the tokens of engines that this device carries, each step's part in the window."""
        for name, item in self._engines.items():
            if item.token_device != device.device:
                continue
            counts = self._token_counts(name)
            keys = _best_keys(name, amounts)
            for (request, activity), tokens in counts.items():
                quality = Quality.ESTIMATED if device.estimated else Quality.MEASURED
                fresh = (self._engine_account(device, name, activity, quality), request)
                key = keys.get((request, activity), fresh)
                held = amounts.get(key, Amounts())
                amounts[key] = (
                    replace(held, prefill_tokens=held.prefill_tokens + tokens)
                    if activity is Activity.PREFILL
                    else replace(held, decode_tokens=held.decode_tokens + tokens)
                )

    def _token_counts(self, engine: str) -> dict[tuple[str, Activity], int]:
        """Tokens per request and phase: whole steps counted by mix, the others cut."""
        counts: dict[tuple[str, Activity], int] = defaultdict(int)
        mix_of, found = self._mixes[engine]
        whole: Counter[int] = Counter()
        for step, mix in zip(self._engines[engine].steps, mix_of, strict=True):
            if self._start_ns <= step.start_ns and step.end_ns <= self._end_ns:
                whole[mix] += 1
            else:
                self._count(counts, step, step.start_ns, step.end_ns, 1)
        for mix, times in whole.items():
            self._count(counts, found[mix], self._start_ns, self._end_ns, times)
        return counts

    def _count(
        self,
        counts: dict[tuple[str, Activity], int],
        step: Step,
        start_ns: int,
        end_ns: int,
        times: int,
    ) -> None:
        """Add `times` the part of a step's tokens that lies in the window."""
        window = (start_ns, end_ns, self._start_ns, self._end_ns)
        for tokens in step.requests:
            for activity, count in (
                (Activity.PREFILL, tokens.prefill_tokens),
                (Activity.DECODE, tokens.decode_tokens),
            ):
                if count and (inside := between(count, *window)):
                    counts[tokens.request, activity] += inside * times


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


def _round(
    parts: Mapping[_Key, Quantities], static_uj: int, dynamic_uj: int, length_ns: int
) -> dict[_Key, Amounts]:
    """Integer amounts per key; each column sums to its total exactly."""
    static = _column(static_uj, {key: part.static_uj for key, part in parts.items()})
    dynamic = _column(dynamic_uj, {key: part.dynamic_uj for key, part in parts.items()})
    time = _column(length_ns, {key: part.device_ns for key, part in parts.items()})
    return {
        key: Amounts(static.get(key, 0), dynamic.get(key, 0), time.get(key, 0)) for key in parts
    }


def _column(total: int, weights: Mapping[_Key, float]) -> dict[_Key, int]:
    """`apportion` among those with a claim; with no claim at all, among everyone."""
    if not total:
        return {}
    claims = {key: weight for key, weight in weights.items() if weight > 0.0}
    return apportion(total, claims or dict.fromkeys(weights, 1.0))


def _best_keys(engine: str, amounts: Mapping[_Key, Amounts]) -> dict[tuple[str, Activity], _Key]:
    """Per request and phase of an engine, the key that holds most of its energy."""
    best: dict[tuple[str, Activity], _Key] = {}
    for key, amount in amounts.items():
        account, request = key
        if account.engine != engine or request is None:
            continue
        place = (request, account.activity)
        if place not in best or amount.energy_uj > amounts[best[place]].energy_uj:
            best[place] = key
    return best
