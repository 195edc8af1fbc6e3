"""`wattledgerd` itself: wires everything, and lives by signals.

The main thread is the pipeline thread.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import wattledger
from wattledger.errors import InputError, WattledgerError
from wattledger.locations import default_ledger_path
from wattledger.records import DEFAULT_COST_MODEL, NS_PER_S, Clock, PinnedCost
from wattledger.store import open_ledger
from wattledger_collectors.socket_path import checked_socket_path, default_socket_path
from wattledger_daemon import logs
from wattledger_daemon.bank import SensorBank, find_sensors
from wattledger_daemon.config import LIVE_KEYS, DaemonConfig, find_config, load_config
from wattledger_daemon.descriptors import raise_limit
from wattledger_daemon.export.exports import Exports
from wattledger_daemon.export.figures import Identity
from wattledger_daemon.heart.accountant import AccountantSettings
from wattledger_daemon.hosttime import HostTime, read_boot_id
from wattledger_daemon.ingest import CollectorService
from wattledger_daemon.intake import Intake
from wattledger_daemon.lock import LedgerLock
from wattledger_daemon.logs import event
from wattledger_daemon.node_service import NodeIdentity, NodeService
from wattledger_daemon.notify import notify
from wattledger_daemon.pipeline import Pipeline
from wattledger_daemon.questions import Questions
from wattledger_daemon.recording import Recorder
from wattledger_daemon.recovery import DaemonLedger, recover
from wattledger_daemon.server import SocketServer
from wattledger_daemon.settings import changed
from wattledger_daemon.signals import Signals
from wattledger_daemon.sources import Sources
from wattledger_daemon.tenants import Tenants

if TYPE_CHECKING:
    from wattledger_daemon.scraping import Scraping

_LOG = logging.getLogger(__name__)
_INTAKE_RECORDS = 500_000
_BUSY_S = 1.0
_LOOK_S = 60.0


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run `wattledgerd`; returns its exit status (contract.md)."""
    arguments = _parser().parse_args(argv)
    try:
        path = find_config(arguments.config, environ)
        config = load_config(path)
        if arguments.check:
            from wattledger_daemon.check import check

            sys.stdout.write(check(config, path, environ))
            return 0
        logs.setup(config.log.level, sys.stderr, environ)
        raise_limit()
        Daemon(config, arguments.config, environ).run()
    except WattledgerError as error:
        sys.stderr.write(f"wattledgerd: {logs.printable(str(error))}\n")
        return error.exit_status
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wattledgerd",
        description="Meters this host and books every joule to whoever caused it.",
        epilog="SIGHUP reloads the config, SIGTERM flushes and stops.",
    )
    parser.add_argument("--config", metavar="FILE", help="config file instead of the default")
    parser.add_argument(
        "--check", action="store_true", help="check the config, say what each sensor would do"
    )
    parser.add_argument(
        "--version", action="version", version=f"wattledgerd {wattledger.__version__}"
    )
    return parser


def ledger_path(config: DaemonConfig, environ: Mapping[str, str]) -> Path:
    """Where the ledger of this config lies."""
    return config.ledger.path or default_ledger_path(environ)


def socket_path(config: DaemonConfig, environ: Mapping[str, str]) -> Path:
    """Where the socket of this config lies; raises InputError for one that is too long."""
    if config.collect.socket is not None:
        return Path(checked_socket_path(str(config.collect.socket)))
    return Path(default_socket_path(environ))


class Daemon:
    """One run of the daemon, from its lock to its last booked window."""

    def __init__(
        self, config: DaemonConfig, named_config: str | None, environ: Mapping[str, str]
    ) -> None:
        self._config = self._started_with = config
        self._named_config = named_config
        self._environ = environ
        self._signals = Signals()
        self._time = HostTime()
        self._boot_id = read_boot_id()
        self._host = config.site.host or socket.gethostname()
        self._intake = Intake(_INTAKE_RECORDS)
        self._bank = SensorBank(config, self._intake.offer, find_sensors())
        tenants = Tenants(config.tenants.values())
        self._sources = Sources(self._intake, self._bank.track, tenants=tenants)
        self._recorder = Recorder()
        self._questions = Questions(
            self._time.monotonic_ns, self._signals.poke, self._bank.hand_over_soon
        )

    def run(self) -> None:
        """Live until SIGTERM or SIGINT; raises WattledgerError where it cannot begin."""
        ledger_file = ledger_path(self._config, self._environ)
        self._signals.start()
        with ExitStack() as stack:
            stack.enter_context(LedgerLock(ledger_file))
            self._bank.require()
            exports = Exports(self._config, self._identity())
            stack.callback(exports.stop)
            scraping = self._scraping()
            server = SocketServer(
                socket_path(self._config, self._environ), self._config.collect.socket_mode
            )
            stack.callback(server.stop)
            # Before a ledger is made that a busy socket would leave behind.
            server.bind()
            self._signals.before_end(server.unlink)
            ledger = open_ledger(f"sqlite:{ledger_file}", writable=True, create=True)
            stack.callback(ledger.close)
            pipeline = self._recover(ledger, exports)
            pipeline.begin()
            # No longer than a stop may take: what is not written now is written next turn.
            ledger.wait_at_most(_BUSY_S)
            server.start(*self._services(pipeline, ledger_file))
            stack.callback(self._stop_looking, scraping)
            self._bank.start()
            exports.start()
            if scraping is not None:
                scraping.start()
            _settle_memory()
            self._signals.ready()
            notify(self._environ, "READY=1")
            _LOG.info(event("ready", ledger=ledger_file, pid=os.getpid()))
            self._live(pipeline, server)
            notify(self._environ, "STOPPING=1")
            self._stop_looking(scraping)
            server.stop()
            pipeline.finish()
        _LOG.info(event("stopped"))

    def _identity(self) -> Identity:
        started_ns = self._time.monotonic_ns()
        return Identity(self._host, wattledger.__version__, uuid.uuid4().hex, started_ns)

    def _stop_looking(self, scraping: Scraping | None) -> None:
        """Have what is read by ourselves handed over a last time."""
        self._bank.stop()
        if scraping is not None:
            scraping.stop()

    def _scraping(self) -> Scraping | None:
        """What `[scrape]` asks for; its code is loaded for nobody else."""
        if not self._config.scrape:
            return None
        from wattledger_daemon.scraping import Scraping, Surroundings

        host = Surroundings(self._boot_id, self._time.monotonic_ns)
        return Scraping(self._config.scrape, self._sources, host)

    def _recover(self, ledger: DaemonLedger, exports: Exports) -> Pipeline:
        """Stand the books where the journal says they stood."""
        config, now_ns = self._config, self._time.monotonic_ns()
        settings = AccountantSettings(
            window_ns=config.sampling.window_s * NS_PER_S, learn_idle=True, learn_costs=True
        )
        clock = Clock(self._host, self._boot_id, self._time.epoch_ns())
        pinned = [PinnedCost(engine, cost) for engine, cost in config.cost.items()]
        recovered = recover(ledger, self._sources, clock, now_ns, settings=settings, pinned=pinned)
        exports.begin(recovered.accountant.booked_until_ns)
        return Pipeline(
            ledger,
            recovered,
            self._intake,
            self._sources,
            recorder=self._recorder,
            time=self._time,
            retention=config.ledger.retention,
            horizon_ns=settings.horizon_ns or 0,
            sensors=self._bank.health,
            zone=config.site.zone,
            pue=config.site.pue,
            listeners=exports.listeners,
            questions=self._questions,
        )

    def _services(
        self, pipeline: Pipeline, ledger_file: Path
    ) -> tuple[CollectorService, NodeService]:
        clock, daemon_id = self._time.monotonic_ns, uuid.uuid4().hex
        identity = NodeIdentity(
            wattledger.__version__,
            daemon_id,
            self._host,
            f"sqlite:{ledger_file}",
            clock(),
            self._config.sampling.window_s,
        )
        collector = CollectorService(
            self._sources, boot_id=self._boot_id, daemon_id=daemon_id, clock=clock
        )
        node = NodeService(
            identity, lambda: pipeline.snapshot, self._recorder, clock, questions=self._questions
        )
        return collector, node

    def _live(self, pipeline: Pipeline, server: SocketServer) -> None:
        """Take turns on absolute deadlines until a signal says stop."""
        watched = "WATCHDOG_USEC" in self._environ
        next_s = time.monotonic()
        look_s = next_s + _LOOK_S
        while True:
            taken = self._signals.next(self._rest_s(next_s))
            if taken is signal.SIGHUP:
                self._reload(pipeline)
            elif taken is not None:
                _LOG.info(event("stopping", signal=taken.name))
                return
            elif time.monotonic() >= next_s:
                pipeline.turn()
                self._bank.watch()
                if next_s >= look_s:
                    server.look()
                    look_s = next_s + _LOOK_S
                if watched:
                    notify(self._environ, "WATCHDOG=1")
                next_s = max(next_s + pipeline.pace_s, time.monotonic())
            elif not self._rest_s(next_s):
                # For those who ask, between the deadlines.
                pipeline.turn()

    def _rest_s(self, next_s: float) -> float:
        """Seconds until a turn is due, by its deadline or because somebody asks."""
        rest_s = next_s - time.monotonic()
        if (due_ns := self._questions.due_ns) is not None:
            rest_s = min(rest_s, (due_ns - self._time.monotonic_ns()) / NS_PER_S)
        return max(0.0, rest_s)

    def _reload(self, pipeline: Pipeline) -> None:
        """Apply what may change live; a config that does not hold leaves all as it was."""
        notify(self._environ, f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            config = load_config(find_config(self._named_config, self._environ))
        except InputError as error:
            _LOG.error(event("reload_failed", reason=error))
        else:
            for key in changed(self._started_with, config):
                if key not in LIVE_KEYS:
                    _LOG.warning(event("needs_restart", key=key))
            self._apply(config, pipeline)
            _LOG.info(event("reloaded"))
        notify(self._environ, "READY=1")

    def _apply(self, config: DaemonConfig, pipeline: Pipeline) -> None:
        before, self._config = self._config, config
        logs.set_level(config.log.level)
        pipeline.retention = config.ledger.retention
        if config.power.static_w != before.power.static_w:
            self._bank.set_static_w(config.power.static_w)
        costs = dict.fromkeys(before.cost, DEFAULT_COST_MODEL) | dict(config.cost)
        if config.cost != before.cost:
            self._intake.offer([PinnedCost(engine, cost) for engine, cost in costs.items()])
        if config.tenants != before.tenants:
            self._sources.set_tenant_rules(config.tenants.values())
        for key in changed(before, config):
            if key in LIVE_KEYS:
                _LOG.info(event("applied", key=key))


def _settle_memory() -> None:
    """What start-up made will live as long as the daemon: no collection need look at it."""
    gc.collect()
    gc.freeze()
    # What comes and goes has no cycles: a look at the young every 700 objects finds nothing.
    gc.set_threshold(50_000, 10, 10)
