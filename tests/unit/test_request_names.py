"""What an engine makes of a client's id: exact both ways, and never somebody else's request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattledger_collectors.engines.request_names import are_one, client_ids, names_of

HEADERS = st.text("ab-_0123#.", min_size=1, max_size=8)
MADE = (
    "{0}",
    "cmpl-{0}-{1}",
    "chatcmpl-{0}",
    "chatcmpl-{0}_{1}",
    "embd-{0}-{1}",
    "pooling-{0}-{1}",
    "transcribe-{0}",
    "transcribe-{0}-{1}",
    "generate-tokens-{0}",
    "generative-scoring-{0}-{1}",
)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("tenantA-42", "cmpl-tenantA-42-0"),
        ("tenantA-42", "cmpl-tenantA-42-17#r2"),
        ("tenantA-42", "chatcmpl-tenantA-42"),
        ("tenantA-42", "chatcmpl-tenantA-42#1"),
        ("cmpl-tenantA-42", "cmpl-tenantA-42-0"),
        ("cmpl-tenantA-42-0", "cmpl-tenantA-42-0"),
        ("chatcmpl-tenantA-42", "chatcmpl-tenantA-42"),
        ("resp_1f", "resp_1f_0"),
        ("7c3e", "7c3e"),
    ],
)
def test_the_names_that_are_surely_meant(asked: str, name: str) -> None:
    assert names_of(asked).is_sure(name)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("tenantA-4", "cmpl-tenantA-42-0"),
        ("tenantA", "cmpl-tenantA-42-0"),
        ("tenantA-42", "cmpl-tenantA-42-0-0"),
        ("tenantA-42", "chatcmpl-tenantA-42-0"),
        ("tenantA-42", "xcmpl-tenantA-42-0"),
        ("cmpl", "cmpl-tenantA-42-0"),
        ("a", "a#x"),
        ("a", "ab"),
    ],
)
def test_the_names_that_are_somebody_elses(asked: str, name: str) -> None:
    names = names_of(asked)
    assert not names.is_sure(name)
    assert not names.is_likely(name)


def test_a_batch_is_only_likely_as_another_header_makes_the_same_name() -> None:
    assert names_of("a").is_likely("chatcmpl-a_1")
    assert not names_of("a").is_sure("chatcmpl-a_1")
    assert names_of("a_1").is_sure("chatcmpl-a_1")


@given(HEADERS, st.integers(0, 999), st.sampled_from(MADE), st.sampled_from(("", "#0", "#r3")))
def test_every_name_that_is_made_is_found_and_lies_where_it_is_looked_for(
    header: str, number: int, form: str, choice: str
) -> None:
    name = form.format(header, number)
    assert header in client_ids(name) or form == "{0}"
    names = names_of(header)
    found = name + choice
    assert names.is_sure(found) or names.is_likely(found)
    assert found in names.plain or any(low <= found < high for low, high in names.ranges())


@given(HEADERS, HEADERS, st.integers(0, 99))
def test_a_numbered_name_is_one_headers_alone(one: str, other: str, number: int) -> None:
    if one != other and "#" not in one + other:
        assert not names_of(other).is_sure(f"cmpl-{one}-{number}") or other.startswith("cmpl-")


@pytest.mark.parametrize(
    ("found", "one"),
    [
        (["chatcmpl-a"], True),
        (["cmpl-a-0", "cmpl-a-1", "cmpl-a-2"], True),
        (["cmpl-a-0#0", "cmpl-a-0#1", "cmpl-a-1#0"], True),
        (["cmpl-a-0#s2", "cmpl-a-1#s2"], True),
        (["chatcmpl-a#0#s1", "chatcmpl-a#1#s1"], True),
        (["chatcmpl-a", "chatcmpl-a#r1"], False),
        (["chatcmpl-a", "chatcmpl-a#s1"], False),
        (["chatcmpl-a", "chatcmpl-a#0", "chatcmpl-a#1"], False),
        (["cmpl-a-0", "cmpl-a-1", "cmpl-a-0#r4"], False),
        (["chatcmpl-a", "embd-a-0"], False),
        (["transcribe-a", "transcribe-a-0"], False),
    ],
)
def test_what_one_http_request_can_have_become(found: list[str], one: bool) -> None:
    assert are_one("a", found) is one
