"""`wattledger record`: what a running daemon measures, as a trace that `replay` can run again."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TextIO

import typer

from wattledger.errors import InputError, UnreachableError
from wattledger.records import NS_PER_S
from wattledger_cli.node import Recording, daemon_status, local_socket
from wattledger_cli.options import Options, options_of
from wattledger_cli.output import draw_notes, emit

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_WATERMARK_NS = 12 * NS_PER_S
"""The daemon books a window 10 s after its end, and its sensors hand over once a second."""

_PROCESS = '{"type":"process"'
_ENGINE = '{"type":"engine"'
_HEADER = '{"type":"header"'


@dataclass(slots=True)
class _Trace:
    """What came so far. The last word on each process and engine holds, and is written last."""

    lines: int = 0
    epoch_ns: int = 0
    start_ns: int | None = None
    end_ns: int = 0
    who: dict[tuple[object, ...], str] = field(default_factory=dict)

    def take(self, lines: list[str], file: TextIO) -> None:
        """Write lines, but those that say who is who."""
        from wattledger.records import Engine, Process
        from wattledger.trace import TraceHeader, decode

        for line in lines:
            if line.startswith((_PROCESS, _ENGINE, _HEADER)):
                match decode(line):
                    case Process(pid=pid, start=start):
                        self.who[pid, start] = line
                        continue
                    case Engine(engine=engine):
                        self.who[engine,] = line
                        continue
                    case TraceHeader(epoch_ns=epoch_ns):
                        self.epoch_ns = epoch_ns
            self.lines += 1
            file.write(f"{line}\n")
        self.end_ns = self.epoch_ns + time.monotonic_ns()
        if self.start_ns is None:
            self.start_ns = self.end_ns

    def close(self, file: TextIO) -> None:
        """Write what was kept, and have it all on disk."""
        file.writelines(f"{line}\n" for line in self.who.values())
        self.lines += len(self.who)
        file.flush()
        os.fsync(file.fileno())

    def whole(self, window_s: int) -> tuple[int, int] | None:
        """The windows that lie whole in it, UTC; None where it is too short for any."""
        window_ns = window_s * NS_PER_S
        start_ns = -(-(self.start_ns or 0) // window_ns) * window_ns
        end_ns = (self.end_ns - _WATERMARK_NS) // window_ns * window_ns
        return (start_ns, end_ns) if start_ns < end_ns else None


@app.command()
def record(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", metavar="TRACE.jsonl", help="The trace to write.")
    ],
    length: Annotated[
        str | None,
        typer.Option("--for", metavar="60s", help="How long to record; by default until ^C."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Record a trace from the running daemon, for `wattledger replay`.

    The file appears when the recording ends: after --for, at ^C, or when the daemon ends it.
    Windows that lie whole in it are replayed to the very microjoule that the daemon booked.

    Example: wattledger record --output run.jsonl --for 60s
    """
    from wattledger.timespan import parse_duration

    options = options_of(context)
    length_ns = None if length is None else parse_duration(length)
    if output.exists() and not force:
        raise InputError(f"{output} is there already: name another, or add --force")
    window_s = daemon_status(local_socket()).daemon.window_s or 5
    trace = _Trace()
    staged = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        reason = _record(options, staged, length_ns, trace)
        if trace.start_ns is None:
            raise UnreachableError(reason or "stopped before the daemon said anything")
        _put(staged, output, force=force)
    except OSError as error:
        raise InputError(f"{output}: {error.strerror}: mend that and record again") from error
    finally:
        with suppress(OSError):
            staged.unlink()
    _tell(options, output, trace, window_s)
    if reason is not None:
        raise UnreachableError(f"{reason} ({output} holds what came before)")


def _record(options: Options, staged: Path, length_ns: int | None, trace: _Trace) -> str | None:
    """Fill `staged` until it is enough; returns why it ended before, None where it did not."""
    with staged.open("x", encoding="utf-8") as file, Recording(local_socket()) as stream:
        enough = threading.Timer((length_ns or 0) / NS_PER_S, stream.stop)
        enough.daemon = True
        with _stopped_by_signals(stream.stop):
            try:
                for lines in stream:
                    if trace.start_ns is None and length_ns is not None:
                        enough.start()
                    trace.take(lines, file)
                    _progress(options, trace)
            finally:
                enough.cancel()
                _progress(options, None)
        trace.close(file)
        return stream.ended


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Have ^C and SIGTERM stop the recording, so that it ends as well as any other."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: stop()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _put(staged: Path, output: Path, *, force: bool) -> None:
    """Give the file its name; what has come to lie there meanwhile stays, unless forced."""
    if force:
        staged.replace(output)
        return
    try:
        output.hardlink_to(staged)
    except FileExistsError:
        raise InputError(f"{output} is there by now: name another, or add --force") from None


def _progress(options: Options, trace: _Trace | None) -> None:
    """Tell on a terminal how far it is; None ends the line."""
    if options.quiet or not sys.stderr.isatty():
        return
    if trace is None:
        sys.stderr.write("\r\x1b[K")
    else:
        gone_s = (trace.end_ns - (trace.start_ns or trace.end_ns)) / NS_PER_S
        sys.stderr.write(f"\rrecording, {gone_s:.0f} s, {trace.lines} lines, ^C ends it\x1b[K")
    sys.stderr.flush()


def _tell(options: Options, output: Path, trace: _Trace, window_s: int) -> None:
    from wattledger.timespan import format_instant

    assert trace.start_ns is not None
    whole = trace.whole(window_s)
    start, end = format_instant(trace.start_ns), format_instant(trace.end_ns)
    whole_from, whole_to = map(format_instant, whole) if whole else (None, None)
    size_bytes = output.stat().st_size
    found: dict[str, object] = {
        "output": str(output),
        "lines": trace.lines,
        "bytes": size_bytes,
        "from": start,
        "to": end,
        "window_s": window_s,
        "whole_from": whole_from,
        "whole_to": whole_to,
    }

    def draw() -> None:
        length_s = (trace.end_ns - (trace.start_ns or 0)) / NS_PER_S
        did = f"{length_s:.0f} s, {trace.lines} lines, {size_bytes / 1e6:.1f} MB"
        notes = [("trace", f"{output}, {did}"), ("window", f"{start} to {end}")]
        if whole:
            notes.append(("exact", f"{whole_from} to {whole_to}, as the daemon books it"))
        else:
            notes.append(("exact", "nothing: too short for a whole window and its 12 s watermark"))
        flags = f"{output} --ledger sqlite:run.db --window {window_s}s"
        notes.append(("next", f"wattledger replay {flags}"))
        draw_notes(notes)

    emit(options, {"schema": "wattledger.record/1", **found}, [found], draw)
