"""A response's bytes with one member more: everything else as it was."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattledger_collectors.engines.responses import Document, final_usage, headers_of


@dataclass(frozen=True, slots=True)
class Told:
    prefill_j: float = 1.5
    decode_j: float = 2.25
    energy_j: float = 3.75
    gco2e: float | None = None
    decode_tokens: int = 3
    prompt_tokens: int | None = 5
    quality: str = "measured"
    method: str = "calibrated"
    finished: bool = True
    provisional: bool = True


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
USAGES = st.dictionaries(st.text(max_size=8).filter(lambda name: name != "wattledger"), JSON)
SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")])


@given(
    st.dictionaries(st.text(max_size=5), JSON), USAGES, SEPARATORS, st.booleans(), st.integers(0, 3)
)
def test_only_usage_gains_one_member(
    others: dict[str, object],
    usage: dict[str, object],
    separators: tuple[str, str],
    ascii_only: bool,
    at: int,
) -> None:
    others.pop("usage", None)
    items = list(others.items())
    items.insert(min(at, len(items)), ("usage", usage))
    text = json.dumps(dict(items), separators=separators, ensure_ascii=ascii_only)
    told = Document(text).with_energy(Told())
    assert json.loads(told) == {
        **dict(items),
        "usage": {**usage, "wattledger": json.loads(told)["usage"]["wattledger"]},
    }
    # Cut out again, every byte is back.
    start = told.index('"wattledger": {')
    end = told.index("}", start) + 1
    assert told[:start].removesuffix(", ") + told[end:] == text


def test_the_member() -> None:
    told = json.loads(Document('{"usage":{"completion_tokens":3}}').with_energy(Told(gco2e=0.5)))
    assert told["usage"] == {
        "completion_tokens": 3,
        "wattledger": {
            "prefill_j": 1.5,
            "decode_j": 2.25,
            "energy_j": 3.75,
            "gco2e": 0.5,
            "provisional": True,
            "quality": "measured",
            "method": "calibrated",
        },
    }


def test_the_headers() -> None:
    assert dict(headers_of(Told(gco2e=1e-6, method="a\u2192b"))) == {
        b"x-wattledger-energy-j": b"3.750000",
        b"x-wattledger-prefill-j": b"1.500000",
        b"x-wattledger-decode-j": b"2.250000",
        b"x-wattledger-provisional": b"true",
        b"x-wattledger-quality": b"measured",
        b"x-wattledger-method": b"a?b",
        b"x-wattledger-gco2e": b"0.000001000",
    }


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('{"usage": {"completion_tokens": 3}}', 3),
        ('{"usage": {"output_tokens": 4}}', 4),
        ('{"usage": {"completion_tokens": null}}', None),
        ('{"usage": null}', None),
        ("{}", None),
    ],
)
def test_the_engines_own_count(text: str, count: int | None) -> None:
    document = Document(text)
    assert document.answer_tokens == count
    if not document.usage:
        assert document.with_energy(Told()) == text


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", '{"a"', '{"a":1', '{"a":1,', '{"a":1}x', "{1:2}", '{"a" 1}', "\ud800"],
)
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Document(text)


@given(st.text(max_size=30))
def test_no_text_makes_any_other_fault(text: str) -> None:
    try:
        Document(text)
    except (ValueError, RecursionError):
        return
    json.loads(text)


@pytest.mark.parametrize(
    ("event", "last"),
    [
        ('{"choices":[],"usage":{"completion_tokens":3}}', True),
        ('{"choices":[{"index":0}],"usage":{"completion_tokens":3}}', False),
        ('{"choices":[],"usage":null}', False),
        ('{"choices":[]}', False),
        ("[DONE]", False),
        ('{"usage"', False),
    ],
)
def test_the_event_of_a_stream_that_tells_of_usage(event: str, last: bool) -> None:
    assert (final_usage(event) is not None) is last
