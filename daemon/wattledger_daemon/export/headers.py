"""Reads a file of headers that a receiver or an engine wants; what is in it is never told."""

from __future__ import annotations

import logging
import re
import stat
from pathlib import Path

from wattledger.errors import InputError
from wattledger_daemon.logs import event

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def read_headers(path: Path, key: str = "otlp.headers_file") -> dict[str, str]:
    """Headers of `name: value` lines; empty lines and those that begin with # say nothing.

    `key` is what the config calls the file. Raises InputError naming it, and the line where one is
    wrong, but not what it says.
    """
    try:
        text = path.read_text(encoding="ascii")
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(
            f"{key} = {str(path)!r}: {error.strerror}: mend the path or its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not ASCII at byte {error.start}: mend {key}") from None
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        mend = f"chmod 600 {path}"
        _LOG.warning(
            event(f"{key.partition('.')[0]}_headers_readable_by_others", path=path, mend=mend)
        )
    headers = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, value = line.partition(":")
        value = value.strip()
        if not _NAME.fullmatch(name.strip()) or not value or not value.isprintable():
            raise InputError(f"{path}:{number}: not a header: write it as `name: value`")
        headers[name.strip()] = value
    return headers
