"""`wattledger proxy` in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE_S = 60.0


class ProxyProcess:
    """Runs inside `with`; `lines` is what it wrote to stderr so far."""

    def __init__(self, engine: str, to_port: int, socket: Path, *options: str) -> None:
        self._command = [
            *(sys.executable, "-m", "wattledger_cli", "proxy", "--engine", engine),
            *("--to", f"http://127.0.0.1:{to_port}", "--listen", "127.0.0.1:0"),
            *("--socket", str(socket), *options),
        ]
        self.lines: list[str] = []
        self.port = 0
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(
            self._command, stderr=subprocess.PIPE, text=True, env=environ
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(PATIENCE_S), self.lines
        assert self.port, self.lines
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self.process.stderr
        self.process.stderr.close()

    def stop(self) -> int:
        """Its exit status after SIGTERM; it hands over what it has counted."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return status

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            found = re.search(r"http://127\.0\.0\.1:(\d+) passes on to ", line)
            if found:
                self.port = int(found[1])
                self._ready.set()
        self._ready.set()
