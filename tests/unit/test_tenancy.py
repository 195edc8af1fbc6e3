"""Tenants told by the HTTP side: bounded, printable, and withdrawn where they contradict."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from wattledger_collectors.engines.tenancy import MOST_ID_CHARACTERS, Tenancy


@pytest.mark.parametrize(
    ("http_id", "name"),
    [
        ("a-42", "cmpl-a-42-0"),
        ("a-42", "chatcmpl-a-42"),
        ("a-42", "chatcmpl-a-42_3"),
        ("a-42", "embd-a-42-0"),
        ("7c3e", "7c3e"),
    ],
)
def test_a_tenant_is_found_by_the_engines_name(http_id: str, name: str) -> None:
    tenancy = Tenancy()
    tenancy.note(http_id, "red")
    assert tenancy.of(name) == "red"
    assert tenancy.of("cmpl-other-0") == ""


def test_who_names_no_tenant_gets_none_of_a_neighbours() -> None:
    """`chatcmpl-a_1` may be a batch of `a`, unless `a_1` was seen too."""
    tenancy = Tenancy()
    tenancy.note("a", "red")
    tenancy.note("a_1", "")
    assert tenancy.of("chatcmpl-a_1") == ""
    assert tenancy.of("chatcmpl-a_2") == "red"


def test_of_two_ids_that_make_one_name_the_one_in_the_house_counts() -> None:
    tenancy = Tenancy()
    tenancy.note("a-0", "acme")
    tenancy.over("a-0")
    tenancy.note("a", "beta")
    assert tenancy.of("transcribe-a-0") == "beta"
    tenancy.note("a-0", "acme")
    assert tenancy.of("transcribe-a-0") == ""


def test_two_tenants_with_one_id_at_the_same_time_are_nobody() -> None:
    tenancy = Tenancy()
    tenancy.note("1", "red")
    tenancy.note("1", "blue")
    assert tenancy.of("chatcmpl-1") == ""
    assert tenancy.contradictions == 1


def test_one_after_the_other_they_are_each_themselves() -> None:
    tenancy = Tenancy()
    tenancy.note("1", "red")
    tenancy.over("1")
    assert tenancy.of("chatcmpl-1") == "red"
    tenancy.note("1", "blue")
    assert tenancy.of("chatcmpl-1") == "blue"
    assert tenancy.contradictions == 0


def test_what_clients_say_is_bounded_and_printable() -> None:
    tenancy = Tenancy(most=3)
    tenancy.note("x", b"\x1b[31m red \xff" + b"z" * 1000)
    assert tenancy.of("x").startswith("?[31m red ?zzz")
    assert len(tenancy.of("x")) == 200
    tenancy.note("y" * (MOST_ID_CHARACTERS + 1), "red")
    assert tenancy.of("y" * (MOST_ID_CHARACTERS + 1)) == ""
    for number in range(3):
        tenancy.note(str(number), "t")
    assert [tenancy.of(name) for name in ("x", "0", "2")] == ["", "t", "t"]


def test_many_threads_leave_it_whole() -> None:
    tenancy = Tenancy(most=50)

    def live(number: int) -> str:
        tenancy.note(str(number), f"t{number}")
        told = tenancy.of(f"cmpl-{number}-0")
        tenancy.over(str(number))
        return told

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(live, range(500)))
    assert all(tenant in (f"t{number}", "") for number, tenant in enumerate(told))
    assert tenancy.of("cmpl-499-0") == "t499"
