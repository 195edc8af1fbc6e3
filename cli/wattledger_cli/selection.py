"""The flags that choose what a statement is about: a window of time, and filters."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import tzinfo
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wattledger.store.protocol import Filters
    from wattledger.store.sqlite import SqliteLedger
    from wattledger.timespan import Window

DEFAULT_LAST = "24h"

From = Annotated[
    str | None,
    typer.Option("--from", metavar="T", help="Start: 2026-10-01T12:00:00Z, a date, or now."),
]
To = Annotated[str | None, typer.Option("--to", metavar="T", help="End, not in it; now.")]
Last = Annotated[
    str | None, typer.Option(metavar="90m|24h|7d", help=f"Up to now; {DEFAULT_LAST} by default.")
]
Day = Annotated[str | None, typer.Option(metavar="2026-10-01", help="A local day.")]
Month = Annotated[str | None, typer.Option(metavar="2026-10", help="A local month.")]
TimeZone = Annotated[str, typer.Option("--tz", metavar="NAME", help="Zone of days and months.")]

Globs = list[str] | None
Host = Annotated[Globs, typer.Option(metavar="GLOB", help="Only these hosts.")]
Job = Annotated[Globs, typer.Option(metavar="GLOB", help="Only these jobs.")]
Workload = Annotated[Globs, typer.Option(metavar="GLOB", help="Only these workloads.")]
Engine = Annotated[Globs, typer.Option(metavar="GLOB", help="Only these engines.")]
Model = Annotated[Globs, typer.Option(metavar="GLOB", help="Only these models.")]
Request = Annotated[Globs, typer.Option(metavar="GLOB", help="Only these requests.")]
Activities = Annotated[Globs, typer.Option("--activity", metavar="GLOB", help="Only these.")]
By = Annotated[
    str | None,
    typer.Option(
        metavar="KEY[,KEY]",
        help="Group by host, device, kind, workload, job, engine, model, activity, quality,"
        " hour, day, month.",
    ),
]


@dataclass(frozen=True, slots=True)
class Span:
    """A window of time with the zone in which its local periods are told."""

    window: Window
    tz: tzinfo


def span(
    *,
    from_: str | None,
    to: str | None,
    last: str | None,
    day: str | None,
    month: str | None,
    tz: str,
) -> Span:
    """The window that the flags name; raises InputError."""
    from wattledger.records import NS_PER_S
    from wattledger.timespan import resolve_window, timezone_named

    # Whole seconds read well, and the ledger is never that fresh.
    now_ns = time.time_ns() // NS_PER_S * NS_PER_S
    if (from_, to, last, day, month) == (None,) * 5:
        last = DEFAULT_LAST
    zone = timezone_named(tz)
    window = resolve_window(
        now_ns, from_text=from_, to_text=to, last=last, day=day, month=month, tz=zone
    )
    return Span(window, zone)


def choose(
    *,
    host: Globs = None,
    job: Globs = None,
    workload: Globs = None,
    engine: Globs = None,
    model: Globs = None,
    request: Globs = None,
    activity: Globs = None,
) -> Filters:
    """The filters that the flags name."""
    from wattledger.store.protocol import Filters

    return Filters(
        host=tuple(host or ()),
        job=tuple(job or ()),
        workload=tuple(workload or ()),
        engine=tuple(engine or ()),
        model=tuple(model or ()),
        request=tuple(request or ()),
        activity=tuple(activity or ()),
    )


def missed(store: SqliteLedger, window: Window) -> str | None:
    """Why a window finds nothing: what the ledger holds instead; None where they overlap."""
    from wattledger.timespan import format_instant

    extent = store.extent()
    if extent is None:
        return "the ledger is empty: see wattledger doctor for what is measured here"
    if extent[0] < window.end_ns and window.start_ns < extent[1]:
        return None
    asked = f"{format_instant(window.start_ns)} to {format_instant(window.end_ns)}"
    first, last = (format_instant(t_ns) for t_ns in extent)
    return (
        f"nothing from {asked}, the ledger holds {first} to {last}: try --from {first} --to {last}"
    )
