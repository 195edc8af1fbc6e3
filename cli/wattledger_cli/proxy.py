"""`wattledger proxy`: a pass-through proxy that counts what an engine tells in its answers."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from socket import SOCK_STREAM, getaddrinfo
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from wattledger.errors import InputError
from wattledger_cli.node import local_socket
from wattledger_cli.options import options_of
from wattledger_cli.output import note

if TYPE_CHECKING:
    from wattledger_collectors.engines.events import EventBuffer
    from wattledger_collectors.engines.proxy import Proxy
    from wattledger_collectors.engines.proxy_meter import Meter
    from wattledger_collectors.reporter import Reporter

app = typer.Typer(add_completion=False, rich_markup_mode=None)

# Ollama starts and ends a process for each model.
_PIDS_S = 2.0
_HEARTBEAT_S = 5.0
_LAST_PORT = 65_535
_LONGEST_NAME = 200
_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class EngineKind(StrEnum):
    """Engines whose answers tell tokens."""

    OLLAMA = "ollama"
    LLAMA_SERVER = "llama-server"
    OPENAI = "openai"


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this host reaches it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says."""

    engine: EngineKind
    there: Address
    here: Address
    model: str | None
    tenant_header: str | None
    labels: Mapping[str, str | None]
    socket: Path


@app.command()
def proxy(
    context: typer.Context,
    *,
    engine: Annotated[EngineKind, typer.Option(help="What the engine is.")],
    to: Annotated[str, typer.Option(metavar="URL", help="Where it is: http://HOST:PORT.")],
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where to listen; 127.0.0.1 and the next port."),
    ] = None,
    job: Annotated[
        str | None, typer.Option(metavar="NAME", help="Job that its requests belong to.")
    ] = None,
    workload: Annotated[
        str | None, typer.Option(metavar="NAME", help="Workload that it is.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the model, if not as it says.")
    ] = None,
    tenant_header: Annotated[
        str | None, typer.Option(metavar="NAME", help="Request header that names a tenant.")
    ] = None,
    socket: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The daemon's socket, if not the default.")
    ] = None,
) -> None:
    """Pass requests on to an engine, and count what its answers tell of tokens.

    For engines without metrics and without a hook. Clients use the proxy's address; nothing else
    changes for them, and requests pass whether the daemon is there or not.

    Example: wattledger proxy --engine ollama --to http://127.0.0.1:11434
    """
    there = engine_address(to)
    here = listen_address(listen) if listen else Address("127.0.0.1", there.port + 1)
    if here.port > _LAST_PORT or leads_to(here, there):
        raise InputError(f"cannot listen on {here} for the engine at {there}: give --listen")
    _check_names(job=job, workload=workload, model=model, tenant_header=tenant_header)
    options = options_of(context)
    asked = Asked(
        engine=engine,
        there=there,
        here=here,
        model=model,
        tenant_header=tenant_header,
        labels={"JOB": job, "WORKLOAD": workload},
        socket=socket or local_socket(),
    )
    _run(asked, lambda line: note(options, [f"wattledger: {line}"]))


def _run(asked: Asked, tell: Callable[[str], None]) -> None:
    from wattledger_collectors.engines.events import EventBuffer
    from wattledger_collectors.engines.proxy import Proxy, room_for_connections
    from wattledger_collectors.engines.proxy_meter import Meter

    buffer, here, there = EventBuffer(), asked.here, asked.there
    meter = Meter(buffer, model=asked.model, tenant_header=asked.tenant_header, tell=tell)
    relay = Proxy(there.host, there.port, meter, most_connections=room_for_connections())
    reporter = _reporter(asked, buffer, meter, tell)
    listening = False

    def ready(port: int) -> None:
        nonlocal listening
        listening = True
        reporter.start()
        tell(f"http://{Address(here.host, port)} passes on to http://{there}")
        if not here.is_loopback:
            tell(f"warning: whoever reaches {here.host} reaches the engine")

    try:
        asyncio.run(_serve(relay, here, ready))
    except OSError as error:
        raise InputError(f"cannot listen on {here}, {error.strerror}: give --listen") from error
    finally:
        if listening:
            reporter.stop()
            tell(f"{meter.counted} requests counted, {meter.untold} not or not wholly")


def leads_to(here: Address, there: Address) -> bool:
    """Whether what is sent to `there` would arrive at a listener on `here`."""
    if here.port != there.port:
        return False
    from wattledger_collectors.workloads.listeners import is_this_host

    ours, theirs = _resolved(here.host), _resolved(there.host)
    if any(address.is_unspecified for address in ours):
        return is_this_host(there.host)
    if any(address.is_unspecified for address in theirs):
        # The kernel takes it for the loopback.
        return any(address.is_loopback for address in ours)
    return here == there or not ours.isdisjoint(theirs)


def _resolved(host: str) -> frozenset[IPv4Address | IPv6Address]:
    """All addresses of a host, IPv4 as such; none where it has none, which others will tell."""
    try:
        infos = getaddrinfo(host, None, type=SOCK_STREAM)
    except (OSError, UnicodeError):
        return frozenset()
    found = (ip_address(str(info[4][0]).partition("%")[0]) for info in infos)
    return frozenset(getattr(address, "ipv4_mapped", None) or address for address in found)


def _check_names(*, tenant_header: str | None, **names: str | None) -> None:
    """Raises InputError for what the daemon, or no request, would ever take."""
    for option, name in names.items():
        if name is not None and not (name.isprintable() and 0 < len(name) <= _LONGEST_NAME):
            raise InputError(
                f"--{option} {name!r}: give 1 to {_LONGEST_NAME} characters, all of them printable"
            )
    if tenant_header is not None and not _HEADER.fullmatch(tenant_header):
        raise InputError(f"--tenant-header {tenant_header!r}: give a header's name: X-Tenant")


def engine_address(url: str) -> Address:
    """The address in `--to`; raises InputError for what is not plain HTTP to a host and port."""
    try:
        parts = urlsplit(url)
        port = 80 if parts.port is None else parts.port
    except ValueError as error:
        raise InputError(f"--to {url}: {error}: give http://HOST:PORT") from error
    if parts.scheme != "http" or not parts.hostname or not port or parts.path not in {"", "/"}:
        raise InputError(f"--to {url} is no address of an engine: give http://HOST:PORT")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise InputError(f"--to {url} says more than an address: give http://HOST:PORT")
    return Address(parts.hostname, port)


def listen_address(text: str) -> Address:
    """The address in `--listen`; raises InputError."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None or parts.path:
        raise InputError(f"--listen {text}: give HOST:PORT, such as 127.0.0.1:11435")
    return Address(host, port)


def _reporter(
    asked: Asked, buffer: EventBuffer, meter: Meter, tell: Callable[[str], None]
) -> Reporter:
    """Events are sums over stretches of an answer, so the engine is told as a coarse one."""
    from wattledger_collectors.engines.facts import EngineFacts
    from wattledger_collectors.engines.proxy_pids import EnginePids
    from wattledger_collectors.reporter import Pace, Reporter
    from wattledger_collectors.wire import Identity

    kind, there = asked.engine.value.replace("-", "_"), asked.there
    place = str(there.port) if there.is_loopback else str(there)
    facts = EngineFacts(
        engine=f"{kind}-{place}",
        part="proxy",
        pids=EnginePids(there.host, there.port, tell),
        coarse=True,
        tenant_of=meter.tenant_of,
    )
    labels = {f"WATTLEDGER_{name}": value for name, value in asked.labels.items() if value}
    return Reporter(
        buffer,
        Identity.of_this_process(kind, {**os.environ, **labels}, facts),
        lambda: str(asked.socket),
        pace=Pace(pids_s=_PIDS_S, heartbeat_s=_HEARTBEAT_S),
        tell=tell,
    )


async def _serve(relay: Proxy, here: Address, ready: Callable[[int], None]) -> None:
    """Until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await relay.serve(here.host, here.port, stop, ready)
