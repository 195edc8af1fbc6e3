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

Our hook puts `#N` behind all that for each of several choices (`n` above 1), `#sN` for the API
server N where there are several, and `#rN` where an id comes again among the latest. The Responses
API ignores the header: its ids are the engine's own, `resp_...`; each turn is `resp_..._N`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_ALONE = ("chatcmpl", "transcribe", "translate", "generate-tokens", "decision")
"""Kinds whose name bears no number where the HTTP request is one request of the engine."""

_NUMBERED = {
    "cmpl": "-",
    "embd": "-",
    "pooling": "-",
    "classify": "-",
    "score": "-",
    "generative-scoring": "-",
    "chatcmpl": "_",
    "transcribe": "-",
    "translate": "-",
}
"""What stands before the number."""

_MARKS = tuple(re.compile(mark + r"[0-9]{1,9}\Z") for mark in ("#r", "#s", "#"))
"""What our hook puts behind a name, the last first."""

_NUMBER = re.compile(r"[0-9]{1,9}\Z")
_KINDS = sorted({*_ALONE, *_NUMBERED}, key=len, reverse=True)


@dataclass(frozen=True, slots=True)
class Names:
    """Names that an id stands for: `plain` ones, and stems that want a number behind them.

    One of the `loose` stems counts only where nothing else is known: `chatcmpl-a_1` is a request
    of the header `a_1`, unless that of `a` was a batch.
    """

    plain: tuple[str, ...]
    stems: tuple[str, ...]
    loose: tuple[str, ...]

    def is_sure(self, name: str) -> bool:
        """Whether no other id makes this name; with or without a `#`."""
        return any(bare in self.plain or _numbered(bare, self.stems) for bare in _bared(name))

    def is_likely(self, name: str) -> bool:
        """Whether the id makes this name where it stands for several requests."""
        return any(_numbered(bare, self.loose) for bare in _bared(name))

    def ranges(self) -> tuple[tuple[str, str], ...]:
        """Stretches [low, high) of the order of text in which all but the plain names lie."""
        choices = ((name + "#", name + "$") for name in self.plain)
        numbered = ((stem + "0", stem + ":") for stem in (*self.stems, *self.loose))
        return (*choices, *numbered)


def _bared(name: str) -> Iterator[str]:
    """The name, and what is left of it as each of our marks is taken off."""
    yield name
    for mark in _MARKS:
        bare = mark.sub("", name)
        if bare != name:
            name = bare
            yield name


def are_one(asked: str, found: Sequence[str]) -> bool:
    """Whether these names that `asked` stands for can be all of one HTTP request.

    They are not where its id came again, or came to endpoints of several kinds.
    """
    seen = [_choice_of(name) for name in found]
    bares = {bare for bare, _ in seen}
    plain = bares.intersection(names_of(asked).plain)
    alike = len({_kind_of(bare) for bare in bares}) <= 1 and (not plain or len(bares) == 1)
    # A request is of one choice or of several, not both.
    single = {bare for bare, choice in seen if not choice}
    mixed = any(choice and bare in single for bare, choice in seen)
    return len(found) <= 1 or (alike and not mixed and len(set(seen)) == len(seen))


def request_of(name: str) -> str:
    """The name without the mark of its choice: choices share one prompt."""
    return _choice_of(name)[0]


def _choice_of(name: str) -> tuple[str, str]:
    """A name without our marks, and which choice it is, "" where there is one."""
    again, server, choice = _MARKS
    name = server.sub("", again.sub("", name))
    bare = choice.sub("", name)
    return bare, name[len(bare) :]


def _numbered(name: str, stems: tuple[str, ...]) -> bool:
    return any(
        name.startswith(stem) and _NUMBER.match(name, len(stem)) is not None for stem in stems
    )


def names_of(asked: str) -> Names:
    """Every name that `asked` may stand for: the engine's, the header's, or the response's id."""
    marks = {f"{kind}-{asked}": mark for kind, mark in _NUMBERED.items()}
    sure = [f"{kind}-{asked}" for kind in _NUMBERED if kind not in _ALONE]
    kind = _kind_of(asked)
    if kind is not None and kind in _NUMBERED:
        marks[asked] = _NUMBERED[kind]
        sure += [] if kind in _ALONE else [asked]
    if asked.startswith("resp_"):
        marks[asked] = "_"
        sure.append(asked)
    return Names(
        (asked, *(f"{kind}-{asked}" for kind in _ALONE)),
        tuple(name + marks[name] for name in sure),
        tuple(name + mark for name, mark in marks.items() if name not in sure),
    )


def client_ids(name: str) -> tuple[str, ...]:
    """The headers that may have made this name of an engine's, the likeliest first."""
    kind = _kind_of(name)
    if kind is None:
        return (name,)
    rest = name[len(kind) + 1 :]
    found = [rest] if kind in _ALONE else []
    stem, mark, number = rest.rpartition(_NUMBERED.get(kind, "\0"))
    if mark and stem and _NUMBER.match(number):
        found.append(stem)
    return tuple(found)


def _kind_of(name: str) -> str | None:
    return next((kind for kind in _KINDS if name.startswith(kind + "-")), None)
