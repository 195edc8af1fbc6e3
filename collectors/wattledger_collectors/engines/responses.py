"""Puts what a request took into the bytes of its response, and touches nothing else of them.

Pure: no clock, no wire. JSON is not written anew but cut open where `usage` ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Protocol

MEMBER = "wattledger"
_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"


class Energy(Protocol):
    """What is known of a request; joules."""

    @property
    def prefill_j(self) -> float:
        """Of the prompt."""

    @property
    def decode_j(self) -> float:
        """Of the answer."""

    @property
    def energy_j(self) -> float:
        """Both."""

    @property
    def gco2e(self) -> float | None:
        """Operational; None without a zone."""

    @property
    def decode_tokens(self) -> int:
        """Tokens of the answer."""

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt, computed or cached; None where that is not known."""

    @property
    def quality(self) -> str:
        """How the energy was metered."""

    @property
    def method(self) -> str:
        """How it was split."""

    @property
    def finished(self) -> bool:
        """Whether its end is told and metered."""

    @property
    def provisional(self) -> bool:
        """Whether it may change."""


def headers_of(energy: Energy) -> list[tuple[bytes, bytes]]:
    """The figures as response headers."""
    told = {
        "energy-j": f"{energy.energy_j:.6f}",
        "prefill-j": f"{energy.prefill_j:.6f}",
        "decode-j": f"{energy.decode_j:.6f}",
        "provisional": "true" if energy.provisional else "false",
        "quality": energy.quality,
        "method": energy.method,
    }
    if energy.gco2e is not None:
        told["gco2e"] = f"{energy.gco2e:.9f}"
    return [
        (f"x-wattledger-{name}".encode(), value.encode("ascii", "replace"))
        for name, value in told.items()
    ]


def member_of(energy: Energy) -> str:
    """The figures as the member that `usage` gets."""
    told: dict[str, object] = {
        "prefill_j": round(energy.prefill_j, 6),
        "decode_j": round(energy.decode_j, 6),
        "energy_j": round(energy.energy_j, 6),
    }
    if energy.gco2e is not None:
        told["gco2e"] = round(energy.gco2e, 9)
    told |= {
        "provisional": energy.provisional,
        "quality": energy.quality,
        "method": energy.method,
    }
    return f"{json.dumps(MEMBER)}: {json.dumps(told)}"


class Document:
    """A JSON object as text, and where the members of its top level lie; raises ValueError."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._ends: dict[str, int] = {}
        self.members: dict[str, object] = {}
        for name, value, end in _members(text):
            self.members[name], self._ends[name] = value, end

    @property
    def usage(self) -> Mapping[str, object] | None:
        """Its `usage`, None where there is none."""
        usage = self.members.get("usage")
        return usage if isinstance(usage, dict) else None

    @property
    def answer_tokens(self) -> int | None:
        """Tokens that the engine's own `usage` counts of the answer."""
        usage = self.usage or {}
        for name in ("completion_tokens", "output_tokens"):
            count = usage.get(name)
            if isinstance(count, int):
                return count
        return None

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens that the engine's own `usage` counts of the prompt."""
        count = (self.usage or {}).get("prompt_tokens")
        return count if isinstance(count, int) else None

    def with_energy(self, energy: Energy) -> str:
        """The same text, `usage` having one member more; unchanged where it has no `usage`."""
        usage = self.usage
        if usage is None or MEMBER in usage:
            return self._text
        at = self._ends["usage"] - 1
        comma = ", " if usage else ""
        return f"{self._text[:at]}{comma}{member_of(energy)}{self._text[at:]}"


def _members(text: str) -> Iterator[tuple[str, object, int]]:
    """Each member of a JSON object with the end of its value; raises ValueError."""
    at = _skip(text, 0, "{")
    while text[at : at + 1] != "}":
        name, at = _DECODER.raw_decode(text, at)
        if not isinstance(name, str):
            raise ValueError("a member has no name")
        at = _skip(text, at, ":")
        value, at = _DECODER.raw_decode(text, at)
        yield name, value, at
        at = _skip(text, at, "")
        if text[at : at + 1] != "}":
            at = _skip(text, at, ",")
    if text[at + 1 :].strip(_SPACE):
        raise ValueError("something follows the object")


def _skip(text: str, at: int, mark: str) -> int:
    """The place after white space, `mark`, and white space; raises ValueError."""
    at = _after_space(text, at)
    if not text.startswith(mark, at):
        raise ValueError(f"{mark} is missing at {at}")
    return _after_space(text, at + len(mark))


def _after_space(text: str, at: int) -> int:
    while text[at : at + 1] in _SPACE and at < len(text):
        at += 1
    return at


def final_usage(event: str) -> Document | None:
    """The last event of a stream whose client asked for `usage`: it has that, and no choices."""
    if '"usage"' not in event:
        return None
    try:
        document = Document(event)
    except ValueError:
        return None
    last = document.usage is not None and document.members.get("choices") == []
    return document if last else None
