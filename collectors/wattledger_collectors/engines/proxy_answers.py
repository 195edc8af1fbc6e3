"""What an engine's answers say of the tokens it computed. Pure; standard library alone.

- Ollama's own API (docs.ollama.com/api/usage, ollama llm/llama_server.go): `prompt_eval_count` is
  the whole prompt, `prompt_eval_cached_count` its part from the cache (newer versions; where it is
  not told, reused tokens count as computed), `eval_count` what was generated; durations in ns.
- llama-server (tools/server of llama.cpp 0c1e570): `timings`, per choice, in ms; `prompt_n` is
  without `cache_n`. Choices of one prompt (`n` above 1) each repeat what it cost, and their
  indices stand together. Unfinished choices tell `timings` where `timings_per_token` asks for
  them, and `tokens_predicted` on `/completion`.
- OpenAI's `usage` (completions, chat, embeddings, responses): the prompt with its cached part.
  Anthropic's (messages): the prompt without. No durations, and in streams only where the client
  asks for it.

What is not told is not guessed: an answer without counts has no shares.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from wattledger_collectors.engines.proxy_http import Head

MOST_BYTES = 4 * 2**20
"""The longest line of a stream, or body of another answer, that is read along."""

_MOST_TOKENS = 2**29
_MOST_NS = 12 * 3600 * 10**9
_NS_PER_MS = 10**6
_ENDS = frozenset(("response.completed", "response.incomplete", "message_stop"))
_IDLE_REASONS = ("load", "unload")


@dataclass(frozen=True, slots=True)
class Share:
    """Tokens of one choice or of a whole answer, and when it was told (`told_ns`).

    None: not told. `prompt_tokens` holds the cached ones too.
    """

    prompt_tokens: int | None
    cached_tokens: int
    decode_tokens: int
    told_ns: int
    prefill_ns: int | None = None
    decode_ns: int | None = None

    @property
    def prefill_tokens(self) -> int:
        """Tokens of the prompt that were computed."""
        return (self.prompt_tokens or 0) - self.cached_tokens


class Answer:
    """One response, read along; times are CLOCK_MONOTONIC, given with the bytes.

    `first_ns` is when the first token came, where the answer is a stream that shows it; `ended`
    whether the engine has said that it is through; `partial` whether counts of some choices are
    kept back; `idle` whether it says that nothing was computed. `choices` is how many of them
    the request wanted of each prompt.
    """

    def __init__(self) -> None:
        self.model = ""
        self.choices = 1
        self.first_ns: int | None = None
        self.ended = False
        self.partial = False
        self.idle = False
        self._timings: dict[int, Share] = {}
        self._usage: dict[str, object] = {}
        self._usage_ns = 0
        self._ollama: Share | None = None
        self._choice = 0

    @property
    def shares(self) -> tuple[Share, ...]:
        """What was computed: by choice, else of the whole; () where it is not told."""
        if self._timings:
            return tuple(
                replace(share, prompt_tokens=0, cached_tokens=0, prefill_ns=0)
                if index % self.choices
                else share
                for index, share in sorted(self._timings.items())
            )
        share = self._ollama or _usage_share(self._usage, self._usage_ns)
        return () if share is None else (share,)

    def read(self, text: bytes, now_ns: int, *, streamed: bool) -> None:
        """Takes in a document, or one of a stream; what is no JSON object says nothing."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return
        for number, document in enumerate(found if isinstance(found, list) else [found]):
            if isinstance(document, dict):
                self._choice = number if isinstance(found, list) else self._choice
                self._document(document, now_ns, streamed)

    def _document(self, document: Mapping[str, object], now_ns: int, streamed: bool) -> None:
        nested = document.get("response"), document.get("message")
        places = [document, *(place for place in nested if isinstance(place, dict))]
        for place in places:
            model, usage = place.get("model"), place.get("usage")
            if isinstance(model, str) and model:
                self.model = _model_name(model)
            if isinstance(usage, dict):
                self._usage.update(usage)
                self._usage_ns = now_ns
        choices = document.get("choices")
        listed = choices if isinstance(choices, list) else []
        self._find_choice(document, listed)
        if streamed and self.first_ns is None and _shows_token(document, listed):
            self.first_ns = now_ns
        self._read_timings(document, now_ns)
        self._read_ollama(document, now_ns)
        if not streamed:
            # llama-server tells the counts of the first alone.
            self.partial = len(listed) > 1 and "timings" in document
        self.ended = self.ended or (
            document.get("done") is True
            or document.get("stop") is True
            or str(document.get("type")) in _ENDS
        )

    def _find_choice(self, document: Mapping[str, object], listed: Sequence[object]) -> None:
        """Whose counts these are: a chunk with `usage` names no choice and follows its own's."""
        place = listed[0] if listed else document
        index = place.get("index") if isinstance(place, dict) else None
        if isinstance(index, int):
            self._choice = index

    def _read_timings(self, document: Mapping[str, object], now_ns: int) -> None:
        timings = document.get("timings")
        if isinstance(timings, dict):
            computed, cached = _count(timings, "prompt_n"), _count(timings, "cache_n") or 0
            decoded = _count(timings, "predicted_n")
            if computed is not None and decoded is not None:
                self._timings[self._choice] = Share(
                    prompt_tokens=computed + cached,
                    cached_tokens=cached,
                    decode_tokens=decoded,
                    told_ns=now_ns,
                    prefill_ns=_duration(timings, "prompt_ms", _NS_PER_MS),
                    decode_ns=_duration(timings, "predicted_ms", _NS_PER_MS),
                )
        elif "tokens_predicted" in document and "tokens_evaluated" in document:
            decoded = _count(document, "tokens_predicted")
            if decoded:
                self._timings[self._choice] = Share(None, 0, decoded, now_ns)

    def _read_ollama(self, document: Mapping[str, object], now_ns: int) -> None:
        prompt = _count(document, "prompt_eval_count")
        decoded = _count(document, "eval_count")
        if prompt is None and decoded is None:
            self.idle = self.idle or document.get("done_reason") in _IDLE_REASONS
            return
        cached = _count(document, "prompt_eval_cached_count") or 0
        # A prompt that was all cached is left out by older versions.
        prompt = max(prompt or 0, cached)
        self._ollama = Share(
            prompt_tokens=prompt,
            cached_tokens=cached,
            decode_tokens=decoded or 0,
            told_ns=now_ns,
            prefill_ns=_duration(document, "prompt_eval_duration", 1),
            decode_ns=_duration(document, "eval_duration", 1),
        )


class Reader:
    """Cuts a response's content into documents for an `Answer`; keeps `MOST_BYTES` at most."""

    def __init__(self, head: Head, answer: Answer) -> None:
        kind = head.text(b"content-type").partition(";")[0].strip().lower()
        self._answer = answer
        self._streamed = kind in ("text/event-stream", "application/x-ndjson")
        self._events = kind == "text/event-stream"
        self._kept = bytearray()
        self._inflate = _inflater(head.text(b"content-encoding"))
        self._deaf = not (self._streamed or kind.endswith("json")) or self._inflate is None

    @property
    def listens(self) -> bool:
        """Whether this response can be read at all."""
        return not self._deaf

    def feed(self, data: bytes, now_ns: int) -> None:
        """Takes content in as it comes."""
        if self._deaf or self._inflate is None:
            return
        self._kept += self._inflate(data)
        if self._streamed:
            *lines, rest = self._kept.split(b"\n")
            self._kept = rest
            for line in lines:
                self._line(line, now_ns)
        if len(self._kept) > MOST_BYTES:
            self._deaf = True
            self._kept.clear()

    def end(self, now_ns: int) -> None:
        """The body is complete."""
        if not self._streamed:
            self._answer.read(bytes(self._kept), now_ns, streamed=False)
        elif self._kept:
            self._line(self._kept, now_ns)
        self._kept.clear()

    def _line(self, line: bytearray, now_ns: int) -> None:
        if not self._events:
            self._answer.read(bytes(line), now_ns, streamed=True)
        elif line.startswith(b"data:"):
            text = bytes(line[5:]).strip()
            if text == b"[DONE]":
                self._answer.ended = True
            else:
                self._answer.read(text, now_ns, streamed=True)


def _model_name(told: str) -> str:
    """llama-server names a model by its file, as it was given: the folder is this host's alone."""
    is_file = told.startswith("/") or told.endswith(".gguf")
    return (told.rpartition("/")[2] if is_file else told)[:200]


def _inflater(coding: str) -> Callable[[bytes], bytes] | None:
    if coding.lower() in ("", "identity"):
        return bytes
    if coding.lower() not in ("gzip", "x-gzip", "deflate"):
        return None
    # 32 + 15: the header says whether it is gzip's or zlib's (zlib.h, inflateInit2).
    inflater = zlib.decompressobj(47)

    def inflate(data: bytes) -> bytes:
        content = inflater.decompress(data, MOST_BYTES)
        if inflater.unconsumed_tail:
            raise ValueError("a response that inflates beyond measure")
        return content

    return inflate


def _usage_share(usage: Mapping[str, object], told_ns: int) -> Share | None:
    """OpenAI's or Anthropic's `usage`; None where it holds no counts or counts of no sense."""
    prompt = _count(usage, "prompt_tokens")
    prompt = _count(usage, "input_tokens") if prompt is None else prompt
    decoded = _count(usage, "completion_tokens") or _count(usage, "output_tokens") or 0
    if prompt is None:
        return Share(None, 0, decoded, told_ns) if decoded else None
    apart = "cache_read_input_tokens" in usage
    if apart:
        cached = _count(usage, "cache_read_input_tokens") or 0
        prompt += cached + (_count(usage, "cache_creation_input_tokens") or 0)
    else:
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        cached = (_count(details, "cached_tokens") or 0) if isinstance(details, dict) else 0
    return Share(prompt, min(cached, prompt), decoded, told_ns)


def _shows_token(document: Mapping[str, object], listed: Sequence[object]) -> bool:
    """Whether a chunk shows that a token was generated; the one that only names a role does not."""
    for choice in listed:
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if isinstance(delta, dict) and any(delta.get(key) for key in delta.keys() - {"role"}):
            return True
        if isinstance(choice, dict) and choice.get("text"):
            return True
    kind = document.get("type")
    if isinstance(kind, str):
        return kind.endswith("delta") and "message" not in kind
    message = document.get("message")
    shown = (document, message) if isinstance(message, dict) else (document,)
    return any(place.get(key) for place in shown for key in ("response", "content", "thinking"))


def _count(place: Mapping[str, object], name: str) -> int | None:
    value = place.get(name)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and isinstance(value, int) and 0 <= value < _MOST_TOKENS else None


def _duration(place: Mapping[str, object], name: str, unit_ns: int) -> int | None:
    value = place.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Also false for what is not a number.
    return round(value * unit_ns) if 0 <= value * unit_ns <= _MOST_NS else None
