"""`wattledger demo`: the whole path on this machine, from a real engine to grams."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from wattledger.errors import DataMissingError, InputError, UnreachableError
from wattledger_cli.demo_processes import Child, free_port, serves, start, wait_until
from wattledger_cli.demo_traffic import Mix, Tally, drive
from wattledger_cli.options import Options, options_of

if TYPE_CHECKING:
    from wattledger.timespan import Window

app = typer.Typer(add_completion=False, rich_markup_mode=None)

WINDOW_S = 5
DAEMON_READY_S = 20.0
ENGINE_READY_S = 90.0
BOOKED_S = 20.0
MODEL_SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_tiny_gguf.py"
# An example, not a claim about where this machine stands.
EXAMPLE_ZONE = "FRA"
JOBS = {"chat": (6, 96), "summarize": (240, 8)}


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a demo plays: its folder, its ledger and the daemon's socket."""

    folder: Path
    socket: Path
    python: Path
    model: Path

    @property
    def ledger(self) -> Path:
        """The demo's own ledger; a second run adds to it."""
        return self.folder / "ledger.db"

    @property
    def config(self) -> Path:
        """The daemon's config."""
        return self.folder / "demo.toml"


@app.command()
def demo(
    context: typer.Context,
    *,
    engine_python: Annotated[
        Path,
        typer.Option(metavar="PATH", help="Python that has llama-cpp-python: scripts/engines.sh."),
    ],
    workdir: Annotated[
        Path, typer.Option(metavar="DIR", help="Where ledger, logs and model lie.")
    ] = Path("demo-run"),
    model: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A GGUF; by default a tiny random one is made."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(metavar="S", min=1.0, max=600.0, help="How long clients ask.")
    ] = 20.0,
    clients: Annotated[
        int, typer.Option(metavar="N", min=2, max=64, help="How many clients ask at once.")
    ] = 6,
    zone: Annotated[
        str, typer.Option(metavar="ZONE", help="Zone of the example intensity.")
    ] = EXAMPLE_ZONE,
) -> None:
    """Run the whole path on this machine: daemon, two engines, clients, statement, audit.

    Everything listens on loopback or on a private socket, lives in WORKDIR and ends with the
    command. `make demo` builds the engine first.
    """
    from wattledger.carbon.annual import resolve_zone

    options = options_of(context)
    resolve_zone(zone)
    with ExitStack() as stack:
        short = stack.enter_context(tempfile.TemporaryDirectory(prefix="wattledger-"))
        stage = _prepare(options, workdir, Path(short), engine_python, model)
        options.ledger = f"sqlite:{stage.ledger}"
        signal.signal(signal.SIGTERM, _interrupt)
        window, tally = _play(stack, options, stage, seconds, clients)
    from wattledger_cli.demo_report import report

    report(options, window, zone, tally)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _prepare(
    options: Options, folder: Path, short: Path, python: Path, model: Path | None
) -> Stage:
    for path, mend in ((python, "scripts/engines.sh builds one"), (model, "name a GGUF")):
        if path is not None and not path.is_file():
            raise InputError(f"{path} is not there: {mend}")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    python = python.absolute()
    model = model.resolve() if model else _make_model(options, python, folder / "tiny.gguf")
    stage = Stage(folder, short / "d.sock", python, model)
    stage.config.write_text(
        f"[ledger]\npath = {_toml(stage.ledger)}\n"
        f"[sampling]\nwindow_s = {WINDOW_S}\n"
        f"[collect]\nsocket = {_toml(stage.socket)}\n"
    )
    return stage


def _make_model(options: Options, python: Path, model: Path) -> Path:
    """A tiny random model, made by the checkout's script in the engine's environment."""
    if model.is_file():
        return model
    if not MODEL_SCRIPT.is_file():
        raise InputError(f"no {model}, and no checkout whose script makes one: give --model FILE")
    say(options, f"making a tiny random model, {model}")
    staged = model.with_suffix(".part")
    made = subprocess.run(
        [python, MODEL_SCRIPT, staged], capture_output=True, text=True, check=False
    )
    if made.returncode:
        last = (made.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InputError(f"{MODEL_SCRIPT.name} failed, {last!r}: run scripts/engines.sh again")
    staged.replace(model)
    return model


def _toml(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _play(
    stack: ExitStack, options: Options, stage: Stage, seconds: float, clients: int
) -> tuple[Window, Tally]:
    """Run daemon, engines and clients; return the window booked, and what the engines counted."""
    start_ns = time.time_ns()
    daemon = _start_daemon(stack, options, stage)
    engines = stack.enter_context(ExitStack())
    mixes = _start_engines(engines, options, stage)
    say(options, f"{clients} clients ask for {seconds:.0f} s, chat with short prompts and long")
    say(options, "answers, summarize the other way round")
    tally = drive(mixes, clients, seconds, lambda gone_s, so_far: _tell(options, gone_s, so_far))
    if tally.failures:
        raise UnreachableError(f"an engine failed, {tally.failures[0]}: see {stage.folder}/*.log")
    say(options, f"the engines answered {tally.requests} requests; stopping them")
    engines.close()
    _wait_for_books(options, start_ns, tally.requests)
    say(options, "stopping the daemon, which books what is left")
    daemon.stop()
    return _booked(options, start_ns), tally


def _booked(options: Options, start_ns: int) -> Window:
    """What the ledger holds since `start_ns`, so that no edge cuts or misses anything."""
    from wattledger.timespan import Window

    with options.store() as store:
        extent = store.extent()
    if extent is None or extent[1] <= start_ns:
        raise DataMissingError("the daemon booked nothing: see wattledgerd.log in the workdir")
    return Window(max(start_ns, extent[0]), extent[1])


def _start_daemon(stack: ExitStack, options: Options, stage: Stage) -> Child:
    from wattledger_cli.node import daemon_status

    say(options, f"starting wattledgerd, its ledger is {stage.ledger}")
    command = [sys.executable, "-m", "wattledger_daemon", "--config", str(stage.config)]
    daemon = start(stack, "wattledgerd", command, stage.folder)

    def ready() -> bool:
        try:
            daemon_status(stage.socket)
        except UnreachableError:
            return False
        return True

    wait_until(daemon, ready, DAEMON_READY_S)
    return daemon


def _start_engines(stack: ExitStack, options: Options, stage: Stage) -> Sequence[Mix]:
    mixes = []
    waiting = []
    for job, (prompt_words, answer_tokens) in JOBS.items():
        port = free_port()
        attach = [sys.executable, "-m", "wattledger_cli", "attach", "--job", job]
        serve = [str(stage.python), "-m", "llama_cpp.server", "--model", str(stage.model)]
        limits = ["--host", "127.0.0.1", "--port", str(port)]
        limits += ["--n_threads", "1", "--n_threads_batch", "1"]
        command = [*attach, "--socket", str(stage.socket), "--", *serve, *limits]
        say(options, f"starting llama_cpp.server for job {job} on 127.0.0.1:{port}")
        waiting.append((start(stack, f"engine-{job}", command, stage.folder), port))
        mixes.append(Mix(job, port, prompt_words, answer_tokens))
    for engine, port in waiting:
        wait_until(engine, lambda port=port: serves(port), ENGINE_READY_S)  # type: ignore[misc]
    return mixes


def _wait_for_books(options: Options, start_ns: int, requests: int) -> None:
    say(options, f"waiting until all are booked, at most {BOOKED_S:.0f} s")
    deadline_s = time.monotonic() + BOOKED_S
    booked = 0
    while booked < requests and time.monotonic() < deadline_s:
        time.sleep(1.0)
        with options.store() as store:
            booked = len(store.requests(start_ns, time.time_ns()))
    say(options, f"{booked} of {requests} requests are booked")


def _tell(options: Options, gone_s: float, tally: Tally) -> None:
    say(options, f"{gone_s:4.0f} s, {tally.requests} requests, {tally.answer_tokens} tokens")


def say(options: Options, line: str) -> None:
    """Tell progress on stderr."""
    if not options.quiet:
        sys.stderr.write(f"demo: {line}\n")
        sys.stderr.flush()
