"""One event a line as key=value on stderr, in the form the journal or a person reads."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

# Numbers are those of syslog(3); sd-daemon(3) reads them as a <N> prefix.
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_PLAIN = re.compile(r"[\w.:/@%+,-]+")


def event(name: str, **fields: object) -> str:
    """A log line: what happened, then its fields; a value that is not one word is quoted."""
    return " ".join([f"event={_word(name)}", *(f"{k}={_word(v)}" for k, v in fields.items())])


def printable(text: str) -> str:
    r"""The text with all that is not printable as JSON's \uXXXX: clients say what they like.

    Control characters steer a terminal, a line or paragraph separator fakes a line, and marks of
    direction turn around what is read. Source: `str.isprintable`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def setup(level: str, stream: TextIO, environ: Mapping[str, str]) -> None:
    """Send all logging to `stream` in one form; called once, by the process's entry."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(journald=_is_journal(stream, environ)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)


def set_level(level: str) -> None:
    """Change how much is logged: debug, info, warning or error."""
    logging.getLogger().setLevel(level.upper())


class LineFormatter(logging.Formatter):
    """Keeps every record on one line, a traceback included.

    Under journald a line starts with its priority and the journal keeps the time; elsewhere it
    starts with the time, UTC.
    """

    def __init__(self, *, journald: bool) -> None:
        super().__init__()
        self._journald = journald

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        message = record.getMessage()
        if not message.startswith("event="):
            message = event("log", source=record.name, text=message)
        if record.exc_info and record.exc_info[0] is not None:
            message += f" traceback={json.dumps(self.formatException(record.exc_info))}"
        if self._journald:
            priority = next((n for level, n in _PRIORITIES if record.levelno >= level), 7)
            return f"<{priority}>{printable(message)}"
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return f"{moment} level={record.levelname.lower()} {printable(message)}"


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the journal reads this very stream (systemd.exec(5), `$JOURNAL_STREAM`)."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _word(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else printable(json.dumps(text, ensure_ascii=False))
