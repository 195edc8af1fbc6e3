"""The screen of `wattledger top` as styled lines of text: pure, so that tests can look at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from wattledger_cli.figures import ABSENT, COUNT, ENERGY_J, Quantity, Scale, decimals, fixed
from wattledger_cli.tables import Cells, Column, Fitted, fit, numbers, printable, words
from wattledger_cli.top_model import (
    ESTIMATED,
    NODE,
    DeviceRow,
    EngineRow,
    Picture,
    Sort,
    WorkloadRow,
    ordered,
)

POWER_W = Quantity((Scale("W", 1.0),), ())
TOKENS_PER_S = Quantity((Scale("tok/s", 1.0),), ())
PER_S = Quantity((Scale("/s", 1.0),), ())
MARK = "~"
SILENT_S = 10.0
LEAST_WIDTH = 24

HELP = (
    ("q", "quit"),
    ("a", "all three tables"),
    ("d w e", "devices, workloads or engines alone"),
    ("s", "sort by power, tokens/s, J/token or name"),
    ("space", "pause, and go on"),
    ("arrows", "scroll; PgUp, PgDn, Home and End too"),
    ("h", "this help, and back"),
    ("", ""),
    ("power", "of devices: over the last second or so"),
    ("", "of workloads and engines: as booked, some 10 s behind"),
    (MARK, "no sensor measured it, or not all of it: estimated"),
    (ABSENT, "unknown; never shown as 0"),
    ("ratio", "energy by the counter over integrated power"),
)


class Style(StrEnum):
    """How a line looks, where the terminal has colours."""

    PLAIN = ""
    TITLE = "bold"
    DIM = "dim"
    HEAD = "bold cyan"
    ALERT = "bold red"


class Line(NamedTuple):
    """One line of the screen."""

    text: str
    style: Style = Style.PLAIN


class View(StrEnum):
    """Which tables are shown."""

    ALL = "all"
    DEVICES = "devices"
    ENGINES = "engines"
    WORKLOADS = "workloads"


@dataclass(frozen=True, slots=True)
class Shown:
    """What the user asked to see; `scroll` is the first row of a table shown alone."""

    view: View = View.ALL
    sort: Sort = Sort.POWER
    scroll: int = 0
    paused: bool = False
    help: bool = False


@dataclass(frozen=True, slots=True)
class _Table:
    view: View
    columns: tuple[Column, ...]
    rows: int


def draw(
    picture: Picture | None, shown: Shown, width: int, height: int | None, alert: str = ""
) -> list[Line]:
    """At most `height` lines (None: all there are), none wider than `width`."""
    width = max(width, LEAST_WIDTH)
    head = _head(picture, shown, width, alert)
    if shown.help:
        body = [Line(f"  {key:<8}{text}") for key, text in HELP]
    elif picture is None:
        body = []
    else:
        room = None if height is None else height - len(head) - 1
        body = _body(picture, shown, width, room)
    lines = [*head, *body]
    if height is not None:
        lines = lines[: height - 1]
        lines += [Line("")] * (height - 1 - len(lines))
        lines.append(_foot(shown))
    return [Line(clip(line.text, width), line.style) for line in lines]


def clip(text: str, width: int) -> str:
    """`text` cut to so many terminal cells."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, width).rstrip()


def scroll_limit(picture: Picture, shown: Shown, page: int) -> int:
    """The last row that a table shown alone can begin with, `page` rows at a time."""
    rows: Sequence[object] = {
        View.ALL: (),
        View.DEVICES: picture.devices,
        View.ENGINES: picture.engines,
        View.WORKLOADS: picture.workloads,
    }[shown.view]
    return max(0, len(rows) - page)


# ------------------------------------------------------------------------------ head


def _head(picture: Picture | None, shown: Shown, width: int, alert: str) -> list[Line]:
    lines = []
    if picture is not None:
        name = f"wattledger {printable(picture.host)}"
        lines.append(Line(f"{name}   {_power(picture)}", Style.TITLE))
        lines.append(Line(_behind(picture), Style.DIM))
        if picture.trouble:
            lines.append(Line(printable("; ".join(picture.trouble)), Style.ALERT))
    if alert:
        lines.append(Line(printable(alert), Style.ALERT))
    elif shown.paused:
        lines.append(Line("paused: space goes on", Style.ALERT))
    return lines


def _power(picture: Picture) -> str:
    """The host's power, kind by kind: `512.3 W: gpu 400.1 W, cpu ~112.2 W`."""
    parts = []
    for kind in dict.fromkeys(device.kind for device in picture.devices):
        of_kind = [device for device in picture.devices if device.kind == kind]
        powers = [device.power_w for device in of_kind if device.power_w is not None]
        unknown = len(of_kind) - len(powers)
        told = _watts(sum(powers), any(d.quality == ESTIMATED for d in of_kind))
        if unknown:
            told = f"{ABSENT} ({unknown} of {len(of_kind)} unknown)"
        parts.append(f"{kind.upper()} {told}")
    if not parts:
        return "no device is metered"
    metered = [device for device in picture.devices if device.kind != NODE]
    estimated = any(device.quality == ESTIMATED for device in metered)
    total = ABSENT if picture.power_w is None else _watts(picture.power_w, estimated)
    return f"{total}: {', '.join(parts)}" if len(parts) > 1 else parts[0]


def _watts(power_w: float, estimated: bool) -> str:
    return f"{MARK if estimated else ''}{fixed(power_w, min(1, decimals((power_w,))))} W"


def _behind(picture: Picture) -> str:
    up = f"up {_duration(picture.uptime_s)}"
    if picture.booked is None:
        return f"{up}, workloads and engines: nothing yet, a window is booked 10 s after its end"
    booked = picture.booked
    span, age = f"{booked.span_s:.0f} s", f"{booked.age_s:.0f} s"
    return f"{up}, workloads and engines: mean of the {span} that ended {age} ago"


def _duration(seconds: float) -> str:
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86_400
    if days >= 2:
        return f"{days:.0f} d"
    if hours >= 2:
        return f"{hours:.0f} h"
    return f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"


def _foot(shown: Shown) -> Line:
    sort = f"s sort: {shown.sort}"
    return Line(f"q quit  h help  a d w e view: {shown.view}  {sort}  space pause", Style.DIM)


# ---------------------------------------------------------------------------- tables


def _body(picture: Picture, shown: Shown, width: int, room: int | None) -> list[Line]:
    alone = shown.view is View.DEVICES
    tables = [
        _devices(ordered(picture.devices, shown.sort) if alone else picture.devices),
        _engines(ordered(picture.engines, shown.sort)),
        _workloads(ordered(picture.workloads, shown.sort), picture),
    ]
    if shown.view is not View.ALL:
        (table,) = (table for table in tables if table.view is shown.view)
        return _lines(table, width, None if room is None else room - 3, shown.scroll)
    tables = [table for table in tables if table.rows]
    if room is None:
        return [line for table in tables for line in _lines(table, width, None, 0)]
    lines: list[Line] = []
    for table, rows in zip(tables, _rows_each(tables, room), strict=True):
        lines += _lines(table, width, rows, 0)
    return lines


def _rows_each(tables: Sequence[_Table], room: int) -> list[int]:
    """Rows for each table: all get some, and what one leaves the others have."""
    left = room - 3 * len(tables)
    each = [0] * len(tables)
    while left > 0:
        short = [at for at, table in enumerate(tables) if each[at] < table.rows]
        if not short:
            break
        each[min(short, key=lambda at: each[at])] += 1
        left -= 1
    return each


def _lines(table: _Table, width: int, rows: int | None, first: int) -> list[Line]:
    """A blank line, two of head (title and unit), and as many rows as there is room for."""
    fitted = fit(table.columns, width)
    first = min(first, max(0, table.rows - 1))
    last = table.rows if rows is None else min(table.rows, first + max(rows, 0))
    head = [
        Line(""),
        Line(_row(fitted, [column.title for column in fitted.columns]), Style.HEAD),
        Line(_row(fitted, [column.unit for column in fitted.columns]), Style.DIM),
    ]
    found = [
        Line(_row(fitted, [column.cells[at] for column in fitted.columns]))
        for at in range(first, last)
    ]
    below = table.rows - last
    if below:
        # The last row's place says what is not there, so that nothing is cut in silence.
        more = f"  {below + bool(found)} more: {table.view[0]} and the arrows show them"
        found = [*found[:-1], Line(more, Style.DIM)]
    if not table.rows:
        found = [Line(f"  no {table.view} yet", Style.DIM)]
    return head + found


def _row(fitted: Fitted, cells: Sequence[str]) -> str:
    from rich.cells import cell_len, set_cell_size

    parts = []
    for column, width, cell in zip(fitted.columns, fitted.widths, cells, strict=True):
        cut = cell if cell_len(cell) <= width else f"{set_cell_size(cell, max(width - 1, 0))}…"
        pad = " " * (width - cell_len(cut))
        parts.append(pad + cut if column.holds is Cells.NUMBERS else cut + pad)
    return "  ".join(parts).rstrip()


def _marked(column: Column, estimated: Sequence[bool]) -> Column:
    """A column of numbers, those that are estimated with their mark."""
    cells = tuple(
        f"{MARK}{cell}" if mark and cell != ABSENT else cell
        for cell, mark in zip(column.cells, estimated, strict=True)
    )
    return Column(column.title, cells, unit=column.unit, holds=column.holds, spare=column.spare)


def _devices(rows: Sequence[DeviceRow]) -> _Table:
    power = numbers("power", POWER_W, [row.power_w for row in rows])
    estimated = [row.quality == ESTIMATED for row in rows]
    peers = [row.power_w for row in rows]
    ratios = tuple(fixed(row.counter_ratio, 3) for row in rows)
    columns = (
        words("device", [row.device for row in rows], holds=Cells.WHOLE),
        _marked(power, estimated),
        numbers("idle", POWER_W, [row.static_w for row in rows], peers=peers, spare=2),
        Column("counter", ratios, unit="ratio", holds=Cells.NUMBERS, spare=3),
        numbers("gaps", COUNT, [float(row.gaps) for row in rows], spare=4),
        numbers("resets", COUNT, [float(row.resets) for row in rows], spare=4),
        words("quality", [row.quality for row in rows], holds=Cells.WHOLE, spare=1),
        words("model", [row.model for row in rows], spare=5),
    )
    return _Table(View.DEVICES, columns, len(rows))


def _engines(rows: Sequence[EngineRow]) -> _Table:
    j_prefill = [row.j_per_prefill_token for row in rows]
    j_decode = [row.j_per_decode_token for row in rows]
    j_all = [row.j_per_token for row in rows]
    tokens = [row.prefill_tokens_per_s for row in rows], [row.decode_tokens_per_s for row in rows]
    running = [None if r.running_requests is None else float(r.running_requests) for r in rows]
    power = numbers("power", POWER_W, [row.power_w for row in rows])
    columns = (
        words("engine", [_engine_name(row) for row in rows]),
        _marked(power, [bool(row.estimated_w) for row in rows]),
        numbers("prefill", TOKENS_PER_S, tokens[0], peers=tokens[1], spare=2),
        numbers("decode", TOKENS_PER_S, tokens[1], peers=tokens[0]),
        numbers("prefill", ENERGY_J, j_prefill, peers=[*j_decode, *j_all], suffix="/tok", spare=2),
        numbers("decode", ENERGY_J, j_decode, peers=[*j_prefill, *j_all], suffix="/tok", spare=1),
        numbers("all", ENERGY_J, j_all, peers=[*j_prefill, *j_decode], suffix="/tok", spare=5),
        numbers("done", PER_S, [row.requests_per_s for row in rows], spare=3),
        numbers("running", COUNT, running, spare=4),
        words("model", [row.model for row in rows], spare=6),
        words("job", [row.job for row in rows], spare=7),
    )
    return _Table(View.ENGINES, columns, len(rows))


def _engine_name(row: EngineRow) -> str:
    if row.silent_s > SILENT_S:
        return f"{row.engine} (silent)"
    return f"{row.engine} (coarse)" if row.coarse else row.engine


def _workloads(rows: Sequence[WorkloadRow], picture: Picture) -> _Table:
    total_w = sum(row.power_w for row in picture.workloads)
    shares = tuple(f"{row.power_w / total_w:.1%}"[:-1] if total_w else ABSENT for row in rows)
    power = numbers("power", POWER_W, [row.power_w for row in rows])
    working = [bool(row.prefill_tokens_per_s or row.decode_tokens_per_s) for row in rows]
    prefill = [r.prefill_tokens_per_s if w else None for r, w in zip(rows, working, strict=True)]
    decode = [r.decode_tokens_per_s if w else None for r, w in zip(rows, working, strict=True)]
    done = [r.requests_per_s if w else None for r, w in zip(rows, working, strict=True)]
    columns = (
        words("workload", [row.name for row in rows]),
        words("job", [row.job for row in rows], spare=1),
        _marked(power, [bool(row.estimated_w) for row in rows]),
        Column("share", shares, unit="%", holds=Cells.NUMBERS),
        numbers("prefill", TOKENS_PER_S, prefill, peers=decode, spare=3),
        numbers("decode", TOKENS_PER_S, decode, peers=prefill, spare=3),
        numbers("energy", ENERGY_J, [row.j_per_token for row in rows], suffix="/tok", spare=2),
        numbers("done", PER_S, done, spare=4),
    )
    return _Table(View.WORKLOADS, columns, len(rows))
