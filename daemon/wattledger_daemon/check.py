"""What `wattledgerd --check` says: the config holds, and this is what each sensor would do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from wattledger_daemon.app import ledger_path, socket_path
from wattledger_daemon.bank import SensorBank, find_sensors
from wattledger_daemon.config import DaemonConfig
from wattledger_daemon.export.exports import examine
from wattledger_daemon.sampling import SensorRunner, SensorState


def check(config: DaemonConfig, path: Path | None, environ: Mapping[str, str]) -> str:
    """A report of one line per subject; nothing is written or left open.

    Raises InputError where the daemon would refuse to start on this config.
    """
    bank = SensorBank(config, lambda _: True, find_sensors())
    # The report says all that the sensors would log.
    logging.disable()
    lines = [
        ("config", str(path) if path else "none, the defaults hold"),
        ("ledger", str(ledger_path(config, environ))),
        ("socket", str(socket_path(config, environ))),
    ]
    for runner in bank.runners:
        runner.tick()
        lines.append((runner.name, _finding(runner)))
    bank.require()
    lines += examine(config)
    if config.scrape:
        from wattledger_daemon import scraping

        lines += scraping.examine(config.scrape)
    bank.close()
    width = max(len(name) for name, _ in lines)
    return "".join(f"{name:{width}}  {text}\n" for name, text in lines)


def _finding(runner: SensorRunner) -> str:
    health = runner.health
    if health.state is not SensorState.RUNNING:
        return f"{health.state.value}: {health.reason}"
    devices = [
        f"{device.device} ({device.model or device.kind.value}"
        f"{', estimated' if device.estimated else ''})"
        for device in runner.devices
    ]
    return f"would read {', '.join(devices)}" if devices else "would read who uses the devices"
