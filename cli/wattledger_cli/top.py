"""`wattledger top`: live power, tokens/s and J/token per workload, engine and device."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wattledger.errors import UnreachableError
from wattledger_cli.node import Node, daemon_status, local_socket
from wattledger_cli.options import Format, Options, options_of
from wattledger_cli.output import PIPE_WIDTH, emit
from wattledger_cli.top_model import Picture, Sort, picture
from wattledger_cli.top_view import Shown, View, draw, scroll_limit

if TYPE_CHECKING:
    from wattledger_cli.top_terminal import Terminal

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_VIEWS = {"a": View.ALL, "d": View.DEVICES, "e": View.ENGINES, "w": View.WORKLOADS}
_SORTS = tuple(Sort)
_MOVES = {"up": -1, "down": 1, "k": -1, "j": 1}


@app.command()
def top(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Print one screen and end.")] = False,
    period: Annotated[
        float,
        typer.Option("--period", metavar="S", min=0.2, max=60.0, help="Seconds between asks."),
    ] = 1.0,
) -> None:
    """Show live power, tokens/s and J/token of this host, per workload, engine and device.

    In the terminal h tells the keys. Where nobody looks on (a pipe, --format json) one answer is
    printed, as with --once.

    Example: wattledger top --once
    """
    options = options_of(context)
    seen = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    if once or not seen or options.format is not Format.TABLE:
        _once(options, picture(daemon_status(local_socket())))
    else:
        # Its library would tell of a lost connection in the midst of the screen.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        _live(local_socket(), period)


def _once(options: Options, found: Picture) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH

    def show() -> None:
        for line in draw(found, Shown(), width, None):
            sys.stdout.write(f"{line.text}\n")

    emit(options, found.to_json(), found.records(), show)


@dataclass(frozen=True, slots=True)
class Answer:
    """The daemon's last answer, when it came, and why there was no later one."""

    picture: Picture | None = None
    at_s: float = 0.0
    fault: str = ""

    def alert(self, now_s: float) -> str:
        """What to say above the tables."""
        if not self.fault:
            return ""
        age = f"no answer for {now_s - self.at_s:.0f} s, " if self.picture else ""
        return f"{age}asking again ({self.fault})"


class Asker(threading.Thread):
    """Asks the daemon again and again, so that no key waits for an answer."""

    def __init__(self, socket: Path, period_s: float, told: Callable[[], None]) -> None:
        super().__init__(name="asker", daemon=True)
        self.answer = Answer()
        self._socket = socket
        self._period_s = period_s
        self._told = told
        self._over = threading.Event()

    def run(self) -> None:
        """Ask until `stop`; a daemon that comes back is found again."""
        while not self._over.is_set():
            try:
                with Node(self._socket) as node:
                    while not self._over.is_set():
                        self._tell(Answer(picture(node.status()), time.monotonic()))
                        self._over.wait(self._period_s)
            except UnreachableError as error:
                self._tell(replace(self.answer, fault=str(error).partition(": ")[0]))
                self._over.wait(self._period_s)

    def stop(self) -> None:
        """Ask no more."""
        self._over.set()

    def _tell(self, answer: Answer) -> None:
        self.answer = answer
        self._told()


def _live(socket: Path, period_s: float) -> None:
    from wattledger_cli.top_terminal import terminal

    with terminal() as screen:
        asker = Asker(socket, period_s, screen.wake)
        asker.start()
        try:
            _run(screen, asker)
        finally:
            asker.stop()
            asker.join(2.0)


def _run(screen: Terminal, asker: Asker) -> None:
    shown, held = Shown(), asker.answer
    while screen.ending is None:
        held = held if shown.paused else asker.answer
        columns, lines = screen.size
        alert = held.alert(time.monotonic())
        screen.show(draw(held.picture, shown, columns, lines, alert or _waiting(held)))
        keys = screen.keys(1.0)
        if keys is None:
            return
        for key in keys:
            if key in ("q", "Q", "\x03", "\x04"):
                return
            shown = pressed(shown, key, held.picture, page=max(1, lines - 7))


def _waiting(answer: Answer) -> str:
    return "" if answer.picture else "asking the daemon"


def pressed(shown: Shown, key: str, picture: Picture | None, page: int) -> Shown:
    """What is shown after a key; one that means nothing changes nothing."""
    if key in _VIEWS:
        return replace(shown, view=_VIEWS[key], scroll=0, help=False)
    if key == "s":
        return replace(shown, sort=_SORTS[(_SORTS.index(shown.sort) + 1) % len(_SORTS)], scroll=0)
    if key == " ":
        return replace(shown, paused=not shown.paused)
    if key in ("h", "?"):
        return replace(shown, help=not shown.help)
    moves = _MOVES | {"page up": -page, "page down": page, "home": -(10**9), "end": 10**9}
    if key in moves and picture is not None:
        limit = scroll_limit(picture, shown, page)
        return replace(shown, scroll=min(max(0, shown.scroll + moves[key]), limit))
    return shown
