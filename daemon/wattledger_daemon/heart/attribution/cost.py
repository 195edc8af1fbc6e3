"""What a step costs each request and phase.

v(S) = f*[S not empty] + sum(a*prefill + b*decode + c*context). Its Shapley value is f/n plus
the request's own cost: exact, closed-form, and only ever a weight, because the total is the
meter's. Source: accounting.md section 3, vectors V2 and V9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wattledger.records import Activity, CostModel, RequestTokens, Step


@dataclass(frozen=True, slots=True)
class PhaseWeight:
    """Cost of one request's phase in a step, joules by the model."""

    request: str
    activity: Activity
    weight_j: float


def phase_weights(step: Step, cost: CostModel) -> list[PhaseWeight]:
    """The step's cost per (request, phase), in the step's order; [] without a breakdown."""
    fixed_j = cost.f_j / len(step.requests) if step.requests else 0.0
    return [weight for tokens in step.requests for weight in _of_request(tokens, fixed_j, cost)]


def _of_request(tokens: RequestTokens, fixed_j: float, cost: CostModel) -> list[PhaseWeight]:
    """A request's phases; its f/n follows its own phase mix, its context its decode."""
    prefill_j = cost.a_j * tokens.prefill_tokens
    decode_j = cost.b_j * tokens.decode_tokens
    context_j = cost.c_j * tokens.context_tokens
    name = tokens.request
    if not tokens.decode_tokens:
        return [PhaseWeight(name, Activity.PREFILL, prefill_j + context_j + fixed_j)]
    decode_j += context_j
    if not tokens.prefill_tokens:
        return [PhaseWeight(name, Activity.DECODE, decode_j + fixed_j)]
    own_j = prefill_j + decode_j
    mix = prefill_j / own_j if own_j > 0.0 else 1.0
    return [
        PhaseWeight(name, Activity.PREFILL, prefill_j + fixed_j * mix),
        PhaseWeight(name, Activity.DECODE, decode_j + fixed_j * (1.0 - mix)),
    ]


def phase_shares(step: Step, cost: CostModel) -> list[tuple[str, Activity, float]]:
    """`phase_weights` scaled to sum to 1; all-zero weights share equally."""
    weights = phase_weights(step, cost)
    total_j = sum(weight.weight_j for weight in weights)
    if total_j <= 0.0:
        return [(w.request, w.activity, 1.0 / len(weights)) for w in weights]
    return [(w.request, w.activity, w.weight_j / total_j) for w in weights]


def mixes(steps: Sequence[Step], cost: CostModel) -> tuple[list[int], list[Step]]:
    """Index of each step's mix, and one step of each mix.

    Steps of one mix compute the same for the same requests, as far as `cost` looks: a running
    batch repeats itself for thousands of steps, and is then shared out once.
    """
    known: dict[tuple[object, ...], int] = {}
    found: list[Step] = []
    of_step: list[int] = []
    for step in steps:
        key: tuple[object, ...] = tuple(
            (t.request, t.prefill_tokens, t.decode_tokens, t.context_tokens if cost.c_j else 0)
            for t in step.requests
        )
        if key not in known:
            known[key] = len(found)
            found.append(step)
        of_step.append(known[key])
    return of_step, found


def step_weight_j(step: Step, cost: CostModel) -> float:
    """Cost v of the whole step, joules by the model; f + b where its breakdown is unknown."""
    if not step.requests:
        return cost.f_j + cost.b_j
    return cost.f_j + sum(
        cost.a_j * t.prefill_tokens + cost.b_j * t.decode_tokens + cost.c_j * t.context_tokens
        for t in step.requests
    )
