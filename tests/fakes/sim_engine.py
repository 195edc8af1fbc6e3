"""An engine under continuous batching whose every joule is known, as evidence for an Accountant.

Closed loop: so many users at a time, from 1 to 256, each with a new prompt when its answer is
done; prompts are prefilled in chunks beside the decodes of others. All that is random comes
from one seed. Energy of a pass: (f + a * prefill + b * decode + c * context + x * prefill *
decode) * noise, over idle power; `x` is what no linear model has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import exp
from random import Random

from wattledger.records import NS_PER_S, RequestTokens, Step

PREFILL, DECODE = range(2)
_BUDGET_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Truth:
    """What the engine and its sensor really are; watts, joules, seconds."""

    idle_w: float = 110.0
    f_j: float = 2.4
    a_j: float = 0.0075
    b_j: float = 0.031
    c_j: float = 0.0
    x_j: float = 0.0
    noise: float = 0.05
    drift: float = 0.01
    refresh_s: float = 0.1
    lag_s: float = 0.0
    users: tuple[int, ...] = (0, 1, 4, 16, 64, 256)
    prompts: tuple[int, ...] = (40, 200, 600, 1500, 4000)
    answers: tuple[int, ...] = (20, 60, 150, 300)
    stay_s: tuple[float, float] = (4.0, 25.0)


@dataclass(slots=True)
class _Request:
    name: str
    prompt: int
    answer: int
    prefilled: int = 0
    decoded: int = 0
    chunks: int = 0
    began_s: float = 0.0


_Parts = list[tuple[_Request, int, int, int]]


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass, seconds, what it really drew over idle power, J, and what is told of it."""

    steps: tuple[Step, ...]
    start_s: float
    end_s: float
    energy_j: float


@dataclass(slots=True)
class Spent:
    """The true energy of a request per phase, J: of its passes, and of idle power under them."""

    work_j: list[float] = field(default_factory=lambda: [0.0, 0.0])
    still_j: list[float] = field(default_factory=lambda: [0.0, 0.0])
    ended_s: float | None = None

    def energy_j(self) -> float:
        """All of it."""
        return sum(self.work_j) + sum(self.still_j)


class SimEngine:
    """Makes passes until `until_s`; before `named_from_s` a pass is told as one request alone.

    That is much quicker, and all that calibration looks at. `overlapping`: a prefill that took
    three passes or more is told when it is done, as a step of its own beside the others, and a
    pass in which nobody got a token is not told at all.
    """

    def __init__(
        self, truth: Truth, seed: int, named_from_s: float = 0.0, *, overlapping: bool = False
    ) -> None:
        self.truth = truth
        self.spent: dict[str, Spent] = defaultdict(Spent)
        self.tokens = [0, 0]
        self._random = Random(seed)
        self._named_from_s = named_from_s
        self._requests: list[_Request] = []
        self._made = 0
        self._drift = 0.0
        self._overlapping = overlapping
        self._seq = 0

    def passes(self, until_s: float) -> Iterator[Pass]:
        """All passes in order of time."""
        now_s = change_s = 0.1
        users = 0
        while now_s < until_s:
            if now_s >= change_s:
                change_s = now_s + self._random.uniform(*self.truth.stay_s)
                users = self._random.choice(self.truth.users)
                mix = self._mix()
            while len(self._requests) < users:
                self._requests.append(self._request(mix))
            if not self._requests:
                now_s = change_s
                continue
            made = self._pass(now_s)
            yield made
            now_s = made.end_s
            if users < 8 and self._random.random() < 0.02:
                now_s += self._random.uniform(0.0, 0.3)

    def _mix(self) -> tuple[int, int]:
        return self._random.choice(self.truth.prompts), self._random.choice(self.truth.answers)

    def _request(self, mix: tuple[int, int]) -> _Request:
        self._made += 1
        prompt, answer = (max(1, round(n * self._random.uniform(0.5, 1.5))) for n in mix)
        return _Request(f"r{self._made}", prompt, answer)

    def _pass(self, start_s: float) -> Pass:
        decoding = [r for r in self._requests if r.prefilled == r.prompt]
        parts: _Parts = [(r, 0, 1, r.prompt + r.decoded) for r in decoding]
        budget = _BUDGET_TOKENS - len(decoding)
        for request in self._requests:
            if budget > 0 and request.prefilled < request.prompt:
                chunk = min(budget, request.prompt - request.prefilled)
                parts.append((request, chunk, 0, 0))
                budget -= chunk
        prefill = sum(part[1] for part in parts)
        decode = sum(part[2] for part in parts)
        context = sum(part[3] for part in parts)
        end_s = start_s + 0.012 + 2.2e-5 * decode + 9e-6 * prefill + 1e-9 * context
        truth = self.truth
        self._drift = 0.999 * self._drift + self._random.gauss(0.0, 0.045)
        noise = (1.0 + self._random.gauss(0.0, truth.noise)) * exp(truth.drift * self._drift)
        model_j = truth.f_j + truth.a_j * prefill + truth.b_j * decode + truth.c_j * context
        energy_j = (model_j + truth.x_j * prefill * decode) * noise
        named = start_s >= self._named_from_s
        if named:
            self._book(parts, energy_j / model_j, end_s - start_s, model_j)
        told = tuple(RequestTokens(r.name, p, d, c) for r, p, d, c in parts)
        if not named:
            told = (RequestTokens("", prefill, decode, context),)
        for request, chunk, decoded, _ in parts:
            if chunk:
                request.began_s = request.began_s or start_s
                request.chunks += 1
            request.prefilled += chunk
            request.decoded += decoded
            if request.decoded >= request.answer:
                self.spent[request.name].ended_s = end_s
        if self._overlapping:
            steps = self._overlap(parts, start_s, end_s)
        else:
            steps = (self._step(start_s, end_s, told),)
        self._requests = [r for r in self._requests if r.decoded < r.answer]
        self.tokens[PREFILL] += prefill
        self.tokens[DECODE] += decode
        return Pass(steps, start_s, end_s, energy_j)

    def _step(self, start_s: float, end_s: float, told: tuple[RequestTokens, ...]) -> Step:
        self._seq += 1
        return Step("e", self._seq, round(start_s * NS_PER_S), round(end_s * NS_PER_S), told)

    def _overlap(self, parts: _Parts, start_s: float, end_s: float) -> tuple[Step, ...]:
        steps, short = [], 0
        for request, chunk, _, _ in parts:
            if chunk and request.prefilled == request.prompt:
                if request.chunks > 2:
                    told = (RequestTokens("", request.prompt, 0, 0),)
                    steps.append(self._step(request.began_s, end_s, told))
                else:
                    short += request.prompt
        decode = sum(part[2] for part in parts)
        context = sum(part[3] for part in parts)
        if short or decode:
            told = (RequestTokens("", short, decode, context),)
            steps.append(self._step(start_s, end_s, told))
        return tuple(steps)

    def _book(
        self,
        parts: list[tuple[_Request, int, int, int]],
        noise: float,
        length_s: float,
        all_j: float,
    ) -> None:
        """A request's part of a pass: f / n and its own; of idle power the same part."""
        truth = self.truth
        for request, chunk, decoded, attended in parts:
            own_j = truth.f_j / len(parts) + truth.a_j * chunk + truth.b_j * decoded
            own_j += truth.c_j * attended
            phase = PREFILL if chunk else DECODE
            spent = self.spent[request.name]
            spent.work_j[phase] += own_j * noise
            spent.still_j[phase] += own_j / all_j * truth.idle_w * length_s
