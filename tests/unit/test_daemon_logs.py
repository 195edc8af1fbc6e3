"""Log lines: one event each, readable by a person, by the journal and by grep."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest

from wattledger_daemon import logs
from wattledger_daemon.logs import LineFormatter, event


def record(level: int, message: str, name: str = "wattledger_daemon.app") -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, message, (), None)


def test_a_value_that_is_not_one_word_is_quoted_and_stays_on_its_line() -> None:
    line = event("read_fault", device="gpu0", path="/dev/x:1", reason='say "no"\nnow', empty="")
    assert line == (
        'event=read_fault device=gpu0 path=/dev/x:1 reason="say \\"no\\"\\nnow" empty=""'
    )


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
