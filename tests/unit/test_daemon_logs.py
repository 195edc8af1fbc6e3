"""Log lines: one event each, readable by a person, by the journal and by grep."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattledger_daemon import logs
from wattledger_daemon.app import run
from wattledger_daemon.logs import LineFormatter, event, printable


def record(level: int, message: str, name: str = "wattledger_daemon.app") -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, message, (), None)


def test_a_value_that_is_not_one_word_is_quoted_and_stays_on_its_line() -> None:
    line = event("read_fault", device="gpu0", path="/dev/x:1", reason='say "no"\nnow', empty="")
    assert line == (
        'event=read_fault device=gpu0 path=/dev/x:1 reason="say \\"no\\"\\nnow" empty=""'
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("\x1b[31mred", '"\\u001b[31mred"'),
        ("\x9b31mred", '"\\u009b31mred"'),
        ("a\x7fb", '"a\\u007fb"'),
        ("a\x85event=forged", '"a\\u0085event=forged"'),
        ("a\u2028event=forged", '"a\\u2028event=forged"'),
        ("a\u202eb", '"a\\u202eb"'),
        ("a\U000e0001b", '"a\\udb40\\udc01b"'),
        ("a\udc80b", '"a\\udc80b"'),
        ("a\r\nlevel=error", '"a\\r\\nlevel=error"'),
        ("größe", "größe"),
        ("模型 Ω", '"模型 Ω"'),
    ],
)
def test_what_steers_a_terminal_or_fakes_a_line_is_escaped(said: str, told: str) -> None:
    assert event("batch_refused", source=said) == f"event=batch_refused source={told}"


@given(st.text(st.characters(codec=None)))
def test_any_value_is_printable_and_can_be_read_back(said: str) -> None:
    line = event("read_fault", reason=said)
    assert line.isprintable()
    value = line.removeprefix("event=read_fault reason=")
    assert (json.loads(value) if value.startswith('"') else value) == said


@given(st.text(st.characters(codec=None)))
def test_a_line_of_anybodys_is_one_printable_line(said: str) -> None:
    for message in (said, f"event={said}"):
        for journald in (True, False):
            line = LineFormatter(journald=journald).format(record(logging.INFO, message))
            assert line.isprintable()


def test_what_is_printable_stays_as_it_is() -> None:
    assert printable('größe "模型" \\n') == 'größe "模型" \\n'


def test_the_last_word_of_a_daemon_that_cannot_start_is_printable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "no\x1b[31m\u202e.toml"
    assert run(["--config", str(config)], {}) != 0
    (line,) = capsys.readouterr().err.split("\n")[:-1]
    assert "no\\u001b[31m\\u202e.toml" in line


def test_a_person_reads_the_time_and_the_level() -> None:
    line = LineFormatter(journald=False).format(record(logging.WARNING, event("late", s=3)))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00 level=warning event=late s=3", line)


@pytest.mark.parametrize(
    ("level", "priority"),
    [("DEBUG", 7), ("INFO", 6), ("WARNING", 4), ("ERROR", 3), ("CRITICAL", 3)],
)
def test_the_journal_reads_a_priority(level: str, priority: int) -> None:
    levelno = logging.getLevelNamesMapping()[level]
    line = LineFormatter(journald=True).format(record(levelno, event("late")))
    assert line == f"<{priority}>event=late"


def test_a_librarys_traceback_is_one_line_too() -> None:
    failed = record(logging.ERROR, "Exception calling application", "grpc._server")
    try:
        raise ValueError("odd")
    except ValueError as error:
        failed.exc_info = (ValueError, error, error.__traceback__)
    line = LineFormatter(journald=True).format(failed)
    assert line.startswith(
        '<3>event=log source=grpc._server text="Exception calling application" traceback="Trace'
    )
    assert "\n" not in line


def test_only_the_journals_own_stream_gets_its_form(tmp_path: Path) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    lines = []
    try:
        with (tmp_path / "log").open("w+") as file:
            status = (tmp_path / "log").stat()
            for stream in (f"{status.st_dev}:{status.st_ino}", "8:1"):
                logs.setup("warning", file, {"JOURNAL_STREAM": stream})
                logging.getLogger("x").info("event=quiet")
                logs.set_level("info")
                logging.getLogger("x").info("event=told")
            file.seek(0)
            lines = file.read().splitlines()
        text = io.StringIO()
        logs.setup("info", text, {"JOURNAL_STREAM": "8:1"})
        logging.getLogger("x").info("event=told")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert lines[0] == "<6>event=told"
    assert lines[1].endswith("level=info event=told")
    assert text.getvalue().endswith("level=info event=told\n")
