"""A fake `ipmitool`: a script that prints what a file holds, in the shapes that real ones do."""

from __future__ import annotations

import os
from pathlib import Path

READING = """
    Instantaneous power reading:                   {power_w} Watts
    Minimum during sampling period:                162 Watts
    Maximum during sampling period:                276 Watts
    Average power reading over sample period:      176 Watts
    IPMI timestamp:                           {stamp}
    Sampling period:                          01131466 Seconds.
    Power reading state is:                   {state}

"""
# ipmitool 1.8.19 forgets the end of the line after the time stamp.
READING_1_8_19 = READING.replace("{stamp}\n", "{stamp}")
UNSET_CLOCK = "Thu Jan  1 00:00:00 1970"
UNSUPPORTED = "\n    DCMI request failed because: Invalid command (c1)\n"
BUSY = "\n    DCMI request failed because: Node busy (c0)\n"
NO_DCMI = "\n    A valid DCMI command was not returned! (80)\n"
NO_DEVICE = (
    "Could not open device at /dev/ipmi0 or /dev/ipmi/0 or /dev/ipmidev/0: "
    "No such file or directory\n"
)


def reading(power_w: int, second: int = 0, state: str = "activated") -> str:
    stamp = f"Wed Feb 15 12:{second // 60:02}:{second % 60:02} 2017"
    return READING.format(power_w=power_w, stamp=stamp, state=state)


class FakeIpmitool:
    """`ROOT/bin/ipmitool` and `ROOT/dev/ipmi0`; it counts its calls and notes its pids."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "bin"
        self.dev = root / "dev"
        self._said = root / "said"
        self._pids = root / "pids"
        self._arguments = root / "arguments"
        self.bin.mkdir()
        self.dev.mkdir()
        (self.dev / "ipmi0").touch()
        self.does(f'cat "{self._said}"')
        self.says(reading(215))

    def does(self, commands: str, status: int = 0) -> None:
        program = self.bin / "ipmitool"
        program.write_text(
            "#!/bin/sh\n"
            f'echo $$ >>"{self._pids}"\n'
            f'echo "$*" >>"{self._arguments}"\n'
            f"{commands}\nexit {status}\n"
        )
        program.chmod(0o755)

    def says(self, text: str) -> None:
        self._said.write_text(text)

    @property
    def calls(self) -> list[str]:
        return self._arguments.read_text().splitlines()

    @property
    def alive(self) -> list[int]:
        """Those of its processes that still are, zombies too."""
        return [pid for pid in map(int, self._pids.read_text().split()) if _exists(pid)]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
