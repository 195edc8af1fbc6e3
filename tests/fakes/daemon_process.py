"""A real `wattledgerd` in a process of its own, on a config in a folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE_S = 60.0

CONFIG = """
[ledger]
path = "{folder}/ledger.db"
[sampling]
window_s = 1
[collect]
socket = "{socket}"
[site]
host = "h1"
"""


class DaemonProcess:
    """Starts at `with`, and is killed at its end if it still runs."""

    def __init__(
        self,
        folder: Path,
        environ: Mapping[str, str] | None = None,
        config: str = "",
        socket: Path | None = None,
    ) -> None:
        self.folder = folder
        self.socket = socket or folder / "w.sock"
        self.ledger = folder / "ledger.db"
        self.config = folder / "wattledger.toml"
        self.log: list[str] = []
        self._changed = threading.Condition()
        self._environ = {
            **(environ or os.environ),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self.write_config(config)

    def write_config(self, more: str) -> None:
        self.config.write_text(CONFIG.format(folder=self.folder, socket=self.socket) + more)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "wattledger_daemon", "--config", self.config],
            stderr=subprocess.PIPE,
            env=self._environ,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.exit_status()

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def exit_status(self) -> int:
        """Wait for the end; negative for a signal that killed it."""
        status = self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self._process.stderr
        self._process.stderr.close()
        return status

    def wait_for(self, text: str) -> str:
        """The first line of the log with `text` in it; AssertionError where none comes."""
        lines: list[str] = []

        def found() -> bool:
            lines[:] = [line for line in self.log if text in line]
            return bool(lines)

        self._wait(found)
        assert lines, f"no {text!r} in the log:\n" + "\n".join(self.log)
        return lines[0]

    def _wait(self, found: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: found() or not self._reader.is_alive(), PATIENCE_S)

    def _read(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            with self._changed:
                self.log.append(line.rstrip("\n"))
                self._changed.notify_all()
