"""What 100,000 tokens a second cost the daemon: 4 engines with 256 running requests each."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.daemon_cost import cpu_s, rss_mb
from benchmarks.table import BenchError, Figure
from fakes.nvml import FakeNvml
from wattledger.store.sqlite import SqliteLedger

LOAD = Path(__file__).with_name("tokens_load.py")
ENGINES = 4
RUNNING = 256
STEPS_PER_S = 98
WARM_UP_S = 20.0
ALL_TIME = (0, 2**62)


def measure(minutes: float = 2.0, gpus: int = ENGINES) -> list[Figure]:
    """The daemon's CPU and memory, and whether every token is in its ledger."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        socket, ledger = folder / "s.sock", folder / "ledger.db"
        seconds = WARM_UP_S + minutes * 60
        # Each has its pid now, and waits for the socket.
        loads = [_load(socket, seconds) for _ in range(ENGINES)]
        config = folder / "wattledger.toml"
        config.write_text(f'[ledger]\npath = "{ledger}"\n[collect]\nsocket = "{socket}"\n')
        command = [str(Path(sys.executable).with_name("wattledgerd")), "--config", str(config)]
        fake = FakeNvml(_script([load.pid for load in loads], gpus))
        daemon = subprocess.Popen(command, env=fake.env(), stderr=(folder / "log").open("w"))
        try:
            time.sleep(WARM_UP_S)
            if daemon.poll() is not None:
                raise BenchError(f"the daemon ended: {(folder / 'log').read_text()[-300:]}")
            before_s, start_s = cpu_s(daemon.pid), time.monotonic()
            early_mb = rss_mb(daemon.pid)
            time.sleep(minutes * 60 - 2)
            percent = (cpu_s(daemon.pid) - before_s) / (time.monotonic() - start_s) * 100
            late_mb = rss_mb(daemon.pid)
            told = [json.loads(load.communicate(timeout=60)[0]) for load in loads]
        finally:
            for load in loads:
                load.kill()
                load.wait()
            daemon.terminate()
            daemon.wait(timeout=30)
        booked, dropped = _booked(ledger)
        lines = (folder / "log").read_text()
    sent = sum(item["tokens"] for item in told)
    if "queue_overflow" in lines:
        raise BenchError(f"the daemon's queue overflowed: {lines[-300:]}")
    decodes = ENGINES * RUNNING * STEPS_PER_S
    what = f"daemon, {gpus} GPUs, {ENGINES} engines, {decodes:,} decoded tokens/s"
    return [
        Figure(f"{what}: CPU over {minutes:g} min", percent, "% of a core", 10.0),
        Figure(f"{what}: RSS after {WARM_UP_S:g} s", early_mb, "MB"),
        Figure(f"{what}: RSS after {minutes + WARM_UP_S / 60:.1f} min", late_mb, "MB"),
        Figure(f"{what}: tokens sent", sent, "tokens"),
        Figure(f"{what}: tokens sent and not booked", abs(sent - booked), "tokens", 0.0),
        Figure(f"{what}: events dropped", dropped, "events", 0.0),
        Figure("the load's own batches that went out late", sum(t["late"] for t in told), ""),
    ]


def _load(socket: Path, seconds: float) -> subprocess.Popen[str]:
    arguments = map(str, (LOAD, socket, STEPS_PER_S, RUNNING, seconds))
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _script(pids: list[int], gpus: int) -> list[str]:
    """GPUs under a square wave, shared out evenly among the engines."""
    lines = []
    for gpu in range(gpus):
        lines.append(f"gpu {gpu} NVIDIA_H100_80GB_HBM3 GPU-{gpu}")
        lines += [f"seg {gpu} {t} {500_000 if t % 2 else 600_000}" for t in range(500)]
        pid = pids[gpu * len(pids) // gpus]
        lines.append(f"compute {gpu} {pid} 10737418240 0 10000 60")
    return lines


def _booked(path: Path) -> tuple[int, int]:
    """Tokens in the ledger, and engine events it knows to be lost."""
    ledger = SqliteLedger(path)
    try:
        sums = [item.amounts for item in ledger.slices(ALL_TIME).slices]
        events = ledger.books(*ALL_TIME)
        return sum(a.prefill_tokens + a.decode_tokens for a in sums), events.dropped
    finally:
        ledger.close()
