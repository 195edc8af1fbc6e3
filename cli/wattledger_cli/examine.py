"""The examinations of `wattledger doctor`: each looks at one part and says what it found."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from wattledger.errors import WattledgerError
from wattledger.records import Device, DeviceKind
from wattledger.store import ledger_path, open_ledger
from wattledger.timespan import format_instant
from wattledger_cli.figures import figure
from wattledger_cli.node import join_group
from wattledger_collectors.sensors.protocol import Absent, Denied, Sensor, SensorSettings

STAND_IN = "estimate"
MENDED = ": "


class State(StrEnum):
    """How a part does; `spare` is a stand-in that nothing needs here, `notice` works but for."""

    READY = "ready"
    SPARE = "spare"
    NOTICE = "notice"
    STARTING = "starting"
    ABSENT = "absent"
    DENIED = "denied"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one part; `mend` is empty where there is nothing to mend.

    `figures` are what the daemon measures of itself, by names that end in their unit.
    """

    part: str
    name: str
    state: State
    detail: str
    mend: str = ""
    figures: Mapping[str, float | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Its fields by name; figures where there are any."""
        told: dict[str, object] = dict(asdict(self))
        return told if self.figures else self.to_record()

    def to_record(self) -> dict[str, object]:
        """Its fields by name, each a plain value."""
        told: dict[str, object] = dict(asdict(self))
        del told["figures"]
        return told


def examine_sensors() -> list[Finding]:
    """One finding per installed sensor, the stand-in for a missing CPU meter last."""
    entries = sorted(
        entry_points(group="wattledger.sensors"),
        key=lambda entry: (entry.name == STAND_IN, entry.name),
    )
    findings: list[Finding] = []
    kinds: set[DeviceKind] = set()
    for entry in entries:
        devices, finding = _examine_sensor(entry, spare=DeviceKind.CPU in kinds)
        kinds.update(device.kind for device in devices)
        findings.append(finding)
    if not entries:
        reason, mend = "no sensors are installed", "pip install 'wattledger[daemon]'"
        findings.append(Finding("sensor", "-", State.ABSENT, reason, mend))
    return findings


def _examine_sensor(entry: EntryPoint, *, spare: bool) -> tuple[tuple[Device, ...], Finding]:
    try:
        sensor: Sensor = entry.load()(SensorSettings())
        try:
            devices = sensor.open()
        finally:
            sensor.close()
    except Absent as absent:
        return (), Finding("sensor", entry.name, State.ABSENT, absent.reason)
    except Denied as denied:
        return (), Finding("sensor", entry.name, State.DENIED, denied.reason, denied.mend)
    except Exception as error:  # noqa: BLE001 - anybody's sensor, and this is what is asked for
        reason = f"{type(error).__name__}: {error}"
        return (), Finding("sensor", entry.name, State.FAILING, reason)
    if entry.name == STAND_IN and spare:
        return (), Finding("sensor", entry.name, State.SPARE, "the CPU is measured")
    detail = ", ".join(_device(device) for device in devices)
    note = getattr(sensor, "note", "")
    return devices, Finding(
        "sensor", entry.name, State.READY, f"{detail}; {note}" if note else detail
    )


def _device(device: Device) -> str:
    estimated = ", estimated" if device.estimated else ""
    return f"{device.device} ({device.model or device.kind}{estimated})"


def examine_ledger(url: str) -> Finding:
    """Whether the ledger can be read, and what stretch of time it holds."""
    path: Path | None = None
    try:
        path = ledger_path(url)
        store = open_ledger(url)
        try:
            extent = store.extent()
        finally:
            store.close()
    except WattledgerError as error:
        if path is not None and (closed := closed_to_us(path)):
            return Finding("ledger", url, State.DENIED, f"{path} is closed to this user", closed)
        detail, _, mend = str(error).rpartition(MENDED)
        state = State.FAILING if path is not None and path.exists() else State.ABSENT
        return Finding("ledger", url, state, detail, mend)
    held = " to ".join(format_instant(t_ns) for t_ns in extent) if extent else "nothing yet"
    mega = figure(path.stat().st_size / 1e6)
    return Finding("ledger", url, State.READY, f"{path}, {mega} MB, holds {held}")


def closed_to_us(path: Path) -> str:
    """What opens a file to this user, or a folder above it; empty where nothing is closed."""
    for part in (*reversed(path.parents), path):
        needed = os.R_OK if part == path else os.X_OK
        try:
            found = part.stat()
        except OSError:
            return ""
        if not os.access(part, needed):
            return join_group(found.st_mode, found.st_gid)
    return ""
