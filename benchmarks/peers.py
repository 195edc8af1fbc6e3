"""wattledgerd beside CodeCarbon and Zeus: the same driver library, the same minutes.

Two rounds, so that no tool runs twice at a time and shares its memory with itself: wattledgerd at
10 Hz beside both peers at 1 Hz, which is what the bars are about, then the other rates. The peers
come from PyPI (scripts/peers.sh) and run as their users run them. A loop that only wakes ten times
a second runs beside them: what waking costs on this machine.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers_tree import Cost, cost_of
from benchmarks.table import BenchError, Figure
from fakes.nvml import FakeNvml

WARM_UP_S = 30
MEASURE_S = 90
_SETTLE_S = 5.0
_QUIET = 0.1
GPUS = 8
_ROOT = Path(__file__).parents[1]
_DAEMON = Path(sys.executable).with_name("wattledgerd")
_CODECARBON = "monitor --offline --country-iso-code FRA --no-api --measure-power-secs 1"
# What Zeus's own command line does, without printing; it makes processes of its own.
_ZEUS = """
import signal, sys, time
from zeus.monitor.power import PowerMonitor
if __name__ == "__main__":
    monitor = PowerMonitor(update_period=float(sys.argv[1]))
    # A parent in the background may have left it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start = time.time()
    try:
        while True:
            time.sleep(monitor.update_period)
            monitor.get_power()
    except KeyboardInterrupt:
        print("gpu_j", sum(monitor.get_energy(start, time.time()).values()))
"""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool under measurement.

    `told_j` is the GPU energy it tells in its folder when it ended: a tool that saw no GPU would
    be cheap for nothing. None: it meters nothing.
    """

    name: str
    command: tuple[str | Path, ...]
    told_j: Callable[[Path], float] | None


@dataclass(frozen=True, slots=True)
class Spent:
    """What a tool took over the measured time: percent of one core, and its memory at the end."""

    cpu_percent: float
    cost: Cost


_FLOOR = Tool(
    "an empty loop in Python, 10 Hz",
    (sys.executable, "-c", "import time\nwhile True: time.sleep(0.1)"),
    None,
)


def _wattledgerd(hz: float) -> Tool:
    return Tool(f"wattledgerd, {hz:g} Hz", (_DAEMON, "--config", f"{1 / hz}"), _ledger_j)


def _codecarbon(peers: Path) -> Tool:
    binary = peers / "codecarbon" / "bin" / "codecarbon"
    return Tool("CodeCarbon, 1 Hz", (binary, *_CODECARBON.split()), _emissions_j)


def _zeus(peers: Path, hz: float) -> Tool:
    python = peers / "zeus" / "bin" / "python"
    return Tool(f"Zeus, {hz:g} Hz", (python, "zeus_monitor.py", f"{1 / hz}"), _printed_j)


def _ledger_j(folder: Path) -> float:
    usage = (_DAEMON.with_name("wattledger"), "usage", "--last", "1h", "--by", "kind")
    options = ("--format", "json", "--ledger", f"sqlite:{folder}/ledger.db")
    told = json.loads(subprocess.run([*usage, *options], check=True, stdout=subprocess.PIPE).stdout)
    return sum(group["energy_j"] for group in told["groups"] if group["by"] == {"kind": "gpu"})


def _emissions_j(folder: Path) -> float:
    with (folder / "emissions.csv").open() as file:
        return sum(float(row["gpu_energy"]) * 3.6e6 for row in csv.DictReader(file))


def _printed_j(folder: Path) -> float:
    words = (folder / "log").read_text().split()
    return float(words[words.index("gpu_j") + 1])


def _peers() -> Path:
    """The folder of the peers' environments, made where it is missing."""
    script = _ROOT / "scripts" / "peers.sh"
    made = subprocess.run([script], check=False, stdout=subprocess.PIPE, text=True)
    if made.returncode:
        raise BenchError("CodeCarbon and Zeus could not be installed from PyPI")
    return Path(made.stdout.split()[-1])


def _fake() -> FakeNvml:
    lines = []
    for gpu in range(GPUS):
        lines.append(f"gpu {gpu} NVIDIA_H100_80GB_HBM3 GPU-{gpu}")
        lines += [f"seg {gpu} {4 * t} {70_000 if t % 2 else 600_000}" for t in range(100)]
    return FakeNvml(lines)


def _library(folder: Path) -> Path:
    """The fake driver library with the calls that the peers make besides."""
    options = ("-std=c11", "-O2", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1")
    sources = [*(_ROOT / "tests" / "fakes").glob("fake_nvml*.c"), _ROOT / "benchmarks/peers_nvml.c"]
    target = folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", *options, "-o", target, *sources, "-lpthread", "-lm"], check=True)
    return folder


@contextmanager
def _running(tool: Tool, env: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The tool in a folder and home of its own; killed at the end, its children with it."""
    folder.mkdir()
    command = list(tool.command)
    if command[0] == _DAEMON:
        command[-1] = _config(folder, period_s=str(command[-1]))
    (folder / "zeus_monitor.py").write_text(_ZEUS)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**env, "HOME": str(folder)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _end(tool: Tool, process: subprocess.Popen[bytes], folder: Path) -> None:
    """Interrupt the tool as a user does, and see that it metered the GPUs."""
    if tool.told_j is None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=30)
        told_j = tool.told_j(folder)
    except (OSError, ValueError, subprocess.SubprocessError) as silent:
        raise BenchError(f"{tool.name} told nothing:\n{_log(folder)}") from silent
    if told_j <= 0:
        raise BenchError(f"{tool.name} saw no GPU energy:\n{_log(folder)}")
    print(f"{tool.name}: told {told_j:,.0f} J of GPU energy", file=sys.stderr)


def _log(folder: Path) -> str:
    """The end of what the tool said."""
    return (folder / "log").read_text(errors="replace")[-2000:]


def _config(folder: Path, period_s: str) -> Path:
    config = folder / "wattledger.toml"
    config.write_text(
        f'[ledger]\npath = "{folder}/ledger.db"\n[sampling]\nperiod_s = {period_s}\n'
        f'[collect]\nsocket = "{folder}/s.sock"\n'
    )
    return config


def _round(tools: Sequence[Tool]) -> list[Spent]:
    """All tools at once, over the same seconds."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # CodeCarbon asks nvidia-smi whether there is a GPU, and then NVML.
        (folder / "nvidia-smi").write_text("#!/bin/sh\n")
        (folder / "nvidia-smi").chmod(0o755)
        env = {
            **_fake().env(),
            "LD_LIBRARY_PATH": str(_library(folder)),
            "PATH": f"{folder}:{os.environ['PATH']}",
        }
        started = [
            stack.enter_context(_running(tool, env, folder / str(index)))
            for index, tool in enumerate(tools)
        ]
        _settle(started)
        before = [(cost_of(process.pid).cpu_s, time.monotonic()) for process in started]
        time.sleep(MEASURE_S)
        spent = []
        for index, (process, (cpu_s, start_s)) in enumerate(zip(started, before, strict=True)):
            if process.poll() is not None:
                log = _log(folder / str(index))
                raise BenchError(f"{tools[index].name} ended by itself:\n{log}")
            after = cost_of(process.pid)
            percent = (after.cpu_s - cpu_s) / (time.monotonic() - start_s) * 100
            spent.append(Spent(percent, after))
        for index, (tool, process) in enumerate(zip(tools, started, strict=True)):
            _end(tool, process, folder / str(index))
        return spent


def _settle(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until every tool has started: importing takes some of them many seconds."""
    time.sleep(WARM_UP_S)
    for _ in range(20):
        before_s = [cost_of(process.pid).cpu_s for process in started]
        time.sleep(_SETTLE_S)
        after_s = [cost_of(process.pid).cpu_s for process in started]
        if all(b - a < _QUIET * _SETTLE_S for a, b in zip(before_s, after_s, strict=True)):
            return


def _figures(tool: Tool, spent: Spent) -> list[Figure]:
    count = f"{spent.cost.processes} process" + ("es" if spent.cost.processes > 1 else "")
    return [
        Figure(f"{tool.name}, {GPUS} GPUs: CPU", spent.cpu_percent, "% of a core"),
        Figure(f"{tool.name}: RSS, {count}", spent.cost.rss_mb, "MB"),
        Figure(f"{tool.name}: PSS, {count}", spent.cost.pss_mb, "MB"),
    ]


def measure() -> list[Figure]:
    """Both rounds, and wattledgerd at 10 Hz over each peer at 1 Hz."""
    peers = _peers()
    main = (_wattledgerd(10), _codecarbon(peers), _zeus(peers, 1), _FLOOR)
    other = (_wattledgerd(1), _zeus(peers, 10))
    figures: list[Figure] = []
    ratios: list[Figure] = []
    for tools in (main, other):
        spent = _round(tools)
        for tool, cost in zip(tools, spent, strict=True):
            figures += _figures(tool, cost)
        if tools is main:
            ours = spent[0]
            for tool, theirs in zip(tools[1:3], spent[1:3], strict=True):
                ratios += _ratios(tool.name, ours, theirs)
    return [*figures, *ratios]


def _ratios(peer: str, ours: Spent, theirs: Spent) -> list[Figure]:
    pairs = (
        ("CPU", ours.cpu_percent, theirs.cpu_percent),
        ("RSS", ours.cost.rss_mb, theirs.cost.rss_mb),
        ("PSS", ours.cost.pss_mb, theirs.cost.pss_mb),
    )
    return [
        Figure(f"{what}: wattledgerd at 10 Hz over {peer}", our / their, "x", 1.0)
        for what, our, their in pairs
    ]


def measure_apart() -> list[Figure]:
    """The same tools one after another, for a machine on which they disturb each other."""
    peers = _peers()
    tools = (
        _wattledgerd(10),
        _codecarbon(peers),
        _zeus(peers, 1),
        _wattledgerd(1),
        _zeus(peers, 10),
    )
    spent = [_round([tool])[0] for tool in tools]
    figures = [f for tool, cost in zip(tools, spent, strict=True) for f in _figures(tool, cost)]
    return [*figures, *(f for n in (1, 2) for f in _ratios(tools[n].name, spent[0], spent[n]))]
