"""What a reader must know before believing a statement, one line each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from wattledger.carbon.intensity import Tier
from wattledger.records import DeviceKind, Quality
from wattledger.statement.coverage import share
from wattledger.statement.lines import Line
from wattledger.statement.terms import EmbodiedTerms
from wattledger.timespan import Window


def usage_notices(
    lines: Sequence[Line], booked_ns: Mapping[str, int], window: Window, *, prorated: bool
) -> list[str]:
    """What concerns energy, time and tokens."""
    notices: list[str] = []
    if prorated:
        notices.append(
            "an edge of the window, or of an interval in it, cuts stored windows: "
            "they are prorated linearly in time"
        )
    unknown = share(lines, lambda line: not line.key.static_known)
    if unknown:
        notices.append(
            f"the idle power behind {_percent(unknown)} of the energy is unknown: "
            "it is booked as dynamic"
        )
    estimated = share(lines, lambda line: line.key.quality is Quality.ESTIMATED)
    if estimated:
        notices.append(f"{_percent(estimated)} of the energy is estimated, not measured")
    notices += coarse_notices(share(lines, lambda line: line.key.coarse))
    return [*notices, *_time_notices(booked_ns, window)]


def coarse_notices(coarse_ratio: float) -> list[str]:
    """What concerns engines that tell of stretches of time alone; the share is by energy."""
    if not coarse_ratio:
        return []
    return [
        f"{_percent(coarse_ratio)} of the energy is split coarsely between prefill and decode: "
        "its engines tell of stretches of time, and of no single step"
    ]


def carbon_notices(lines: Sequence[Line], terms: EmbodiedTerms, *, embodied: bool) -> list[str]:
    """What concerns intensity and embodied carbon."""
    notices: list[str] = []
    stale = share(lines, lambda line: line.key.tier is Tier.LATEST_ANNUAL)
    if stale:
        sources = {line.key.source for line in lines if line.key.tier is Tier.LATEST_ANNUAL}
        notices.append(
            f"{_percent(stale)} of the energy is priced with the latest annual mean, "
            f"as its own year has none: {'; '.join(sorted(sources))}"
        )
    if embodied:
        return [*notices, *_embodied_notices(lines, terms)]
    return [*notices, "embodied carbon is left out, as asked (--no-embodied)"]


def _time_notices(booked_ns: Mapping[str, int], window: Window) -> list[str]:
    notices: list[str] = []
    silent: list[str] = []
    for name, device_ns in sorted(booked_ns.items()):
        filled = device_ns / window.length_ns
        if device_ns > window.length_ns:
            notices.append(
                f"{name} is booked for {filled:.4g} times the window's length: "
                "is the same time imported twice?"
            )
        elif device_ns < window.length_ns:
            silent.append(f"{name} {_percent(filled)}")
    if silent:
        more = f" and {len(silent) - 3} more" if len(silent) > 3 else ""
        notices.append(
            "device time does not fill the window, and only what is booked is charged: "
            f"{', '.join(silent[:3])}{more}"
        )
    return notices


def _embodied_notices(lines: Sequence[Line], terms: EmbodiedTerms) -> list[str]:
    models = sorted({line.key.device_model for line in lines if line.key.device_model})
    notices = [
        f"--embodied {name!r} names no device of this window and changes nothing: "
        f"they are {', '.join(models) or 'of unknown model'}"
        for name in terms.unmatched(models)
    ]
    gpus = {line.key.device_model for line in lines if line.key.kind is DeviceKind.GPU}
    for model in sorted(filter(None, gpus)):
        factor = terms.factor(model)
        if factor is None:
            notices.append(
                f"no embodied factor is known for {model!r}, it is left out: "
                f"add --embodied '{model}=KG'"
            )
        elif factor.confidence == "L":
            notices.append(
                f"the embodied factor of {model!r}, {factor.kg:g} kg ({factor.low_kg:g} to "
                f"{factor.high_kg:g}; {factor.method}), is of low confidence: "
                f"a better one goes in as --embodied '{model}=KG'"
            )
    return [*notices, *_left_out(lines, terms), *_written_off(lines)]


def _left_out(lines: Iterable[Line], terms: EmbodiedTerms) -> list[str]:
    """One line for the host's parts and for devices whose model nobody told."""
    parts = sorted(
        {
            line.key.device_model or f"{line.key.host}/{line.key.device} (model unknown)"
            for line in lines
            if (line.key.kind is not DeviceKind.GPU or line.key.device_model is None)
            and terms.factor(line.key.device_model) is None
        }
    )
    if not parts:
        return []
    more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    return [
        "embodied carbon of host parts counts only when given (--embodied 'MODEL=KG'): "
        f"left out {', '.join(parts[:3])}{more}"
    ]


def _written_off(lines: Iterable[Line]) -> list[str]:
    names = sorted({f"{x.key.host}/{x.key.device}" for x in lines if not x.key.in_service})
    return [
        f"{name} is outside its lifetime in part of the window: no embodied carbon is charged there"
        for name in names
    ]


def _percent(part: float) -> str:
    text = f"{100 * part:.1f} %"
    if text == "0.0 %":
        return "less than 0.1 %"
    return "more than 99.9 %" if text == "100.0 %" and part < 1.0 else text
