"""Names of users, units and commands: whoever made them may have put anything in."""

from __future__ import annotations

import pwd
from functools import lru_cache

NAME_CHARACTERS = 200


def printable(raw: bytes) -> str | None:
    """`raw` as at most 200 printable characters, all else turned to `?`; None for nothing."""
    text = raw[: 4 * NAME_CHARACTERS].decode(errors="replace").strip()
    clean = "".join(
        c if c.isprintable() and c != "\N{REPLACEMENT CHARACTER}" else "?" for c in text
    )
    return clean[:NAME_CHARACTERS] or None


@lru_cache(maxsize=1024)
def user_name(uid: int) -> str:
    """The name of a user, else the number; asked of the system once per user."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)
    return printable(name.encode(errors="replace")) or str(uid)
