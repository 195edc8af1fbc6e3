"""A simulated engine on one metered GPU through the real Accountant; booked beside spent."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from statistics import median

from fakes.evidence import CLOCK, PID
from fakes.sim_engine import DECODE, PREFILL, Pass, SimEngine, Truth
from wattledger.fits import Fit
from wattledger.records import (
    NS_PER_S,
    UJ_PER_J,
    Activity,
    CounterReading,
    Device,
    DeviceKind,
    Engine,
    Evidence,
    Page,
    Process,
    ProcessUse,
    StaticBasis,
    UseRecord,
)
from wattledger_daemon.heart.accountant import Accountant, AccountantSettings

GPU = Device("gpu0", DeviceKind.GPU, "NVIDIA H200", 70.0, StaticBasis.CONFIG)
SETTINGS = AccountantSettings(learn_costs=True)
_PHASES = {Activity.PREFILL: PREFILL, Activity.DECODE: DECODE}


class _Counter:
    """A counter refreshed at times of its own, read late, rounded to millijoules."""

    def __init__(self, truth: Truth, random: Random) -> None:
        self._truth = truth
        self._phase_s = random.uniform(0.0, truth.refresh_s)
        self._times_s, self._energies_j = [0.0], [0.0]

    def add(self, made: Pass) -> None:
        idle_w = self._truth.idle_w
        for t_s, more_j in ((made.start_s, 0.0), (made.end_s, made.energy_j)):
            length_s = t_s - self._times_s[-1]
            if length_s > 0.0:
                self._energies_j.append(self._energies_j[-1] + idle_w * length_s + more_j)
                self._times_s.append(t_s)

    def read_uj(self, t_s: float) -> int:
        refresh_s = self._truth.refresh_s
        late_s = t_s - self._truth.lag_s - self._phase_s
        return int(self._at(late_s // refresh_s * refresh_s + self._phase_s) * 1e3) * 1000

    def _at(self, t_s: float) -> float:
        at = bisect_right(self._times_s, t_s) - 1
        if at < 0:
            return 0.0
        start_s, start_j = self._times_s[at], self._energies_j[at]
        if at + 1 == len(self._times_s):
            return start_j + self._truth.idle_w * (t_s - start_s)
        part = (t_s - start_s) / (self._times_s[at + 1] - start_s)
        return start_j + part * (self._energies_j[at + 1] - start_j)


@dataclass(slots=True)
class Outcome:
    """What was booked and what was spent; fits in the order in which they were told."""

    engine: SimEngine
    fits: list[Fit] = field(default_factory=list)
    pages: int = 0
    imbalance_uj: int = 0
    booked_uj: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    methods: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def fit(self) -> Fit:
        """The last fit told."""
        return self.fits[-1]

    def whole(self, from_s: float, until_s: float) -> list[str]:
        """Requests that ended in a stretch."""
        spent = self.engine.spent
        return [
            name
            for name, item in spent.items()
            if item.ended_s is not None and from_s <= item.ended_s < until_s
        ]

    def request_errors(self, names: list[str]) -> list[float]:
        """Booked over spent, less one, of each."""
        spent = self.engine.spent
        return [sum(self.booked_uj[n]) / UJ_PER_J / spent[n].energy_j() - 1.0 for n in names]

    def median_error(self, names: list[str]) -> float:
        """The median of what requests are off by."""
        return median(map(abs, self.request_errors(names)))

    def phase_error(self, names: list[str], phase: int) -> float:
        """What all these requests' joules of a phase are off by; so is its J/token."""
        spent = [self.engine.spent[name] for name in names]
        truth_j = sum(item.work_j[phase] + item.still_j[phase] for item in spent)
        booked_uj = sum(self.booked_uj[name][phase] for name in names)
        return booked_uj / UJ_PER_J / truth_j - 1.0


def evidence_of(
    engine: SimEngine, seed: int, seconds: float
) -> Iterator[tuple[float, list[Evidence]]]:
    """Evidence as it comes, a second at a time: polls at 10 Hz, use once a second, passes."""
    random = Random(seed + 1)
    counter = _Counter(engine.truth, random)
    passes = engine.passes(seconds)
    ahead = next(passes, None)
    yield 0.0, [GPU, Process(PID, 1, "vllm.service", "4711"), Engine("e", "vllm", "m", (PID,))]
    for second in range(int(seconds)):
        found: list[Evidence] = []
        while ahead is not None and ahead.end_s <= second + 1:
            counter.add(ahead)
            found += ahead.steps
            ahead = next(passes, None)
        for poll in range(10):
            t_s = second + poll / 10 + random.uniform(0.0, 0.003)
            found.append(CounterReading("gpu0", round(t_s * NS_PER_S), counter.read_uj(t_s)))
        span = (second * NS_PER_S, (second + 1) * NS_PER_S)
        found.append(UseRecord("gpu0", *span, (ProcessUse(PID, 60.0, 1 << 30),)))
        yield second + 1.0, found


def run(
    truth: Truth,
    seed: int,
    seconds: float,
    named_from_s: float | None = None,
    *,
    overlapping: bool = False,
) -> Outcome:
    """A simulation booked as the daemon books; requests are named from `named_from_s` on."""
    from_s = seconds if named_from_s is None else named_from_s
    engine = SimEngine(truth, seed, from_s, overlapping=overlapping)
    accountant = Accountant(CLOCK, SETTINGS)
    outcome = Outcome(engine)
    for now_s, found in evidence_of(engine, seed, seconds):
        for item in found:
            accountant.observe(item)
        now_ns = round(now_s * NS_PER_S)
        pages = accountant.due(now_ns) if now_s < int(seconds) else accountant.flush(now_ns)
        for page in pages:
            _take(outcome, page)
            accountant.booked(page)
        told = accountant.costs.take(CLOCK.epoch_ns + now_ns)
        outcome.fits += [item.fit for item in told if item.fit is not None]
    return outcome


def _take(outcome: Outcome, page: Page) -> None:
    outcome.pages += 1
    metered_uj = sum(item.energy_uj for item in page.metered)
    posted_uj = sum(posting.amounts.energy_uj for posting in page.postings)
    outcome.imbalance_uj += abs(metered_uj - posted_uj)
    for posting in page.postings:
        if posting.account.activity in _PHASES:
            outcome.methods[posting.account.method] += posting.amounts.energy_uj
    for posting in page.request_postings:
        phase = _PHASES.get(posting.account.activity)
        if posting.request and phase is not None:
            outcome.booked_uj[posting.request][phase] += posting.amounts.energy_uj
