"""The listener that keeps the totals, and whatever the config asks to tell them."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Protocol

from wattledger.errors import InputError
from wattledger.records import Page
from wattledger_daemon.config import DaemonConfig, OtlpConfig
from wattledger_daemon.export.figures import Figures, Identity, Source
from wattledger_daemon.export.headers import read_headers
from wattledger_daemon.export.totals import Totals
from wattledger_daemon.health import Snapshot
from wattledger_daemon.listening import Listener
from wattledger_daemon.logs import event

_LOG = logging.getLogger(__name__)
_NEEDED = {"prometheus": "prometheus_client", "otlp": "opentelemetry.exporter.otlp.proto.http"}


class Exporter(Protocol):
    """Tells the figures to somebody, on a thread of its own."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End within a second."""


class Exports:
    """All exporters of one run; used by the pipeline thread, read by theirs.

    The pipeline thread only adds up and swaps in one immutable value a turn.
    """

    def __init__(self, config: DaemonConfig, identity: Identity) -> None:
        """Take what the config asks for: an address, a library, a file of headers.

        Raises InputError for whatever cannot be had: it was asked for.
        """
        self._identity = identity
        self._totals = Totals()
        self._figures: Figures | None = None
        self._snapshot: Snapshot | None = None
        self._moved = True
        self._exporters: list[Exporter] = []
        if config.prometheus.listen is not None:
            self._exporters.append(_prometheus(config.prometheus.listen, self.figures))
        if config.otlp.endpoint is not None:
            self._exporters.append(_otlp(config.otlp, config.otlp.endpoint, identity, self.figures))

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """This, where anybody is to be told anything."""
        return (self,) if self._exporters else ()

    def figures(self) -> Figures | None:
        """The figures as of the last turn; any thread may ask."""
        return self._figures

    def begin(self, booked_until_ns: int | None) -> None:
        """Count from where the books stand (CLOCK_MONOTONIC), None where they are empty."""
        self._totals = Totals(booked_until_ns)

    def start(self) -> None:
        """Let every exporter begin."""
        for exporter in self._exporters:
            exporter.start()

    def stop(self) -> None:
        """Tell a last time what was booked since the last turn, and end."""
        if self._snapshot is not None:
            self.turned(self._snapshot)
        for exporter in self._exporters:
            exporter.stop()

    def booked(self, page: Page) -> None:
        """Take a page into the totals."""
        self._totals.add(page)
        self._moved = True

    def turned(self, snapshot: Snapshot) -> None:
        """Swap in the figures of this turn."""
        known = self._figures
        standing = self._totals.standing() if self._moved or known is None else known.standing
        self._moved = False
        self._snapshot = snapshot
        self._figures = Figures(self._identity, standing, snapshot)

    def dropped(self) -> None:
        """Tell nothing from now on, rather than totals that stand still."""
        self._figures = self._snapshot = None


def examine(config: DaemonConfig) -> list[tuple[str, str]]:
    """What each exporter would do, a line each for `--check`; nothing is bound or sent.

    Raises InputError as `Exports`, but for an address that is taken: by this daemon, may be.
    """
    lines = []
    if config.prometheus.listen is not None:
        _library("prometheus")
        lines.append(("prometheus", f"would serve http://{config.prometheus.listen}/metrics"))
    if config.otlp.endpoint is not None:
        _library("otlp")
        if config.otlp.headers_file is not None:
            read_headers(config.otlp.headers_file)
        every = f"every {config.otlp.period_s:g} s"
        lines.append(("otlp", f"would send to {config.otlp.endpoint} {every}"))
    return lines


def _prometheus(listen: str, source: Source) -> Exporter:
    module = _library("prometheus")
    from wattledger_daemon.export.http import HttpServer

    server = HttpServer(listen, "prometheus.listen", module.Page(source).answer)
    _LOG.info(event("metrics_served", url=f"http://{server.address}/metrics"))
    return server


def _otlp(config: OtlpConfig, endpoint: str, identity: Identity, source: Source) -> Exporter:
    module = _library("otlp")
    headers = read_headers(config.headers_file) if config.headers_file else {}
    sender: Exporter = module.Sender(endpoint, headers, identity, source, config.period_s)
    _LOG.info(event("otlp_sent", endpoint=endpoint, period_s=config.period_s))
    return sender


def _library(name: str) -> ModuleType:
    """Our module of this name, imported only now; raises InputError where its library is not."""
    try:
        missing = find_spec(_NEEDED[name]) is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        raise InputError(
            f"[{name}] is configured and its library is not installed: "
            f"run pip install 'wattledger[{name}]', or take [{name}] out of the config"
        )
    return import_module(f"wattledger_daemon.export.{name}")
