"""What the split is tried on: simulated engines and sensors, and what is held of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median

from fakes.sim_engine import DECODE, PREFILL, Truth
from fakes.sim_meter import Outcome, run


@dataclass(frozen=True, slots=True)
class Case:
    """A truth under a name; `held` False: it says what happens where the bars cannot be held."""

    name: str
    truth: Truth
    held: bool = True


CASES = (
    Case("counter every 100 ms", Truth()),
    Case("counter every 20 ms", Truth(refresh_s=0.02)),
    Case("counter every 50 ms, 150 ms late", Truth(refresh_s=0.05, lag_s=0.15)),
    Case("noise of 15 % a pass", Truth(noise=0.15)),
    Case("decode pays for context", Truth(c_j=2e-6)),
    Case("batches of 1 to 16", Truth(users=(0, 1, 2, 4, 8, 16))),
    Case("never idle: 110 W under load, 70 W known", Truth(users=(1, 4, 16, 64, 256)), held=False),
    Case("prefill beside decode costs more", Truth(x_j=2e-5), held=False),
    Case("one mix, one batch", Truth(users=(16,), prompts=(200,), answers=(60,)), held=False),
)
TAIL_S = 60.0


@dataclass(frozen=True, slots=True)
class Result:
    """Many seeds of a case: errors as ratios of the truth, by coefficient and by request."""

    case: Case
    outcomes: tuple[Outcome, ...]
    requests: tuple[float, ...]
    phases: tuple[float, float]

    @property
    def identified(self) -> float:
        """The part of the seeds in which a split was calibrated."""
        return sum(outcome.fit.identified for outcome in self.outcomes) / len(self.outcomes)

    @property
    def imbalance_uj(self) -> int:
        """Posted against metered, summed."""
        return sum(outcome.imbalance_uj for outcome in self.outcomes)

    def errors(self, name: str) -> list[float]:
        """What a coefficient is off by, in seeds that told one."""
        truth_j = getattr(self.case.truth, f"{name}_j")
        told = [getattr(outcome.fit, name) for outcome in self.outcomes]
        return [of.value_j / truth_j - 1.0 for of in told if of is not None]

    def held(self, name: str) -> float | None:
        """The part of the intervals that hold the truth; None where none was told."""
        truth_j = getattr(self.case.truth, f"{name}_j")
        told = [getattr(outcome.fit, name) for outcome in self.outcomes]
        inside = [of.low_j <= truth_j <= of.high_j for of in told if of is not None]
        return sum(inside) / len(inside) if inside else None


def results(cases: Iterable[Case], seeds: int, seconds: float) -> Iterator[Result]:
    """Each case over its seeds; requests are named in the last `TAIL_S` and a little before."""
    for case in cases:
        outcomes, errors, phases = [], [], []
        for seed in range(seeds):
            outcome = run(case.truth, seed, seconds, seconds - TAIL_S - 20.0)
            names = outcome.whole(seconds - TAIL_S, seconds - 2.0)
            errors += outcome.request_errors(names)
            if names:
                phases.append([outcome.phase_error(names, at) for at in (PREFILL, DECODE)])
            outcomes.append(outcome)
        medians = (median(row[PREFILL] for row in phases), median(row[DECODE] for row in phases))
        yield Result(case, tuple(outcomes), tuple(errors), medians)
