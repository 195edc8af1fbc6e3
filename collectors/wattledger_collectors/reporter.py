"""The reporter: one daemon thread in an engine's process, from the hook's buffer to the daemon.

Every 200 ms it takes what the hook has told, packs batches of at most 512 events and sends them
by unary `Collector.Push`. A batch is kept until the daemon has it on disk (`outbox.py`). The
engine's own threads never wait for this one. An engine that exits hands over its last events; one
that a signal kills takes those of its last 200 ms with it.

With `wire.py` the only modules on the engine's side that know gRPC.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby

from wattledger_collectors.engines.events import EventBuffer
from wattledger_collectors.engines.facts import EngineFacts
from wattledger_collectors.outbox import Bounds, Outbox
from wattledger_collectors.socket_path import default_socket_path
from wattledger_collectors.wire import Identity, Link, LostError, Press, RefusedError

NS_PER_S = 1_000_000_000
MEND = "pip install 'wattledger[collector]'"


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the reporter does what; `poll_s` holds while batches are uncommitted.

    A daemon that answers late is lost, and told so, after `patience_s` of it: a busy host is none.
    A batch ends with the step that brings its requests, counted per step, to `batch_entries`.
    """

    flush_s: float = 0.2
    batch_events: int = 512
    deadline_s: float = 1.0
    poll_s: float = 1.0
    heartbeat_s: float = 30.0
    least_backoff_s: float = 0.2
    most_backoff_s: float = 2.0
    farewell_s: float = 1.0
    patience_s: float = 2.0
    pids_s: float = 30.0
    batch_entries: int = 16_384


class ForkGate:
    """Lets a fork wait, a second at most, until the reporter is out of imports and calls.

    A child inherits every lock as it stands, and nobody who would release what another thread
    held: it could then never import or use gRPC itself.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._held = False
        os.register_at_fork(
            before=self._close, after_in_parent=self._open, after_in_child=self._renew
        )

    def _close(self) -> None:
        self._held = self.lock.acquire(timeout=1.0)

    def _open(self) -> None:
        if self._held:
            self.lock.release()

    def _renew(self) -> None:
        self.lock = threading.Lock()


class Reporting:
    """Starts the reporter of a hook's buffer at the first request, anew in a forked child.

    Raises ImportError where grpc or protobuf is missing.
    """

    def __init__(
        self,
        kind: str,
        buffer: EventBuffer,
        environ: Mapping[str, str],
        facts: EngineFacts | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        require_grpc()
        self._tell = tell or warn
        self._facts = facts
        self._kind = kind
        self._buffer = buffer
        self._environ = environ
        self._gate = ForkGate()
        self._reporters: dict[int, Reporter | None] = {}
        os.register_at_fork(after_in_child=buffer.clear)
        atexit.register(self.stop)

    def ensure_running(self) -> None:
        """Cheap when it runs; several threads may ask at once."""
        pid = os.getpid()
        if pid in self._reporters:
            return
        try:
            identity = Identity.of_this_process(self._kind, self._environ, self._facts)
            gate, tell = self._gate, self._tell
            ours = Reporter(self._buffer, identity, self._socket, gate=gate, tell=tell)
            if self._reporters.setdefault(pid, ours) is ours:
                ours.start()
        except (OSError, RuntimeError) as error:
            self._reporters[pid] = None
            self._tell(f"tokens are not metered: {error}")
            self._buffer.close()

    def _socket(self) -> str:
        return default_socket_path(self._environ)

    def begin_stop(self) -> None:
        """Of several reporters of a process, let each begin before one is waited for."""
        reporter = self._reporters.get(os.getpid())
        if reporter is not None:
            reporter.begin_stop()

    def stop(self) -> None:
        """Hands over what this process has told; it is done at exit, too, where Python does that.

        A child of `multiprocessing` that was forked skips `atexit`.
        """
        reporter = self._reporters.get(os.getpid())
        if reporter is not None:
            reporter.stop()


def require_grpc() -> None:
    """Raises ImportError, with the mend, where grpc or protobuf is missing; imports neither."""
    for name in ("grpc", "google", "google.protobuf"):
        if find_spec(name) is None:
            raise ImportError(f"{name} is not installed here; run: {MEND}")


def warn(line: str) -> None:
    """One line on stderr, which may be closed."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"wattledger: {line}\n")


class Reporter:
    """The thread. `socket` is asked at each attempt to connect: the daemon may come up anywhere."""

    def __init__(
        self,
        buffer: EventBuffer,
        identity: Identity,
        socket: Callable[[], str],
        *,
        pace: Pace | None = None,
        bounds: Bounds | None = None,
        gate: ForkGate | None = None,
        tell: Callable[[str], None] = warn,
    ) -> None:
        self.outbox = Outbox(bounds or Bounds())
        self._buffer = buffer
        self._identity = identity
        self._socket = socket
        self._pace = pace or Pace()
        self._gate = gate or ForkGate()
        self._tell = tell
        self._stopping = threading.Event()
        self._until_ns: int | None = None
        self._thread = threading.Thread(target=self._run, name="wattledger-reporter", daemon=True)
        self._press: Press
        self._link: Link
        self._daemon_id: str | None = None
        self._called_ns = self._retry_ns = 0
        self._pids_ns: int | None = None
        self._late_ns: int | None = None
        self._backoff_s = 0.0
        self._told: set[str] = set()

    def start(self) -> None:
        """Starts the thread; raises RuntimeError where the interpreter is shutting down."""
        self._thread.start()

    def begin_stop(self) -> None:
        """Lets it hand over what is there, within `farewell_s` from the first such call on."""
        if self._until_ns is None:
            self._until_ns = time.monotonic_ns() + round(self._pace.farewell_s * NS_PER_S)
        self._stopping.set()

    def stop(self) -> None:
        """Hands over what is there if the daemon takes it in time; returns when that is over."""
        self.begin_stop()
        left_ns = (self._until_ns or 0) - time.monotonic_ns()
        self._thread.join(max(0.0, left_ns / NS_PER_S))

    def _run(self) -> None:
        try:
            with self._gate.lock:
                self._press, self._link = Press(self._identity), Link()
        except Exception as error:  # noqa: BLE001 - the engine hook's border: a protobuf that does not fit
            self._tell(f"tokens are not metered: {error}; run: {MEND}")
            self._buffer.close()
            return
        while not self._stopping.wait(self._pace.flush_s):
            self._turn(self._pace.flush_s)
        self._retry_ns = 0
        self._turn(self._pace.farewell_s)
        self._link.close()

    def _turn(self, allowed_s: float) -> None:
        try:
            self._collect()
            now_ns = time.monotonic_ns()
            if now_ns >= self._retry_ns:
                with self._gate.lock:
                    self._deliver(now_ns + round(allowed_s * NS_PER_S))
        except LostError as error:
            self._back_off()
            if not error.late or self._late_for_s() >= self._pace.patience_s:
                self._tell_once(
                    "lost", f"no daemon {error}: tokens are kept for it; run: wattledgerd"
                )
        except Exception as error:  # noqa: BLE001 - the engine hook's border
            self._back_off()
            self._tell_once("fault", f"tokens are not reported: {error}")

    def _collect(self) -> None:
        self._look_up_pids()
        while events := self._buffer.take(self._pace.batch_events, self._pace.batch_entries):
            for model, run in groupby(events, key=lambda event: event[1]):
                batch = list(run)
                try:
                    payload = self._press.batch(model, batch, self._buffer.dropped)
                except Exception as error:  # noqa: BLE001 - the engine hook's border
                    self._buffer.drop(batch)
                    self._tell_once("unsayable", f"events cannot be told ({error}): dropped")
                else:
                    self.outbox.add(payload, len(batch))

    def _look_up_pids(self) -> None:
        """Workers may be started, and die, at any time."""
        now_ns = time.monotonic_ns()
        if self._pids_ns is None or now_ns - self._pids_ns >= self._pace.pids_s * NS_PER_S:
            self._pids_ns = now_ns
            self._press.look_up_pids()

    def _deliver(self, until_ns: int) -> None:
        self._contact()
        while time.monotonic_ns() < until_ns and (parcel := self.outbox.next()):
            self._push(*parcel)
            self._contact()
        quiet_s = self._pace.poll_s if self.outbox.uncommitted else self._pace.heartbeat_s
        if time.monotonic_ns() - self._called_ns >= quiet_s * NS_PER_S:
            self._poll()

    def _contact(self) -> None:
        """Asks a daemon that is not known how far it is, before it is sent anything."""
        if not self._link.is_current:
            self._link.open(self._socket())
            self._poll()

    def _push(self, number: int, payload: bytes) -> None:
        try:
            self._send(number, payload or self._press.empty(self._buffer.dropped))
        except RefusedError as error:
            self.outbox.refuse(number)
            self._tell_refused(error)

    def _poll(self) -> None:
        try:
            self._send(0, self._press.empty(self._buffer.dropped))
        except RefusedError as error:
            self._tell_refused(error)

    def _send(self, number: int, body: bytes) -> None:
        dropped_events = self._buffer.dropped.events + self.outbox.dropped_events
        self._called_ns = time.monotonic_ns()
        stamp = self._press.stamp(number, self._called_ns, dropped_events)
        receipt = self._link.push(body + stamp, self._pace.deadline_s)
        self._backoff_s = 0.0
        self._late_ns = None
        if "lost" in self._told:
            self._told.remove("lost")
            self._tell("the daemon is back")
        self.outbox.delivered(number)
        self._press.tells_runs = receipt.takes_runs
        if receipt.daemon_id == self._daemon_id:
            self.outbox.commit(receipt.committed_sequence)
        else:
            self._daemon_id = receipt.daemon_id
            self.outbox.rewind(receipt.committed_sequence)

    def _late_for_s(self) -> float:
        now_ns = time.monotonic_ns()
        if self._late_ns is None:
            self._late_ns = now_ns
        return (now_ns - self._late_ns) / NS_PER_S

    def _back_off(self) -> None:
        self._link.close()
        pace = self._pace
        self._backoff_s = min(pace.most_backoff_s, max(pace.least_backoff_s, self._backoff_s * 2))
        self._retry_ns = time.monotonic_ns() + round(self._backoff_s * NS_PER_S)

    def _tell_refused(self, error: RefusedError) -> None:
        self._tell_once("refused", f"the daemon refuses events ({error}): dropped and counted")

    def _tell_once(self, state: str, line: str) -> None:
        if state not in self._told:
            self._told.add(state)
            self._tell(line)
