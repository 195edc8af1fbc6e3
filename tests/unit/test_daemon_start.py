"""What starting the daemon brings into memory, and what it leaves as it was."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
sys.argv = ["wattledgerd", "--version"]
from wattledger_daemon import main
try:
    main()
except SystemExit:
    pass
from wattledger_daemon.bank import find_sensors, find_use_sensors
assert {"redfish", "nvml"} <= find_sensors().keys() and "cpu_use" in find_use_sensors()
print("ssl" in sys.modules, "asyncio" in sys.modules)
import ssl
print(ssl.create_default_context().verify_mode.name)
"""


def test_a_unix_socket_needs_no_openssl_and_whoever_does_can_have_it() -> None:
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout.splitlines()[-2:] == ["False True", "CERT_REQUIRED"]
