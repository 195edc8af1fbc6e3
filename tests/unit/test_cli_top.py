from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from fakes.cli import Cli
from fakes.node_server import FakeNode, serving
from wattledger_cli.top import Answer, pressed
from wattledger_cli.top_model import Picture, Sort, ordered, picture
from wattledger_cli.top_terminal import keys_in
from wattledger_cli.top_view import Shown, View, draw
from wattledger_proto.v1.node_pb2 import (
    BookedStretch,
    DeviceStatus,
    EngineStatus,
    GroupStatus,
    Status,
)

STATUS = Status(
    software="0.1.0",
    host="h1",
    uptime_s=7300.0,
    booked=BookedStretch(span_s=30.0, age_s=11.4),
    devices=[
        DeviceStatus(
            device="gpu0",
            kind="gpu",
            model="NVIDIA H200",
            power_w=400.25,
            quality="measured",
            static_w=70.0,
            counter_ratio=1.004,
        ),
        DeviceStatus(device="cpu0", kind="cpu", power_w=85.0, quality="estimated"),
        DeviceStatus(device="node0", kind="node", power_w=700.0, quality="integrated"),
    ],
    engines=[
        EngineStatus(
            engine="vllm-a",
            kind="vllm",
            model="llama",
            job="4711",
            power_w=300.0,
            prefill_tokens_per_s=1000.0,
            decode_tokens_per_s=50.0,
            j_per_prefill_token=0.02,
            j_per_decode_token=1.5,
            j_per_token=0.3,
            running_requests=0,
        ),
        EngineStatus(engine="new", kind="vllm", silent_s=99.0),
    ],
    groups=[
        GroupStatus(workload="chat", job="4711", power_w=300.0, j_per_token=0.3),
        GroupStatus(workload="system", power_w=75.0, estimated_w=75.0),
        GroupStatus(nobody="idle", power_w=25.0),
    ],
)


def text(
    shown: Shown | None = None,
    *,
    status: Status = STATUS,
    width: int = 160,
    height: int | None = None,
) -> list[str]:
    return [line.text for line in draw(picture(status), shown or Shown(), width, height)]


def row(lines: list[str], name: str) -> list[str]:
    (found,) = (line for line in lines if line.startswith(name))
    return found.split()


# -------------------------------------------------------------------------- one screen


def test_every_figure_stands_in_its_row_and_the_unknown_is_a_dash() -> None:
    lines = text()
    assert lines[0] == "wattledger h1   ~485.2 W: GPU 400.2 W, CPU ~85.0 W, NODE 700.0 W"
    assert lines[1].endswith("mean of the 30 s that ended 11 s ago")
    assert row(lines, "gpu0")[:4] == ["gpu0", "400.2", "70.0", "1.004"]
    assert row(lines, "cpu0")[:4] == ["cpu0", "~85.0", "-", "-"]
    assert row(lines, "vllm-a")[1:9] == [
        "300.0",
        "1,000",
        "50",
        "0.020",
        "1.500",
        "0.300",
        "-",
        "0",
    ]
    assert row(lines, "new (silent)")[2:] == ["-"] * 10
    assert row(lines, "system")[:4] == ["system", "-", "~75.0", "18.8"]
    assert row(lines, "(idle)")[:4] == ["(idle)", "-", "25.0", "6.2"]


def test_an_engine_that_is_scraped_is_marked() -> None:
    status = Status(engines=[EngineStatus(engine="sgl", kind="sglang", coarse=True)])
    assert row(text(status=status), "sgl")[:2] == ["sgl", "(coarse)"]
    assert picture(status).engines[0].coarse


def test_a_device_of_unknown_power_makes_the_total_unknown() -> None:
    status = Status(devices=[STATUS.devices[0], DeviceStatus(device="gpu1", kind="gpu")])
    assert text(status=status)[0].endswith("GPU - (1 of 2 unknown)")
    assert picture(status).power_w is None


def test_sensors_that_fail_or_are_stuck_are_told_above_the_tables() -> None:
    status = Status()
    status.CopyFrom(STATUS)
    assert len(text(status=status)) == len(text())
    status.sensors.add(sensor="nvml", state="stuck", reason="in a call since 24 s")
    status.sensors.add(sensor="rapl", state="failing", reason="OSError: \x1b[2J")
    status.sensors.add(sensor="amdsmi", state="absent", reason="no driver")
    told = "nvml is stuck: in a call since 24 s; rapl is failing: OSError: \ufffd[2J"
    assert text(status=status)[2] == told


def test_before_the_first_window_and_without_any_device() -> None:
    lines = text(status=Status(host="h1", uptime_s=3.0))
    assert lines == [
        "wattledger h1   no device is metered",
        "up 3 s, workloads and engines: nothing yet, a window is booked 10 s after its end",
    ]


def test_what_could_steer_a_terminal_is_shown_harmlessly() -> None:
    evil = "x\x1b[2J\r\nname\x07\u202e"
    status = Status(
        host=evil,
        devices=[DeviceStatus(device=evil, kind="gpu", model=evil, quality=evil)],
        engines=[EngineStatus(engine=evil, model=evil, job=evil)],
        groups=[GroupStatus(workload=evil, job=evil, power_w=1.0)],
    )
    for line in text(status=status):
        assert line.isprintable()


# ------------------------------------------------------------------------ room and sort


@given(
    st.integers(20, 200),
    st.integers(6, 60),
    st.sampled_from(View),
    st.sampled_from(Sort),
    st.integers(0, 50),
    st.integers(0, 40),
)
def test_no_screen_is_larger_than_the_terminal(  # noqa: PLR0917 - a draw of everything
    width: int, height: int, view: View, sort: Sort, scroll: int, workloads: int
) -> None:
    status = Status()
    status.CopyFrom(STATUS)
    for number in range(workloads):
        status.groups.add(workload=f"w-{number}-寿司" * 3, power_w=float(number))
    lines = text(Shown(view, sort, scroll), status=status, width=width, height=height)
    assert len(lines) == height
    assert max(map(cell_len, lines)) <= max(width, 24)
    assert lines[-1].startswith("q quit")


def test_rows_that_find_no_room_are_counted() -> None:
    status = Status(groups=[GroupStatus(workload=f"w{n:02}", power_w=99.0 - n) for n in range(40)])
    lines = text(status=status, height=20)
    shown = [line for line in lines if line.startswith("w") and line[1:3].isdigit()]
    assert shown
    (more,) = (line for line in lines if "more:" in line)
    assert int(more.split()[0]) + len(shown) == 40
    alone = text(Shown(View.WORKLOADS, scroll=30), status=status, height=30)
    assert any(line.startswith("w39") for line in alone)
    assert not any(line.startswith("w29") for line in alone)


def test_narrow_terminals_leave_out_whole_columns() -> None:
    wide, narrow = text(width=160), text(width=44)
    assert any("llama" in line for line in wide)
    assert not any("llama" in line for line in narrow)
    assert row(narrow, "vllm-a") == ["vllm-a", "300.0", "50", "1.500"]


def test_rows_are_sorted_with_the_unknown_last() -> None:
    found = picture(STATUS)
    by = {sort: [engine.engine for engine in ordered(found.engines, sort)] for sort in Sort}
    assert by == {
        Sort.POWER: ["vllm-a", "new"],
        Sort.TOKENS: ["vllm-a", "new"],
        Sort.ENERGY: ["vllm-a", "new"],
        Sort.NAME: ["new", "vllm-a"],
    }


# -------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1bOB\x1b[5~\x1b[6~", ["up", "down", "page up", "page down"]),
        (b"\x1b[1;5A d", [" ", "d"]),
        (b"\x1b", []),
        (b"\x1b[H\x1b[4~s", ["home", "end", "s"]),
        (b"\x1b[<0;10;20Mq", ["q"]),
    ],
)
def test_keys_and_what_only_looks_like_them(data: bytes, keys: list[str]) -> None:
    assert keys_in(data) == keys


@given(st.binary(max_size=40))
def test_no_bytes_are_too_odd_for_a_keyboard(data: bytes) -> None:
    assert len(keys_in(data)) <= len(data)


def after(keys: list[str], found: Picture | None = None) -> Shown:
    shown = Shown()
    for key in keys:
        shown = pressed(shown, key, found or picture(STATUS), page=2)
    return shown


def test_keys_change_what_is_shown() -> None:
    assert after(["d"]).view is View.DEVICES
    assert after(["w", "e"]).view is View.ENGINES
    assert after(["e", "a"]).view is View.ALL
    assert after(["s"] * len(Sort)) == Shown()
    assert after([" "]).paused
    assert after(["h", "h"]) == Shown()
    assert after(["x", "\t"]) == Shown()
    assert after(["w", "down", "down", "down", "down"]).scroll == 1
    assert after(["w", "end"]).scroll == 1
    assert after(["w", "end", "home", "up"]).scroll == 0
    assert after(["w", "down", "d"]).scroll == 0


def test_a_daemon_that_went_away_is_told_with_the_age_of_what_is_shown() -> None:
    answer = Answer(picture(STATUS), at_s=100.0)
    assert answer.alert(105.0) == ""
    gone = replace(answer, fault="no answer")
    assert gone.alert(112.0) == "no answer for 12 s, asking again (no answer)"
    assert replace(gone, picture=None).alert(112.0) == "asking again (no answer)"
    lines = [line.text for line in draw(gone.picture, Shown(), 80, 24, gone.alert(112.0))]
    assert "no answer for 12 s, asking again (no answer)" in lines


# ------------------------------------------------------------------------- without a tty


def top(tmp_path: Path, *arguments: str) -> str:
    with serving(FakeNode(STATUS)) as node:
        env = {"WATTLEDGER_SOCKET": str(node.path)}
        ran = Cli(tmp_path).run("top", *arguments, env=env)
    assert (ran.status, ran.err) == (0, "")
    return ran.out


def test_once_and_a_pipe_print_one_screen_without_a_single_escape(tmp_path: Path) -> None:
    for arguments in ((), ("--once",)):
        out = top(tmp_path, *arguments)
        assert out.splitlines() == text()
        assert "\x1b" not in out


def test_json_has_null_where_nobody_knows(tmp_path: Path) -> None:
    document = json.loads(top(tmp_path, "--format", "json"))
    assert document["schema"] == "wattledger.top/1"
    assert document["power_w"] == pytest.approx(485.25)
    assert document["booked"] == {"span_s": 30.0, "age_s": 11.4}
    assert document["devices"][1]["counter_ratio"] is None
    assert document["engines"][0]["running_requests"] == 0
    assert document["engines"][1]["decode_tokens_per_s"] is None
    assert document["workloads"][2] == {
        "workload": None,
        "job": None,
        "nobody": "idle",
        "power_w": 25.0,
        "estimated_w": 0.0,
        "prefill_tokens_per_s": 0.0,
        "decode_tokens_per_s": 0.0,
        "requests_per_s": 0.0,
        "j_per_token": None,
    }


def test_csv_has_a_row_each(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(top(tmp_path, "--format", "csv"))))
    assert [row["part"] for row in rows] == ["device"] * 3 + ["engine"] * 2 + ["workload"] * 3


def test_without_a_daemon_there_is_nothing_to_see(tmp_path: Path) -> None:
    ran = Cli(tmp_path).run("top", env={"WATTLEDGER_SOCKET": str(tmp_path / "no.sock")})
    assert (ran.status, ran.out) == (4, "")
    assert "start wattledgerd" in ran.err
