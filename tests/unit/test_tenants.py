"""Whose a request is: patterns, rules in order, hostile words, and bounds."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattledger.records import NS_PER_S, RequestOwner
from wattledger_daemon import tenants
from wattledger_daemon.tenants import OTHERS, Pattern, Tenants, tenant_rule_of

ENGINE = ("vllm-7", "llama")
DAY_NS = 86_400 * NS_PER_S


@pytest.mark.parametrize(
    ("pattern", "text", "captured"),
    [
        ("cmpl-{tenant}-*", "cmpl-acme-42-0", {"tenant": "acme"}),
        ("cmpl-{tenant}-*", "cmpl--acme-42", {"tenant": "-acme"}),
        ("cmpl-{tenant}-*", "chatcmpl-acme-42", None),
        ("chatcmpl-{tenant}-*", "chatcmpl-acme-42", {"tenant": "acme"}),
        ("*cmpl-{tenant}-*", "chatcmpl-acme-42", {"tenant": "acme"}),
        ("*cmpl-{tenant}-*", "cmpl-acme-", {"tenant": "acme"}),
        ("*cmpl-{tenant}-*", "cmpl-acme", None),
        ("{team}/{user}", "a/b/c", {"team": "a", "user": "b/c"}),
        ("{team}-*-x", "a-b-x-x", {"team": "a"}),
        ("*-{last}", "a-b-c", {"last": "b-c"}),
        ("r?q", "rxq", {}),
        ("r?q", "rxxq", None),
        ("[a]*", "[a]b", {}),
        ("[a]*", "ab", None),
        ("a", "ab", None),
        ("*", "", {}),
        ("{all}", "", None),
        ("a*a", "a", None),
    ],
)
def test_patterns(pattern: str, text: str, captured: dict[str, str] | None) -> None:
    assert Pattern(pattern).match(text) == captured


PARTS = st.lists(st.sampled_from(["a", "b", "-", "{x}"]), max_size=6)


@given(PARTS, st.text("ab-", max_size=8))
def test_a_pattern_fits_what_its_captures_make_of_it(parts: list[str], text: str) -> None:
    pattern = "".join(f"{{n{at}}}" if part == "{x}" else part for at, part in enumerate(parts))
    captured = Pattern(pattern).match(text)
    if captured is not None:
        assert pattern.format_map(captured) == text
    else:
        assert not _fits(pattern, text)


def _fits(pattern: str, text: str) -> bool:
    """By trying every length."""
    if not pattern:
        return not text
    if pattern[0] == "{":
        rest = pattern[pattern.index("}") + 1 :]
        return any(_fits(rest, text[length:]) for length in range(1, len(text) + 1))
    return text[:1] == pattern[0] and _fits(pattern[1:], text[1:])


def test_a_hostile_text_takes_no_time() -> None:
    pattern = Pattern("*a-{x}-a*b-{y}-b*c-{z}-c")
    begun_s = time.process_time()
    for _ in range(100):
        assert pattern.match("a-a" * 170) is None
    assert time.process_time() - begun_s < 1.0


def test_the_first_rule_that_fits_counts() -> None:
    rules = [
        tenant_rule_of({"engine": "llama-*", "job": "elsewhere"}),
        tenant_rule_of({"tenant": "team-{team}", "job": "{team}", "workload": "chat"}),
        tenant_rule_of({"model": "lla?a", "request": "cmpl-{who}-*", "job": "{who}"}),
    ]
    book = Tenants(rules)
    requests, told = ["r1", "cmpl-acme-2", "cmpl-x", ""], ["team-red", "other", "", "team-red"]
    assert book.news(ENGINE, requests, told, 0) == [
        RequestOwner("vllm-7", "r1", "chat", "red"),
        RequestOwner("vllm-7", "cmpl-acme-2", None, "acme"),
    ]


def test_without_rules_a_told_tenant_is_the_job() -> None:
    book = Tenants()
    assert book.news(ENGINE, ["r1", "r2"], [], 0) == []
    assert book.news(ENGINE, ["r1", "r2"], ["acme", ""], 0) == [
        RequestOwner("vllm-7", "r1", None, "acme")
    ]


def test_an_owner_is_told_once_and_again_where_its_client_says_otherwise() -> None:
    book = Tenants()
    assert len(book.news(ENGINE, ["r1"], ["acme"], 0)) == 1
    assert book.news(ENGINE, ["r1"], ["acme"], 0) == []
    assert book.news(ENGINE, ["r1"], [""], 0) == []
    assert book.news(ENGINE, ["r1"], ["umbrella"], 0) == [
        RequestOwner("vllm-7", "r1", None, "umbrella")
    ]
    book.forget("vllm-7", ["r1"])
    assert len(book.news(ENGINE, ["r1"], ["umbrella"], 0)) == 1


def test_an_id_used_again_is_not_the_former_clients() -> None:
    book = Tenants()
    book.news(ENGINE, ["r1", "r2"], ["acme", "acme"], 0)
    book.ended("vllm-7", ["r1"], 7)
    assert book.news(ENGINE, ["r1", "r2"], ["", ""], 0) == [
        RequestOwner("vllm-7", "r1", None, None, 7)
    ]
    book.ended("vllm-7", ["r1"], 9)
    # Whoever had it without a word has no part in what comes after, nor is it the next one's.
    assert book.news(ENGINE, ["r1"], ["beta"], 0, begins=lambda: {"r1": 20}) == [
        RequestOwner("vllm-7", "r1", None, None),
        RequestOwner("vllm-7", "r1", None, "beta", 20),
    ]


def test_a_request_that_two_reporters_give_to_different_clients_is_nobodys() -> None:
    book = Tenants()
    withdrawn = [RequestOwner("vllm-7", "r1", None, None, at_ns) for at_ns in (3, 5)]

    def told(source: str, word: str, since_ns: int) -> list[RequestOwner]:
        return book.news(ENGINE, ["r1"], [word], 0, source=source, begins=lambda: {"r1": since_ns})

    assert told("a", "acme", 5) == [RequestOwner("vllm-7", "r1", None, "acme", 5)]
    assert told("b", "", 6) == told("b", "acme", 7) == []
    assert told("b", "beta", 3) == withdrawn
    for source, word in (("a", "acme"), ("b", "beta"), ("a", "corp"), ("c", "acme")):
        assert told(source, word, 9) == []
    book.ended("vllm-7", ["r1"], 11)
    # The other one's last batch reaches back to when both were under way.
    assert told("b", "beta", 10) == [RequestOwner("vllm-7", "r1", None, "beta", 11)]


def test_different_words_for_one_owner_are_no_contradiction() -> None:
    book = Tenants([tenant_rule_of({"tenant": "acme-*", "job": "acme"})])
    assert len(book.news(ENGINE, ["r1"], ["acme-east"], 0, source="a")) == 1
    found = book.news(ENGINE, ["r1"], ["acme-west"], 0, source="b")
    assert [owner.job for owner in found] == ["acme"]


def test_words_of_clients_are_cut_and_made_printable() -> None:
    book = Tenants()
    words = ["a\nb\x1b[31m", "x" * 9_999, "  ", "\udc80"]
    owners = book.news(ENGINE, ["1", "2", "3", "4"], words, 0)
    assert [owner.job for owner in owners] == ["a?b?[31m", "x" * 200, "?"]


def test_a_day_tells_so_many_apart_and_the_next_day_anew() -> None:
    book = Tenants(most_a_day=2)
    found = [book.news(ENGINE, [f"r{n}"], [f"t{n % 4}"], 0)[0].job for n in range(8)]
    assert found == ["t0", "t1", OTHERS, OTHERS, "t0", "t1", OTHERS, OTHERS]
    assert book.folded == 4
    assert book.news(ENGINE, ["r9"], ["t3"], DAY_NS)[0].job == "t3"


def test_what_is_remembered_is_bounded() -> None:
    book = Tenants()
    owners = 0
    for n in range(3 * tenants.MOST_REMEMBERED // 100):
        requests = [f"{n}-{m}" for m in range(100)]
        owners += len(book.news(ENGINE, requests, ["acme"] * 100, 0))
    assert owners == 100 * (3 * tenants.MOST_REMEMBERED // 100)
    assert len(book._known["vllm-7"]) <= tenants.MOST_REMEMBERED
    for n in range(3 * tenants.MOST_ENGINES):
        book.news((f"e{n}", ""), ["r"], ["acme"], 0)
    assert len(book._known) <= tenants.MOST_ENGINES


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("x", "must be a table of conditions and names"),
        ({"job": "x"}, "must have at least one of engine, model, request, tenant"),
        ({"engine": "*"}, "must have at least one of workload, job"),
        ({"engines": "*", "job": "x"}, "must have no key 'engines' (did you mean engine?)"),
        ({"engine": 3, "job": "x"}, "must have a non-empty line of text as engine"),
        ({"request": "a{}", "job": "x"}, "must have no braces in request but around a name"),
        ({"request": "a{b", "job": "x"}, "must have no braces in request but around a name"),
        ({"request": "{a}*", "job": "x"}, "must have a character between any two"),
        ({"request": "**", "job": "x"}, "must have a character between any two"),
        ({"request": "{a}-{a}", "job": "x"}, "must not capture one {name} twice in request"),
        ({"request": "{a}", "tenant": "{a}", "job": "x"}, "must not capture one {name} in both"),
        ({"request": "{a}", "job": "{b}"}, "must have no braces in job but {a}"),
        ({"tenant": "x", "workload": "{b}"}, "must have no braces in workload, as no pattern"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused(value: object, said: str) -> None:
    with pytest.raises(ValueError, match="must") as refused:
        tenant_rule_of(value)
    assert str(refused.value).startswith(said)
