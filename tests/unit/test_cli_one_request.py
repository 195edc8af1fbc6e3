"""`requests --request ID`: from the daemon while it is provisional, from the ledger for ever."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from fakes.cli import WINDOW, Cli, Ran, small_ledger
from fakes.node_server import FakeNode, serving
from wattledger_proto.v1.node_pb2 import RequestAnswer, RequestStatus


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with serving(FakeNode()) as served:
        yield served


def running(request: str = "cmpl-red-1-0") -> RequestStatus:
    return RequestStatus(
        host="h1",
        request=request,
        engine="vllm-41",
        model="tiny",
        job="red",
        prompt_tokens=1000,
        cached_tokens=10,
        decode_tokens=40,
        prefill_tokens=990,
        prefill_j=3.0,
        decode_j=1.000001,
        gco2e=0.00005,
        method="calibrated",
        quality="measured",
        provisional=True,
    )


def ask(cli: Cli, node: FakeNode, *arguments: str, columns: int | None = None) -> Ran:
    env = {"WATTLEDGER_SOCKET": str(node.path), "NO_COLOR": "1"}
    return cli.run("requests", "--request", *arguments, env=env, columns=columns)


SCREEN = """\
phase    tokens  energy  per token
                      J         mJ
───────────────────────────────────
prefill     990   3.000       3.03
decode       40   1.000      25.00
───────────────────────────────────
request   1,030   4.000       3.88

 request      cmpl-red-1-0
 engine       vllm-41, tiny, h1
 whose        job red
 finished     not told yet
 prompt       1,000 tokens, 10 of them cached
 carbon       50 ug CO2e operational
 energy       measured (calibrated)
 provisional  its last windows are not booked yet: ask again in 15 s
"""


def test_the_screen_of_one_that_is_not_booked_yet(cli: Cli, node: FakeNode) -> None:
    node.answer = RequestAnswer(requests=[running()])
    ran = ask(cli, node, "red-1", columns=80)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == SCREEN
    assert [question.request for question in node.asked] == ["red-1"]


def test_the_daemons_answer_as_json(cli: Cli, node: FakeNode) -> None:
    node.answer = RequestAnswer(requests=[running()])
    ran = ask(cli, node, "red-1", "--engine", "vllm-41", "--format", "json")
    document = json.loads(ran.out)
    assert document["schema"] == "wattledger.requests/1"
    (told,) = document["requests"]
    assert (told["provisional"], told["finished"], told["job"]) == (True, None, "red")
    assert (told["prefill_j"], told["decode_j"], told["energy_j"]) == (3.0, 1.000001, 4.000001)
    assert (told["gco2e"], told["workload"]) == (0.00005, None)
    assert node.asked[0].engine == "vllm-41"


def test_flags_that_price_go_before_the_daemons_zone(cli: Cli, node: FakeNode) -> None:
    node.answer = RequestAnswer(requests=[running()])
    ran = ask(cli, node, "red-1", "--intensity", "360", "--pue", "2", "--format", "json")
    assert json.loads(ran.out)["requests"][0]["gco2e"] == pytest.approx(4.000001 / 3.6e6 * 720)


def test_several_are_told_the_latest_first(cli: Cli, node: FakeNode) -> None:
    node.answer = RequestAnswer(requests=[running(f"cmpl-red-1-{at}") for at in range(3)])
    ran = ask(cli, node, "red-1", "--limit", "2")
    assert ran.out.index("cmpl-red-1-0") < ran.out.index("cmpl-red-1-1")
    assert "cmpl-red-1-2" not in ran.out
    assert "2 of 3, the latest first: --limit 3 has all" in ran.out


def test_one_that_nobody_knows(cli: Cli, node: FakeNode) -> None:
    ran = ask(cli, node, "no\x1bne")
    assert (ran.status, ran.out) == (3, "")
    assert ran.err.startswith("wattledger: no request 'no\ufffdne' is known: give the id")
    assert ran.err.count("\n") == 1


def test_without_a_daemon_the_ledger_is_searched_over_all_time(cli: Cli) -> None:
    url = small_ledger(cli.home / "l.db")
    (cli.home / "wattledger.toml").write_text(f'ledger.path = "{url.removeprefix("sqlite:")}"\n')
    env = {"WATTLEDGER_SOCKET": str(cli.home / "none.sock")}
    ran = cli.run("requests", "--request", "r1", "--format", "json", env=env)
    assert ran.status == 0
    (told,) = json.loads(ran.out)["requests"]
    listed = cli.run("requests", *WINDOW, "--ledger", url, "--format", "json").out
    (same,) = (item for item in json.loads(listed)["requests"] if item["request"] == "r1")
    assert {key: told[key] for key in same} == same
    assert (told["provisional"], told["prefill_tokens"]) == (False, 1000)
    ran = cli.run("requests", "--request", "r9", env=env)
    assert ran.status == 3
    assert "the ledger alone was asked: no daemon" in ran.err
    assert "no request 'r9' is known" in ran.err


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "24 questions are open already: ask again in a second",
        ),
        (grpc.StatusCode.UNAVAILABLE, "cannot append to l.db: no space left on device"),
    ],
)
def test_a_daemon_that_cannot_answer_now_is_not_one_that_knows_nothing(
    cli: Cli, node: FakeNode, code: grpc.StatusCode, words: str
) -> None:
    url = small_ledger(cli.home / "l.db")
    (cli.home / "wattledger.toml").write_text(f'ledger.path = "{url.removeprefix("sqlite:")}"\n')
    node.refusal = (code, words)
    ran = ask(cli, node, "r9")
    assert (ran.status, ran.out) == (4, "")
    assert ran.err == f"wattledger: the daemon at {node.path} does not answer now: {words}\n"
    # What is booked is found all the same, and it is told that there may be more.
    ran = ask(cli, node, "r1", "--format", "json")
    assert ran.status == 0
    assert f"the ledger alone was asked: the daemon at {node.path} does not answer" in ran.err


def test_a_socket_that_nobody_serves_is_no_answer(cli: Cli) -> None:
    url = small_ledger(cli.home / "l.db")
    (cli.home / "wattledger.toml").write_text(f'ledger.path = "{url.removeprefix("sqlite:")}"\n')
    path = cli.home / "d.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    ran = cli.run("requests", "--request", "r9", env={"WATTLEDGER_SOCKET": str(path)})
    assert ran.status == 4
    assert ran.err.startswith(f"wattledger: no answer from the daemon at {path}, UNAVAILABLE")


@pytest.mark.parametrize("name", ["a[1]", "a*", "what?"])
def test_an_id_that_looks_like_a_pattern_is_found_by_itself(
    cli: Cli, node: FakeNode, name: str
) -> None:
    node.answer = RequestAnswer(requests=[running(name)])
    ran = ask(cli, node, name)
    assert (ran.status, [question.request for question in node.asked]) == (0, [name])
    assert f"request      {name}\n" in ran.out


def test_a_pattern_that_is_no_id_is_a_list_whatever_the_daemon_says(
    cli: Cli, node: FakeNode
) -> None:
    url = small_ledger(cli.home / "l.db")
    (cli.home / "wattledger.toml").write_text(f'ledger.path = "{url.removeprefix("sqlite:")}"\n')
    for node.refusal in (None, (grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")):
        ran = ask(cli, node, "r*")
        assert (ran.status, "busy" in ran.err) == (0, False)
        assert "finished requests, costliest first" in ran.out


def test_a_named_ledger_is_asked_alone(cli: Cli, node: FakeNode) -> None:
    url = small_ledger(cli.home / "l.db")
    ran = ask(cli, node, "r2", "--ledger", url)
    assert (ran.status, node.asked) == (0, [])
    assert "provisional" not in ran.out
    assert "50.00" in ran.out
    assert ask(cli, node, "r2", "--ledger", url, "--engine", "other").status == 3


@pytest.mark.parametrize("more", [["--last", "1h"], ["--job", "x"], ["--request", "r2"]])
def test_with_a_window_or_other_filters_it_is_a_list_as_ever(
    cli: Cli, node: FakeNode, more: list[str]
) -> None:
    url = small_ledger(cli.home / "l.db")
    ran = ask(cli, node, "r1", *more, "--ledger", url)
    assert (ran.status, node.asked) == (0, [])
    assert "0 of 0 finished requests" in ran.out


def test_a_pattern_is_a_list_as_ever(cli: Cli, node: FakeNode) -> None:
    url = small_ledger(cli.home / "l.db")
    ran = ask(cli, node, "r*", *WINDOW, "--ledger", url)
    assert "2 of 2 finished requests" in ran.out


def test_an_id_that_no_daemon_takes_is_an_input_error(cli: Cli) -> None:
    url = small_ledger(cli.home / "l.db")
    assert cli.run("requests", "--request", "", "--ledger", url).status == 2
