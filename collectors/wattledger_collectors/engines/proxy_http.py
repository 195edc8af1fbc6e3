"""HTTP/1.1 as the proxy needs it: heads, and where bodies end. Pure; standard library alone.

Bodies pass as the bytes they came in; only their framing is read. What two readers could take for
two different messages is refused rather than guessed (RFC 9112, 6.3 and 11.2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

HEAD_BYTES = 65_536
"""The largest head of a request or response, and the longest line of a chunked body."""

_LINE_BYTES = 8_192
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
     b"proxy-connection", b"te", b"upgrade")
)  # fmt: skip
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REQUEST = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([^\x00-\x20\x7f]+) HTTP/1\.([01])")
_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: .*)?")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
_BODILESS = (204, 304)


class BadMessageError(Exception):
    """A message that is not HTTP/1.x, or of two minds about its end; `status` answers it."""

    def __init__(self, why: str, status: int = 400) -> None:
        super().__init__(why)
        self.status = status


@dataclass(slots=True)
class Head:
    """A start line and its header lines, as they came; names are found in lower case."""

    start: bytes
    lines: list[tuple[bytes, bytes]]
    minor: int
    method: bytes = b""
    target: bytes = b""
    status: int = 0

    def values(self, name: bytes) -> list[bytes]:
        """The comma-separated values of every header line of a name, in order."""
        found = [line.partition(b":")[2] for key, line in self.lines if key == name]
        return [value.strip(b" \t") for line in found for value in line.split(b",")]

    def text(self, name: bytes) -> str:
        """The first header line of a name; "" where there is none."""
        for key, line in self.lines:
            if key == name:
                return line.partition(b":")[2].strip(b" \t").decode("utf-8", "replace")
        return ""

    def has_token(self, name: bytes, token: bytes) -> bool:
        """Whether one of a header's values is `token`, in any case."""
        return token in (value.lower() for value in self.values(name))

    @property
    def keeps_alive(self) -> bool:
        """Whether its sender wants the connection to stay (RFC 9112, 9.3)."""
        if self.has_token(b"connection", b"close"):
            return False
        return self.minor == 1 or self.has_token(b"connection", b"keep-alive")

    def relayed(self, *closing: bytes) -> bytes:
        """The head as the next hop gets it: without what was meant for this one."""
        named = {value.lower() for value in self.values(b"connection")}
        dropped = _HOP_BY_HOP | (named - {b"content-length", b"transfer-encoding", b"host"})
        kept = [line for name, line in self.lines if name not in dropped]
        return b"\r\n".join([self.start, *kept, *closing, b"", b""])


def request_head(block: bytes) -> Head:
    """Reads a request's head, its blank line left off; raises BadMessageError."""
    start, lines = _lines(block)
    match = _REQUEST.fullmatch(start)
    if match is None:
        raise BadMessageError("no HTTP/1.x request")
    method, target, minor = match.groups()
    if method == b"CONNECT":
        raise BadMessageError("CONNECT is not for here", 405)
    return Head(start, lines, int(minor), method=method, target=target)


def response_head(block: bytes) -> Head:
    """Reads a response's head, its blank line left off; raises BadMessageError."""
    start, lines = _lines(block)
    match = _RESPONSE.fullmatch(start)
    if match is None:
        raise BadMessageError("no HTTP/1.x response")
    return Head(start, lines, int(match[1]), status=int(match[2]))


def request_body(head: Head) -> Body:
    """How a request's body ends; raises BadMessageError where that is open to doubt."""
    codings, length = head.values(b"transfer-encoding"), _length(head)
    if not codings:
        return Body(left=length or 0)
    if length is not None or head.minor == 0:
        raise BadMessageError("both a length and a transfer coding")
    if [coding.lower() for coding in codings] != [b"chunked"]:
        raise BadMessageError("a transfer coding other than chunked", 501)
    return Body(chunked=True)


def response_body(head: Head, method: bytes) -> Body:
    """How a response's body ends (RFC 9112, 6.3); raises BadMessageError."""
    if method == b"HEAD" or head.status < 200 or head.status in _BODILESS:
        return Body(left=0)
    codings, length = head.values(b"transfer-encoding"), _length(head)
    if not codings:
        return Body(left=length)
    if length is not None or [coding.lower() for coding in codings] != [b"chunked"]:
        raise BadMessageError("a framing that cannot be passed on")
    return Body(chunked=True)


@dataclass(slots=True)
class Body:
    """Finds a body's end in its bytes: by length, by chunks, or (`left` None) where they end."""

    left: int | None = None
    chunked: bool = False
    done: bool = False
    _line: bytearray = field(default_factory=bytearray)
    _state: str = "size"

    def __post_init__(self) -> None:
        if self.chunked:
            self.left = 0
        elif self.left == 0:
            self.done = True

    @property
    def to_the_end(self) -> bool:
        """Whether only the connection's end is its end."""
        return self.left is None

    def feed(self, data: bytes) -> tuple[int, list[bytes]]:
        """Takes bytes in: how many of them are the body's, and its content among those.

        Raises BadMessageError where chunks are malformed.
        """
        if self.left is None:
            return len(data), [data]
        if not self.chunked:
            used = min(self.left, len(data))
            self.left -= used
            self.done = self.left == 0
            return used, [data[:used]]
        at, content = 0, list[bytes]()
        while at < len(data) and not self.done:
            if self.left:
                piece = data[at : at + self.left]
                content.append(piece)
                self.left -= len(piece)
                at += len(piece)
            else:
                at = self._framing(data, at)
        return at, content

    def _framing(self, data: bytes, at: int) -> int:
        """Reads on to the end of a line between chunks, or of the data; returns where that is."""
        end = data.find(b"\n", at) + 1
        self._line += data[at : end or len(data)]
        if len(self._line) > _LINE_BYTES:
            raise BadMessageError("a chunk with an endless line")
        if not end:
            return len(data)
        line = bytes(self._line)
        self._line.clear()
        if not line.endswith(b"\r\n"):
            raise BadMessageError("a chunk with a bare line feed")
        self._line_read(line[:-2])
        return end

    def _line_read(self, line: bytes) -> None:
        if self._state == "size":
            match = _SIZE.fullmatch(line)
            if match is None:
                raise BadMessageError("a chunk without a size")
            self.left = int(match[1], 16)
            self._state = "end" if self.left else "trailer"
        elif self._state == "end":
            if line:
                raise BadMessageError("a chunk longer than its size")
            self._state = "size"
        elif not line:
            self.done = True


def _lines(block: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    start, *rest = block.split(b"\r\n")
    lines: list[tuple[bytes, bytes]] = []
    for line in rest:
        name, colon, _ = line.partition(b":")
        # No space before the colon, no folded line, no control character: RFC 9112, 5.1 and 5.2.
        if not colon or not _NAME.fullmatch(name) or b"\n" in line or b"\r" in line:
            raise BadMessageError("a malformed header line")
        if b"\x00" in line:
            raise BadMessageError("a malformed header line")
        lines.append((name.lower(), line))
    return start, lines


def _length(head: Head) -> int | None:
    """Content-Length; None where it is not said. Repeated, it must be the same each time."""
    values = set(head.values(b"content-length"))
    if not values:
        return None
    value = values.pop()
    if values or not value.isdigit() or len(value) > 18:
        raise BadMessageError("no clear Content-Length")
    return int(value)
