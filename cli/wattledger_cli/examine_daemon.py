"""What the running daemon says of itself: its sensors, devices, engines, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from wattledger.errors import WattledgerError
from wattledger_cli.examine import MENDED, Finding, State, closed_to_us
from wattledger_cli.figures import figure
from wattledger_cli.node import daemon_status, local_socket

if TYPE_CHECKING:
    from wattledger_proto.v1.node_pb2 import DeviceStatus, EngineStatus, SensorStatus, Status

RATIO_BOUNDS = (0.9, 1.1)
SKIPPED_SHARE = 0.01
DAEMON_SENSOR = "daemon sensor"
_STATES = {
    "starting": State.STARTING,
    "running": State.READY,
    "absent": State.ABSENT,
    "denied": State.DENIED,
    "failing": State.FAILING,
    "stuck": State.FAILING,
}
_SILENT_S = 30.0


def examine_daemon() -> Iterator[Finding]:
    """Whether the daemon answers, and all that it then tells."""
    socket: Path | None = None
    try:
        socket = local_socket()
        status = daemon_status(socket)
    except (WattledgerError, PermissionError) as error:
        yield _unreached(socket, error)
        return
    yield _daemon(socket, status)
    yield from map(_sensor, status.sensors)
    yield from map(_device, status.devices)
    yield from map(_engine, status.engines)


def _unreached(socket: Path | None, error: Exception) -> Finding:
    if socket is not None and (mend := closed_to_us(socket)):
        detail = f"{socket} is closed to this user"
        return Finding("daemon", str(socket), State.DENIED, detail, mend)
    detail, _, mend = str(error).rpartition(MENDED)
    there = socket is not None and socket.exists()
    return Finding(
        "daemon", str(socket or "-"), State.FAILING if there else State.ABSENT, detail, mend
    )


def _daemon(socket: Path, status: Status) -> Finding:
    told = (
        f"{socket}, wattledgerd {status.software}, up {figure(status.uptime_s)} s,"
        f" {status.windows_booked} windows booked, ledger {status.ledger}"
    )
    figures: dict[str, float | None] = {
        "uptime_s": status.uptime_s,
        "queue_depth": status.queue_depth,
        "windows_booked": status.windows_booked,
    }
    if not status.HasField("daemon"):
        return Finding("daemon", str(socket), State.READY, told, figures=figures)
    own = status.daemon
    figures |= {
        "cpu_s": own.cpu_s,
        "rss_bytes": own.rss_bytes or None,
        "turn_s": own.turn_s,
        "longest_turn_s": own.longest_turn_s,
        "late_events": own.late_events,
        "duplicate_events": own.duplicate_events,
        "dropped_events": own.dropped_events,
        "journal_bytes": own.journal_bytes,
        "window_s": own.window_s,
    }
    share = own.cpu_s / status.uptime_s * 100 if status.uptime_s else 0.0
    told += (
        f"; {figure(own.rss_bytes / 1e6)} MB, {figure(share)} % of a core since its start,"
        f" longest turn {figure(own.longest_turn_s * 1e3)} ms"
    )
    if own.dropped_events:
        told += f"; {own.dropped_events} engine events were dropped"
        mend = "wattledger audit says in which windows"
        return Finding("daemon", str(socket), State.NOTICE, told, mend, figures)
    return Finding("daemon", str(socket), State.READY, told, figures=figures)


def _sensor(status: SensorStatus) -> Finding:
    """A sensor as the daemon has it, which may read what this user may not."""
    part, name = DAEMON_SENSOR, status.sensor
    state = _STATES.get(status.state, State.FAILING)
    if state in (State.ABSENT, State.DENIED, State.STARTING):
        split = status.reason.partition("; ") if state is State.DENIED else (status.reason, "", "")
        return Finding(part, name, state, split[0] or status.state, split[2])
    figures: dict[str, float | None] = {
        "reads": status.reads,
        "failures": status.failures,
        "last_duration_s": status.last_duration_s,
        "longest_duration_s": status.longest_duration_s,
        "skipped": status.skipped,
        "throttles": status.throttles,
        "period_s": status.period_s or None,
    }
    told = f"{status.reads} reads, {status.failures} failures"
    told += f", the last took {figure(status.last_duration_s * 1e3)} ms"
    told += f", the longest {figure(status.longest_duration_s * 1e3)} ms"
    if status.period_s:
        told += f", one each {figure(status.period_s)} s"
    if state is State.FAILING:
        stuck = status.state == "stuck"
        mend = (
            "its driver does not answer: look what the kernel says of it (dmesg)" if stuck else ""
        )
        reason = f"stuck {status.reason}" if stuck else status.reason
        return Finding(part, name, state, f"{reason}; {told}", mend, figures)
    if status.skipped > SKIPPED_SHARE * (status.reads + status.skipped):
        told += f"; {status.skipped} polls were skipped, as those before them took too long"
        mend = "raise sampling.period_s, or look what keeps the driver or this machine busy"
        return Finding(part, name, State.NOTICE, told, mend, figures)
    if status.throttles:
        told += f"; slowed down {status.throttles} times for being costly"
    return Finding(part, name, state, told, figures=figures)


def _device(status: DeviceStatus) -> Finding:
    known = status.HasField("power_w")
    ratio = status.counter_ratio if status.HasField("counter_ratio") else None
    static_w = status.static_w if status.HasField("static_w") else None
    figures: dict[str, float | None] = {
        "power_w": status.power_w if known else None,
        "counter_ratio": ratio,
        "static_w": static_w,
        "gaps": status.gaps,
        "resets": status.resets,
    }
    told = f"{figure(status.power_w)} W" if known else "no power known"
    told += f", {status.quality}"
    idle = f"idle {figure(static_w)} W, {status.static_basis}" if static_w else "idle power unknown"
    told += f", {idle}, counter/power {'n/a' if ratio is None else f'{ratio:.3f}'}"
    told += f", {status.gaps} gaps, {status.resets} resets"
    state = State.READY if known else State.FAILING
    if ratio is not None and not RATIO_BOUNDS[0] <= ratio <= RATIO_BOUNDS[1]:
        mend = "one of them is wrong: compare with another meter, and tell it with the driver"
        return Finding("device", status.device, State.NOTICE, told, mend, figures)
    return Finding("device", status.device, state, told, figures=figures)


def _engine(status: EngineStatus) -> Finding:
    told = f"{status.kind}, {status.model}"
    told += f", {status.prefill_tokens} prefill and {status.decode_tokens} decode tokens"
    told += ", coarse" if status.coarse else ""
    figures: dict[str, float | None] = {
        "dropped_events": status.dropped_events,
        "duplicate_events": status.duplicates,
        "refused": status.refused,
        "silent_s": status.silent_s,
    }
    mend = ""
    if status.dropped_events or status.refused:
        told += f", {status.dropped_events} events dropped, {status.refused} batches refused"
        mend = "the daemon's log says why (journalctl -u wattledgerd)"
    elif status.silent_s > _SILENT_S:
        told += f", silent for {figure(status.silent_s)} s"
        mend = "look whether it still runs"
    elif status.coarse and not status.pids:
        told += ", no process of it is known: its tokens get no energy"
        mend = "the daemon's log says why (event=scrape_no_process)"
    state = State.NOTICE if mend else State.READY
    return Finding("engine", status.engine, state, told, mend, figures)
