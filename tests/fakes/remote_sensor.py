"""The other end of `fakes.nvml.RemoteSensor`: a process that drives one sensor."""

from __future__ import annotations

import importlib
import mmap
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path


def script_clock(path: Path) -> Callable[[], int]:
    """The fake's script time in nanoseconds."""
    with path.open("rb") as file:
        page = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    return lambda: int(struct.unpack_from("=q", page)[0]) * 1000


def main() -> None:
    target, settings = pickle.load(sys.stdin.buffer)
    module, _, name = target.partition(":")
    clock = script_clock(Path(os.environ["FAKE_NVML_CLOCK"]))
    sensor = getattr(importlib.import_module(module), name)(settings, clock)
    while True:
        try:
            method = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            result = (True, getattr(sensor, method)())
        except Exception as error:  # noqa: BLE001 - whatever it is, the test is to see it
            result = (False, error)
        pickle.dump(result, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
