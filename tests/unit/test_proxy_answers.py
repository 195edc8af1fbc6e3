"""What engines' answers say, and where their bodies end, however the bytes are cut."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattledger_collectors.engines.proxy_answers import MOST_BYTES, Answer, Reader, Share
from wattledger_collectors.engines.proxy_http import (
    BadMessageError,
    Body,
    Head,
    response_body,
    response_head,
)

DATA = Path(__file__).resolve().parents[1] / "data" / "scrape"
MS = 10**6
KINDS = {
    ".json": "application/json; charset=utf-8",
    ".jsonl": "application/x-ndjson",
    ".sse": "text/event-stream",
}


def head(kind: str, coding: str = "") -> Head:
    lines = f"Content-Type: {kind}\r\n" + (f"Content-Encoding: {coding}\r\n" if coding else "")
    return response_head(f"HTTP/1.1 200 OK\r\n{lines.rstrip()}".encode())


def read(content: bytes, kind: str, step: int = 1 << 20, coding: str = "") -> Answer:
    """Read along in pieces; the clock is the number of the piece."""
    answer = Answer()
    reader = Reader(head(kind, coding), answer)
    for number, at in enumerate(range(0, len(content), step), start=1):
        reader.feed(content[at : at + step], number)
    reader.end(number + 1)
    return answer


def recorded(name: str) -> tuple[bytes, str]:
    path = DATA / name
    return path.read_bytes(), KINDS[path.suffix]


def counts(answer: Answer) -> list[tuple[int | None, int, int]]:
    return [(s.prompt_tokens, s.cached_tokens, s.decode_tokens) for s in answer.shares]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ollama/generate.jsonl", [(26, 0, 3)]),
        ("ollama/chat.jsonl", [(31, 0, 4)]),
        ("ollama/chat.json", [(40, 0, 5)]),
        ("ollama/chat_cached.jsonl", [(50, 45, 2)]),
        ("ollama/generate_old.jsonl", [(0, 0, 6)]),
        ("ollama/embed.json", [(8, 0, 0)]),
        ("ollama/load.json", []),
        ("llama_server/answer_chat.json", [(18, 6, 4)]),
        ("llama_server/answer_chat.sse", [(24, 6, 4)]),
        ("llama_server/answer_completion.sse", [(4, 3, 3)]),
        ("llama_server/answer_two_prompts.json", [(3, 2, 3)]),
    ],
)
def test_counts_of_real_and_documented_answers(name: str, expected: object) -> None:
    content, kind = recorded(name)
    for step in (1, 7, 1 << 20):
        answer = read(content, kind, step)
        assert counts(answer) == expected
        assert answer.model in ("tiny:1b", "embed:1b", "tiny.gguf")


def test_durations_are_the_engines_own() -> None:
    (share,) = read(*recorded("ollama/chat_cached.jsonl")).shares
    assert (share.prefill_ns, share.decode_ns) == (4 * MS, 20 * MS)
    assert (share.prefill_tokens, share.decode_tokens) == (5, 2)
    (share,) = read(*recorded("llama_server/answer_chat.json")).shares
    assert (share.prefill_ns, share.decode_ns) == (4_529_000, 2_970_000)


def test_choices_of_one_prompt_cost_it_once() -> None:
    answer = read(*recorded("llama_server/answer_chat_two.sse"))
    assert counts(answer) == [(18, 6, 3), (18, 6, 3)]
    answer.choices = 2
    assert counts(answer) == [(18, 6, 3), (0, 0, 3)]
    assert not answer.partial


def test_llama_server_tells_the_first_of_several_answers_alone() -> None:
    assert read(*recorded("llama_server/answer_two_prompts.json")).partial
    assert not read(*recorded("llama_server/answer_chat.json")).partial


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("/srv/models/a.gguf", "a.gguf"),
        ("models/a.gguf", "a.gguf"),
        ("maker/a-1b", "maker/a-1b"),
        ("qwen3:8b", "qwen3:8b"),
    ],
)
def test_a_model_is_named_without_its_folder(told: str, name: str) -> None:
    assert read(json.dumps({"model": told}).encode(), "application/json").model == name


def test_a_model_that_is_only_loaded_computes_nothing() -> None:
    assert read(*recorded("ollama/load.json")).idle


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 4}, (9, 0, 4)),
        ({"prompt_tokens": 9, "total_tokens": 9}, (9, 0, 0)),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 8},
            },
            (9, 8, 4),
        ),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 99}}, (9, 9, 0)),
        ({"prompt_tokens": 9, "prompt_tokens_details": None}, (9, 0, 0)),
        (
            {"input_tokens": 7, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 3}},
            (7, 3, 2),
        ),
        ({"input_tokens": 7, "output_tokens": 2, "cache_read_input_tokens": 3}, (10, 3, 2)),
        ({"output_tokens": 2}, (None, 0, 2)),
    ],
)
def test_usage_of_openai_and_anthropic(
    usage: dict[str, object], expected: tuple[int | None, int, int]
) -> None:
    assert counts(read(json.dumps({"usage": usage}).encode(), "application/json")) == [expected]


def sse(*documents: object) -> bytes:
    return b"".join(b"event: x\ndata: %s\r\n\r\n" % json.dumps(d).encode() for d in documents)


def test_anthropics_usage_comes_in_two_parts() -> None:
    begun = {"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 1}
    content = sse(
        {"type": "message_start", "message": {"model": "m", "usage": begun}},
        {"type": "content_block_delta", "delta": {"text": "a"}},
        {"type": "message_delta", "usage": {"output_tokens": 6}},
        {"type": "message_stop"},
    )
    answer = read(content, "text/event-stream")
    assert counts(answer) == [(7, 2, 6)]
    assert (answer.model, answer.ended) == ("m", True)


def test_the_responses_api_nests_its_usage() -> None:
    content = sse(
        {"type": "response.output_text.delta", "delta": "a"},
        {
            "type": "response.completed",
            "response": {"model": "m", "usage": {"input_tokens": 5, "output_tokens": 1}},
        },
    )
    answer = read(content, "text/event-stream")
    assert (counts(answer), answer.model, answer.ended) == ([(5, 0, 1)], "m", True)


def test_the_first_token_is_not_the_chunk_that_names_a_role() -> None:
    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    token = {"choices": [{"index": 0, "delta": {"reasoning_content": "a"}}]}
    first, second = sse(role), sse(token)
    answer = Answer()
    reader = Reader(head("text/event-stream"), answer)
    reader.feed(b": ping\n\n" + first, 1)
    assert answer.first_ns is None
    reader.feed(second, 2)
    reader.feed(second, 3)
    assert answer.first_ns == 2


def test_partial_counts_stand_until_newer_ones_come() -> None:
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": "a"}}], "timings": {"prompt_n": 4,
         "cache_n": 1, "predicted_n": n, "prompt_ms": 2.5, "predicted_ms": n}}
        for n in (1, 2, 3)
    ]  # fmt: skip
    answer = read(sse(*chunks), "text/event-stream")
    assert counts(answer) == [(5, 1, 3)]
    assert not answer.ended
    native = {"index": 0, "content": "a", "stop": False, "tokens_predicted": 2}
    assert counts(read(sse({**native, "tokens_evaluated": 9}), "text/event-stream")) == [
        (None, 0, 2)
    ]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "identity"])
def test_compressed_answers_are_read_too(coding: str) -> None:
    content, kind = recorded("ollama/generate.jsonl")
    packed = {"gzip": gzip.compress(content), "deflate": zlib.compress(content)}
    assert counts(read(packed.get(coding, content), kind, 5, coding)) == [(26, 0, 3)]


def test_what_cannot_be_read_says_nothing() -> None:
    content, kind = recorded("ollama/chat.json")
    assert counts(read(content, "text/html")) == []
    assert counts(read(content, kind, coding="br")) == []
    assert counts(read(b'{"a":"' + b"x" * (MOST_BYTES + 1) + b'"}', kind, 65536)) == []


WORDS = [
    *("usage", "timings", "prompt_n", "predicted_n", "cache_n", "prompt_ms", "predicted_ms"),
    *("choices", "delta", "message", "response", "model", "index", "type", "content", "done"),
    *("eval_count", "prompt_eval_count", "prompt_eval_cached_count", "tokens_predicted"),
    *("prompt_tokens", "completion_tokens", "input_tokens", "cache_read_input_tokens"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(WORDS),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(st.lists(JSON, max_size=4))
def test_no_nonsense_raises_or_gives_counts_that_the_daemon_refuses(
    documents: list[object],
) -> None:
    lines = b"".join(json.dumps(d).encode() + b"\n" for d in documents)
    for kind in ("application/x-ndjson", "application/json"):
        for share in read(lines or b"\n", kind).shares:
            assert 0 <= share.cached_tokens <= (share.prompt_tokens or 0) < 2**31
            assert share.prefill_tokens >= 0
            assert 0 <= share.decode_tokens < 2**31
            assert (share.prefill_ns or 0) >= 0
            assert (share.decode_ns or 0) >= 0


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.integers(1, 9), st.binary())
def test_chunks_end_where_they_end_however_they_are_cut(
    pieces: list[bytes], step: int, after: bytes
) -> None:
    wire = b"".join(b"%X;a=b\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\nT: 1\r\n\r\n"
    body, content, used = Body(chunked=True), b"", 0
    sent = wire + after
    for at in range(0, len(sent), step):
        if body.done:
            break
        took, found = body.feed(sent[at : at + step])
        used += took
        content += b"".join(found)
    assert body.done
    assert (content, used) == (b"".join(pieces), len(wire))


@pytest.mark.parametrize(
    "wire",
    [b"x\r\n", b"-1\r\n", b"1\nab", b"1\r\nabc\r\n", b"\r\n", b"1" * 9000, b"f" * 16 + b"\r\n"],
)
def test_malformed_chunks_are_refused(wire: bytes) -> None:
    with pytest.raises(BadMessageError):
        Body(chunked=True).feed(wire)


def test_a_response_of_two_minds_about_its_end_is_refused() -> None:
    both = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked"
    with pytest.raises(BadMessageError):
        response_body(response_head(both), b"GET")
    assert response_body(response_head(both), b"HEAD").done


def test_a_share_knows_what_was_computed() -> None:
    assert Share(10, 4, 3, 0).prefill_tokens == 6
    assert Share(None, 0, 3, 0).prefill_tokens == 0
