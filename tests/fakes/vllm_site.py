"""A real vLLM, attached, beside a real daemon: what one has counted, the other has to book."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fakes.daemon_process import DaemonProcess
from fakes.ledger_reading import Booked, assert_balanced, posted_tokens
from fakes.push_client import Caller
from fakes.vllm_server import VllmServer, make_hf_model, vllm_environment
from wattledger_collectors.engines.attach import attach_environment
from wattledger_proto.v1 import node_pb2

BOOKED_S = 60.0


class VllmSite:
    """A folder with a model, a ledger and a socket; `server` is up for the length of `serving`."""

    server: VllmServer

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "w.sock"
        self.ledger = folder / "ledger.db"
        self.model = make_hf_model(folder)

    def daemon(self, config: str = "") -> DaemonProcess:
        return DaemonProcess(self.folder, config=config)

    def attached(self, **more: str) -> dict[str, str]:
        """The engine's environment, as `wattledger attach` makes it."""
        environ = vllm_environment(self.folder) | more
        return attach_environment(environ, socket=str(self.socket))

    @contextmanager
    def serving(self, *options: str, **environ: str) -> Iterator[VllmServer]:
        log = self.folder / "vllm.log"
        with VllmServer(self.model, self.attached(**environ), log, *options) as self.server:
            yield self.server

    def counted(self) -> Booked:
        """What the engine says it computed."""
        counters = self.server.counters()
        return Booked(
            counters.prefill_tokens,
            counters.cached_tokens,
            counters.decode_tokens,
        )

    def wait_until_booked(self) -> None:
        """Everything that the engine has counted is booked; AssertionError where it never is."""
        deadline = time.monotonic() + BOOKED_S
        counted, booked = self.counted(), posted_tokens(self.ledger)
        while counted != booked and time.monotonic() < deadline:
            time.sleep(0.5)
            counted, booked = self.counted(), posted_tokens(self.ledger)
        assert counted == booked, f"{counted} but {booked}: {self.server.warnings}"

    def status(self) -> node_pb2.Status:
        with Caller(self.socket) as caller:
            return caller.status()

    def close_books(self, daemon: DaemonProcess, dropped_events: int = 0) -> None:
        """End the daemon, which books what is left: equal still, balanced, nothing dropped."""
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_status() == 0
        assert self.counted() == posted_tokens(self.ledger)
        assert_balanced(self.ledger, dropped_events)


@contextmanager
def vllm_site() -> Iterator[VllmSite]:
    """In a folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="wl", ignore_cleanup_errors=True) as folder:
        yield VllmSite(Path(folder))


@contextmanager
def metered(
    *options: str, config: str = "", **environ: str
) -> Iterator[tuple[VllmSite, DaemonProcess]]:
    """A site with its daemon and its server running."""
    with ExitStack() as stack:
        site = stack.enter_context(vllm_site())
        daemon = stack.enter_context(site.daemon(config))
        daemon.wait_for("event=ready")
        stack.enter_context(site.serving(*options, **environ))
        yield site, daemon
