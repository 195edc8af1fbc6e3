"""What the heart remembers of a host: meters, use, engines and their steps, in order of time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from wattledger.records import (
    DEFAULT_COST_MODEL,
    NS_PER_S,
    CostModel,
    CounterReading,
    Device,
    DeviceKind,
    Engine,
    Evidence,
    Finish,
    PinnedCost,
    PowerReading,
    Process,
    RequestOwner,
    UseRecord,
)
from wattledger_daemon.heart.attribution.cost import WindowSteps
from wattledger_daemon.heart.attribution.laying import DeviceWindow, carried_on
from wattledger_daemon.heart.attribution.whose import Whose
from wattledger_daemon.heart.attribution.window import EngineWindow
from wattledger_daemon.heart.columns import StepColumns
from wattledger_daemon.heart.engine_steps import EngineSteps
from wattledger_daemon.heart.metering import MAX_GAP_NS, Meter
from wattledger_daemon.heart.owners import Owners
from wattledger_daemon.heart.step_sums import StepSum
from wattledger_daemon.heart.tenures import Tenures
from wattledger_daemon.heart.timeline import Timeline
from wattledger_daemon.heart.token_devices import TokenDevices, natural_order

_GONE_NS = 180 * NS_PER_S
"""Silent for so long an engine may be forgotten: it is said again where it speaks after 60 s."""


class Touched(NamedTuple):
    """The stretch of time that a piece of evidence speaks of."""

    start_ns: int
    end_ns: int
    engine_event: bool = False
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """A finish as a stretch of one nanosecond."""

    start_ns: int
    end_ns: int
    finish: Finish


def _source(device: Device) -> tuple[int | None, bool]:
    return device.wrap_uj, device.estimated


def _settled(meter: Meter, since_ns: int | None, t_ns: int) -> Touched:
    """What a reading at `t_ns` speaks of: all that E(t) was not settled for before it came."""
    moved = since_ns is not None and meter.tip_ns != since_ns
    return Touched(min(since_ns, t_ns) if moved and since_ns is not None else t_ns, t_ns)


def _rows_of(use: UseRecord) -> int:
    return len(use.processes) + len(use.groups) + 1


class EvidenceBook:
    """Evidence of one host since `forget_before`, deduplicated by what it says.

    `latest_ns` is the latest moment spoken of.
    """

    def __init__(self, max_gap_ns: int = MAX_GAP_NS, *, live: bool = False) -> None:
        self._max_gap_ns = max_gap_ns
        self._live = live
        self._devices: dict[str, Device] = {}
        self._meters: dict[str, Meter] = {}
        self._uses: dict[str, Timeline[UseRecord]] = defaultdict(Timeline)
        self._pids_seen_ns: dict[str, dict[int, int]] = defaultdict(dict)
        self._tenures = Tenures()
        self._engines: dict[str, Engine] = {}
        # When an engine was last heard of, as `latest_ns` stood then.
        self._heard_ns: dict[str, int] = {}
        self._costs: dict[str, CostModel] = {}
        self._calibrated: Mapping[str, CostModel] = {}
        self._steps: dict[str, EngineSteps] = defaultdict(EngineSteps)
        self._owners = Owners()
        self._ended: Timeline[Ended] = Timeline()
        self._finished: set[Finish] = set()
        self._token_devices = TokenDevices()
        self.latest_ns: int | None = None
        self._use_rows = 0

    # ------------------------------------------------------------------ taking in

    def observe(self, evidence: Evidence) -> Touched | None:
        """Remember a piece of evidence; None where it is not about a stretch of time.

        Steps go by `observe_steps`.
        """
        touched = self._take(evidence)
        if touched is not None and (self.latest_ns is None or touched.end_ns > self.latest_ns):
            self.latest_ns = touched.end_ns
        return touched

    def _take(self, evidence: Evidence) -> Touched | None:
        match evidence:
            case CounterReading() | PowerReading():
                return self._take_reading(evidence)
            case UseRecord():
                return self._take_use(evidence)
            case RequestOwner():
                self._owners.tell(evidence)
            case Finish():
                return self._take_finish(evidence)
            case Device():
                self._take_device(evidence)
            case Process():
                self._take_process(evidence)
            case Engine():
                self._take_engine(evidence)
            case PinnedCost():
                self._costs[evidence.engine] = evidence.cost
        return None

    def _take_reading(self, reading: CounterReading | PowerReading) -> Touched:
        meter = self._meters[reading.device]
        since_ns = meter.tip_ns
        if isinstance(reading, CounterReading):
            meter.read_counter(reading)
        else:
            meter.read_power(reading)
        return _settled(meter, since_ns, reading.t_ns)

    def _take_device(self, device: Device) -> None:
        known = self._devices.get(device.device)
        self._devices[device.device] = device
        if known is not None and _source(known) != _source(device):
            meter = self._meters[device.device]
            meter.change_source(device.wrap_uj, estimated=device.estimated)
        if known is None:
            self._meters[device.device] = Meter(
                wrap_uj=device.wrap_uj,
                estimated=device.estimated,
                max_gap_ns=self._max_gap_ns,
                live=self._live,
            )

    def _take_use(self, use: UseRecord) -> Touched:
        self._uses[use.device].add(use)
        self._use_rows += _rows_of(use)
        seen_ns = self._pids_seen_ns[use.device]
        for process in use.processes:
            seen_ns[process.pid] = max(use.end_ns, seen_ns.get(process.pid, use.end_ns))
        if (device := self._devices.get(use.device)) is not None:
            pids = {process.pid for process in use.processes}
            for engine in self._engines.values():
                if not pids.isdisjoint(engine.pids):
                    self._token_devices.saw(engine.engine, device, use.start_ns, use.end_ns)
        return Touched(use.start_ns, use.end_ns)

    def observe_steps(self, steps: StepColumns) -> list[int]:
        """Remember steps, some at least; returns which of them were there already."""
        known = self._steps[steps.engine].add(steps)
        # A step of no length still stands in a window.
        latest_ns = max(*steps.ends_ns, max(steps.starts_ns) + 1)
        if self.latest_ns is None or latest_ns > self.latest_ns:
            self.latest_ns = latest_ns
        self._heard_ns[steps.engine] = self.latest_ns
        return known

    def _take_engine(self, engine: Engine) -> None:
        self._engines[engine.engine] = engine
        if self.latest_ns is not None:
            self._heard_ns[engine.engine] = self.latest_ns
        for device in self.devices:
            seen_ns = self._pids_seen_ns[device.device]
            at_ns = max((seen_ns[pid] for pid in engine.pids if pid in seen_ns), default=None)
            if at_ns is not None:
                self._token_devices.saw(engine.engine, device, at_ns, at_ns)

    def _take_finish(self, finish: Finish) -> Touched:
        touched = Touched(finish.t_ns, finish.t_ns + 1, engine_event=True)
        self._heard_ns[finish.engine] = max(finish.t_ns, self.latest_ns or finish.t_ns)
        if finish in self._finished:
            return touched._replace(duplicate=True)
        self._finished.add(finish)
        self._ended.add(Ended(finish.t_ns, finish.t_ns + 1, finish))
        return touched

    def _take_process(self, process: Process) -> None:
        """An engine loses a pid with the process that it was registered for."""
        if not self._tenures.tell(process, self.latest_ns):
            return
        for name, engine in sorted(self._engines.items()):
            if process.pid in engine.pids:
                self._tenures.part(process.pid, name)
                pids = tuple(pid for pid in engine.pids if pid != process.pid)
                self._engines[name] = replace(engine, pids=pids)

    # -------------------------------------------------------------------- answers

    @property
    def rows(self) -> int:
        """How much steps and use records weigh: runs, steps, and processes in use records."""
        return self._use_rows + sum(steps.rows for steps in self._steps.values())

    @property
    def first_ns(self) -> int | None:
        """Where the evidence begins; None where there is none to book."""
        starts = [meter.first_ns for meter in self._meters.values()]
        starts += [steps.first_ns for steps in self._steps.values() if steps]
        starts += [self._ended.first_ns] if self._ended else []
        return min((start for start in starts if start is not None), default=None)

    @property
    def devices(self) -> list[Device]:
        """Known devices, GPUs first."""
        return sorted(self._devices.values(), key=natural_order)

    @property
    def tenures(self) -> Tenures:
        """Who had a pid when."""
        return self._tenures

    def meter(self, device: str) -> Meter:
        """The meter of a known device."""
        return self._meters[device]

    def device_window(self, device: Device, start_ns: int, end_ns: int) -> DeviceWindow:
        """A device's energy and use in a window."""
        uses = self._uses[device.device].touching(start_ns, end_ns)
        cuts = [edge for use in uses for edge in (use.start_ns, use.end_ns)]
        intervals = self._meters[device.device].intervals(start_ns, end_ns, cuts)
        return DeviceWindow(device, intervals, uses)

    def carried_on(self, seen: DeviceWindow, end_ns: int) -> DeviceWindow:
        """A window as if who used its device last did so up to its end."""
        uses = self._uses.get(seen.device.device)
        return carried_on(seen, uses.latest if uses else None, end_ns)

    def engine_windows(self, start_ns: int, end_ns: int) -> list[EngineWindow]:
        """Every engine that registered or has steps, with those in a window, by name."""
        working = {name for name, steps in self._steps.items() if steps}
        names = sorted(self._engines.keys() | working)
        return [self.engine_window(name, start_ns, end_ns) for name in names]

    def engine_window(self, name: str, start_ns: int, end_ns: int) -> EngineWindow:
        """An engine with its steps in a window; one that never registered is a name alone."""
        engine = self.engine(name)
        return EngineWindow(
            engine,
            self.cost_of(name),
            self._window_steps(name, start_ns, end_ns),
            self.token_device(engine),
            *(names := self._tenures.owner_of(engine, start_ns)),
            Whose(*names, self._owners.of(name)),
        )

    def _window_steps(self, engine: str, start_ns: int, end_ns: int) -> WindowSteps:
        steps = self._steps.get(engine)
        blocks = steps.touching(start_ns, end_ns) if steps is not None else []
        return WindowSteps.of(blocks, start_ns, end_ns)

    def cost_of(self, engine: str) -> CostModel:
        """The engine's cost model: pinned, else calibrated, else the default weights."""
        return self._costs.get(engine) or self._calibrated.get(engine, DEFAULT_COST_MODEL)

    def calibrate(self, costs: Mapping[str, CostModel]) -> None:
        """Take these for the calibrated cost models by engine, and no others."""
        self._calibrated = costs

    @property
    def engines(self) -> list[Engine]:
        """Registered engines, by name."""
        return [self._engines[name] for name in sorted(self._engines)]

    def engine(self, name: str) -> Engine:
        """A registered engine; one that never registered is known by its name alone."""
        return self._engines.get(name) or Engine(name, "unknown", None, ())

    def finishes(self, start_ns: int, end_ns: int) -> list[Finish]:
        """Requests that finished in a window, by time, engine and id."""
        found = [ended.finish for ended in self._ended.touching(start_ns, end_ns)]
        return sorted(found, key=lambda finish: (finish.t_ns, finish.engine, finish.request))

    def token_device(self, engine: Engine) -> str | None:
        """The device that carries the engine's tokens: its first GPU, else its first device.

        Windows booked before a GPU was found keep theirs, unless restated. An engine that no use
        record has named yet has the host's first device; None on a host without devices.
        """
        chosen = self._token_devices.of(engine.engine)
        if chosen is not None:
            return chosen
        metered = [device for device in self.devices if device.kind is not DeviceKind.NODE]
        return metered[0].device if metered else None

    def has_steps(self, start_ns: int, end_ns: int) -> bool:
        """Whether any engine worked in a stretch."""
        return any(self._window_steps(name, start_ns, end_ns).places for name in self._steps)

    def step_totals(self, engine: str, start_ns: int, end_ns: int) -> list[StepSum]:
        """An engine's steps that touch a stretch, each summed over requests, by time."""
        return [*self._window_steps(engine, start_ns, end_ns).sums()]

    def is_void(self, start_ns: int, end_ns: int) -> bool:
        """Whether nothing happened in a stretch but a meter's energy across a gap."""
        return (
            not self._ended.touching(start_ns, end_ns)
            and not self.has_steps(start_ns, end_ns)
            and all(
                len(meter.intervals(start_ns, end_ns)) <= 1
                and not (meter.last_ns is not None and start_ns < meter.last_ns <= end_ns)
                for meter in self._meters.values()
            )
        )

    def roster(self) -> Iterator[Evidence]:
        """Who and what is known, apart from any stretch of time."""
        yield from self.devices
        yield from self._tenures
        yield from self._engines.values()
        yield from self._owners
        for name, cost in (dict(self._calibrated) | self._costs).items():
            yield PinnedCost(name, cost)

    def standing(self) -> Iterator[Evidence]:
        """Readings from which other meters go on as these will."""
        for name, meter in self._meters.items():
            yield from meter.standing(name)

    # ------------------------------------------------------------------ forgetting

    def forget_before(self, t_ns: int) -> None:
        """Forget what ended before `t_ns`, and engines and processes unseen since."""
        for meter in self._meters.values():
            meter.forget_before(t_ns)
        for uses in self._uses.values():
            self._use_rows -= sum(map(_rows_of, uses.forget_before(t_ns)))
        for steps in self._steps.values():
            steps.forget_before(t_ns)
        for ended in self._ended.forget_before(t_ns):
            self._finished.discard(ended.finish)
        for device, seen_ns in self._pids_seen_ns.items():
            self._pids_seen_ns[device] = {p: at for p, at in seen_ns.items() if at >= t_ns}
        self._tenures.forget_before(t_ns)
        self._forget_gone()
        self._owners.forget(self._named, t_ns)

    def _forget_gone(self) -> None:
        alive = {pid for seen_ns in self._pids_seen_ns.values() for pid in seen_ns}
        gone_ns = None if self.latest_ns is None else self.latest_ns - _GONE_NS
        for name in self._engines.keys() | self._heard_ns.keys() | self._steps.keys():
            heard_ns = self._heard_ns.get(name)
            speaks = heard_ns is not None and gone_ns is not None and heard_ns > gone_ns
            working = speaks or self._steps.get(name) or self._tenures.has_left(name)
            if not working and alive.isdisjoint(self.engine(name).pids):
                for book in (self._engines, self._heard_ns, self._steps):
                    book.pop(name, None)
                self._token_devices.drop(name)
                self._owners.drop(name)
        alive.update(pid for engine in self._engines.values() for pid in engine.pids)
        self._tenures.keep(alive)

    def _named(self, engine: str) -> set[str]:
        """Requests that any step or finish of an engine names."""
        steps = self._steps.get(engine)
        finished = {finish.request for finish in self._finished if finish.engine == engine}
        return finished | steps.requests() if steps is not None else finished
