"""The terminal of `wattledger top`: its modes, its keys, and giving it back in every case."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Self

from wattledger_cli.top_view import Line

ENTER = "\x1b[?1049h\x1b[?25l"
LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ESCAPES = {
    b"[A": "up",
    b"OA": "up",
    b"[B": "down",
    b"OB": "down",
    b"[5~": "page up",
    b"[6~": "page down",
    b"[H": "home",
    b"OH": "home",
    b"[1~": "home",
    b"[F": "end",
    b"OF": "end",
    b"[4~": "end",
}
_LONGEST_ESCAPE = 4


def keys_in(data: bytes) -> list[str]:
    """The keys that these bytes say; escape sequences that mean nothing here say nothing."""
    keys = []
    at = 0
    while at < len(data):
        if data[at : at + 1] != b"\x1b":
            keys.append(chr(data[at]))
            at += 1
            continue
        at += 1
        for length in range(2, _LONGEST_ESCAPE):
            if key := _ESCAPES.get(data[at : at + length]):
                keys.append(key)
                break
        at += _length_of_escape(data[at:])
    return keys


def _length_of_escape(data: bytes) -> int:
    """How many bytes after ESC belong to it: ECMA-48 ends a sequence at 0x40 to 0x7e."""
    if data[:1] == b"O":
        return 2
    if data[:1] != b"[":
        return 0
    for at, byte in enumerate(data[1:], 2):
        if 0x40 <= byte <= 0x7E:
            return at
    return len(data)


class Terminal:
    """The terminal for the length of a `with` block: a screen of its own, keys one by one.

    It is given back on every way out; ^Z gives it back for the time of the pause. A signal that
    ends the run is kept in `ending`. Another thread calls `wake` to end a wait.
    """

    def __init__(self) -> None:
        self.ending: signal.Signals | None = None
        self._in = sys.stdin.fileno()
        self._out = sys.stdout.fileno()
        self._colours = not os.environ.get("NO_COLOR")
        self._before: list[object] = []
        self._handlers: dict[int, object] = {}
        self._woken, self._waker = os.pipe()
        for end in (self._woken, self._waker):
            os.set_blocking(end, False)

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._in)
        self._wakeup = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        handlers = dict.fromkeys(_ENDING, self._ends) | {
            signal.SIGTSTP: self._pause,
            signal.SIGWINCH: _nothing,
        }
        for number, handler in handlers.items():
            self._handlers[number] = signal.signal(number, handler)
        self._take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back()
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() returned
        os.close(self._woken)
        os.close(self._waker)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now."""
        with suppress(OSError):
            size = os.get_terminal_size(self._out)
            if size.columns and size.lines:
                return size.columns, size.lines
        return 80, 24

    def wake(self) -> None:
        """End a wait of `keys`; any thread may call this."""
        with suppress(OSError):
            os.write(self._waker, b"\0")

    def keys(self, timeout_s: float) -> list[str] | None:
        """The keys that came, as soon as anything happens; None where no more can come."""
        ready, _, _ = select.select([self._in, self._woken], [], [], timeout_s)
        if self._woken in ready:
            with suppress(BlockingIOError):
                os.read(self._woken, 4096)
        if self._in not in ready:
            return []
        try:
            data = os.read(self._in, 1024)
        except OSError:
            return None
        return keys_in(data) if data else None

    def show(self, lines: Sequence[Line]) -> None:
        """Draw a whole screen over the one before, without a flicker."""
        # Erased first: after the last column some terminals would erase what stands in it.
        drawn = "\r\n".join(f"{_REST_OF_LINE}{self._dressed(line)}" for line in lines)
        self._write(f"{_HOME}{drawn}{_REST_OF_SCREEN}")

    def _dressed(self, line: Line) -> str:
        codes = {"bold": "1", "dim": "2", "bold cyan": "1;36", "bold red": "1;31"}
        if not self._colours or not line.style:
            return line.text
        return f"\x1b[{codes[line.style.value]}m{line.text}\x1b[0m"

    def _write(self, text: str) -> None:
        """Write all of it; a terminal that is gone is told by its keys."""
        data = text.encode(errors="replace")
        with suppress(OSError):
            while data:
                data = data[os.write(self._out, data) :]

    def _take(self) -> None:
        tty.setcbreak(self._in, termios.TCSANOW)
        self._write(ENTER)

    def _give_back(self) -> None:
        self._write(LEAVE)
        with suppress(termios.error):
            termios.tcsetattr(self._in, termios.TCSANOW, self._before)  # type: ignore[arg-type]

    def _ends(self, number: int, _frame: FrameType | None) -> None:
        self.ending = signal.Signals(number)

    def _pause(self, _number: int, _frame: FrameType | None) -> None:
        self._give_back()
        # Stops right here, until the shell goes on with it.
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Have the signal end a wait, which is all that it shall do."""


@contextmanager
def terminal() -> Iterator[Terminal]:
    """The terminal of this process; a signal that ended the run is obeyed once it is given back."""
    with Terminal() as taken:
        yield taken
    if taken.ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(taken.ending, signal.SIG_DFL)
        os.kill(os.getpid(), taken.ending)
