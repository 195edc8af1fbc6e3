"""What an engine makes of a client's request id, and back; exact rules, no guess by substring.

llama-cpp-python takes the `X-Request-Id` header as it is. vLLM puts a kind before it and, where
one HTTP request becomes several of the engine's, a number behind it (read in 0.32.0,
vllm/entrypoints; X is the header, N a number):

    /v1/completions            cmpl-X-N         its response bears the id cmpl-X
    /v1/chat/completions       chatcmpl-X       a batch: chatcmpl-X_N
    /v1/embeddings, /pooling   embd-X-N, pooling-X-N, classify-X-N, score-X-N
    /v1/audio/...              transcribe-X, translate-X; long ones: transcribe-X-N
    /inference/v1/generate     generate-tokens-X
    others                     decision-X, generative-scoring-X-N

One of several choices (`n` above 1) may be told with /N behind all that. The Responses API
ignores the header: its ids are the engine's own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ALONE = ("chatcmpl", "transcribe", "translate", "generate-tokens", "decision")
"""Kinds whose name bears no number where the HTTP request is one request of the engine."""

_NUMBERED = {
    "cmpl": "-",
    "chatcmpl": "_",
    "embd": "-",
    "pooling": "-",
    "classify": "-",
    "score": "-",
    "generative-scoring": "-",
    "transcribe": "-",
    "translate": "-",
}
"""What stands before the number."""

_CHOICE = re.compile(r"/[0-9]{1,6}\Z")
_NUMBER = re.compile(r"[0-9]{1,9}\Z")
_KINDS = sorted({*_ALONE, *_NUMBERED}, key=len, reverse=True)


@dataclass(frozen=True, slots=True)
class Names:
    """Names that an id stands for: `plain` ones, and `stems` that want a number behind them.

    A stem counts only where no plain name is known: `chatcmpl-a_1` is the request `a_1` of its
    own, unless `a` was a batch.
    """

    plain: tuple[str, ...]
    stems: tuple[str, ...]

    def is_plain(self, name: str) -> bool:
        """Whether `name` is a plain one, or a choice of it."""
        return _CHOICE.sub("", name) in self.plain

    def is_numbered(self, name: str) -> bool:
        """Whether `name` is a stem and a number, or a choice of such."""
        bare = _CHOICE.sub("", name)
        return any(
            bare.startswith(stem) and _NUMBER.match(bare, len(stem)) is not None
            for stem in self.stems
        )


def names_of(asked: str) -> Names:
    """Every name that `asked` may stand for: the engine's, the header's, or the response's id."""
    plain = [asked, *(f"{kind}-{asked}" for kind in _ALONE)]
    stems = [f"{kind}-{asked}{mark}" for kind, mark in _NUMBERED.items()]
    kind = _kind_of(asked)
    if kind is not None and kind in _NUMBERED:
        stems.append(asked + _NUMBERED[kind])
    return Names(tuple(plain), tuple(stems))


def client_ids(name: str) -> tuple[str, ...]:
    """The headers that may have made this name of an engine's, the likeliest first."""
    bare = _CHOICE.sub("", name)
    kind = _kind_of(bare)
    if kind is None:
        return (bare,)
    rest = bare[len(kind) + 1 :]
    found = [rest] if kind in _ALONE else []
    stem, mark, number = rest.rpartition(_NUMBERED.get(kind, "\0"))
    if mark and stem and _NUMBER.match(number):
        found.append(stem)
    return tuple(found)


def _kind_of(name: str) -> str | None:
    return next((kind for kind in _KINDS if name.startswith(kind + "-")), None)
