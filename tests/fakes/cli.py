"""The command line run in this process on a machine that is bare, and a small ledger for it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

from fakes.pages import GPU0, T0_NS, account, balanced_page, posting
from wattledger.records import NS_PER_S, Account, Activity, Amounts, FinishedRequest
from wattledger.store import open_ledger
from wattledger_cli.app import run

FROM = "2026-09-21T14:00:00Z"
TO = "2026-09-21T14:00:05Z"
WINDOW = ("--from", FROM, "--to", TO)
_S = NS_PER_S
_FORGOTTEN = (
    "WATTLEDGER_CONFIG",
    "WATTLEDGER_SOCKET",
    "WATTLEDGER_DEBUG",
    "XDG_RUNTIME_DIR",
    "NO_COLOR",
)


@dataclass(frozen=True, slots=True)
class Ran:
    status: int
    out: str
    err: str


class Terminal(io.StringIO):
    """A stdout that somebody looks at; COLUMNS says how wide it is."""

    def isatty(self) -> bool:
        return True


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    for name in _FORGOTTEN:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@dataclass(frozen=True, slots=True)
class Cli:
    """`wattledger` with a home of its own, where the config is an empty file."""

    home: Path

    def environ(self) -> dict[str, str]:
        config = self.home / "wattledger.toml"
        config.touch()
        return {
            "HOME": str(self.home),
            "XDG_STATE_HOME": str(self.home / "state"),
            "WATTLEDGER_CONFIG": str(config),
        }

    def run(
        self, *arguments: str, env: Mapping[str, str] | None = None, columns: int | None = None
    ) -> Ran:
        """Run a command line, on a terminal where `columns` tells its width."""
        out, err = Terminal() if columns else io.StringIO(), io.StringIO()
        if columns:
            env = {"COLUMNS": str(columns), "TERM": "xterm-256color", **(env or {})}
        with (
            environment({**self.environ(), **(env or {})}),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            status = run(arguments)
        return Ran(status, out.getvalue(), err.getvalue())


def finish(request: str, job: str, tokens: tuple[int, int, int]) -> FinishedRequest:
    prompt, cached, decode = tokens
    return FinishedRequest(
        request, "vllm-a", "llama-3-8b", None, job, T0_NS + 4 * _S, prompt, cached, decode
    )


def steps(activity: Activity, job: str | None) -> Account:
    return account(activity, job=job, engine="vllm-a", model="llama-3-8b", method="steps")


def small_ledger(path: Path, *, metered_off_uj: int = 0) -> str:
    """Five seconds of one GPU, two jobs and idle: 1,000 J; returns the ledger's URL."""
    end_ns = T0_NS + 5 * _S
    parts = [
        (steps(Activity.PREFILL, "chat"), Amounts(10_000_000, 90_000_000, _S, 1000), "r1"),
        (steps(Activity.DECODE, "chat"), Amounts(40_000_000, 460_000_000, 2 * _S, 0, 0, 100), "r1"),
        (steps(Activity.PREFILL, "batch"), Amounts(10_000_000, 40_000_000, _S // 2, 500), "r2"),
        (account(Activity.IDLE), Amounts(350_000_000, 0, 3 * _S // 2), None),
    ]
    finishes = (finish("r1", "chat", (1200, 200, 100)), finish("r2", "batch", (500, 0, 0)))
    instants = [
        posting(
            done.finished_ns,
            done.finished_ns + 1,
            Amounts(cached_tokens=done.cached_tokens, requests=1),
            to=steps(Activity.DECODE, done.job),
        )
        for done in finishes
    ]
    page = balanced_page(
        T0_NS,
        end_ns,
        [*(posting(T0_NS, end_ns, amounts, to=to) for to, amounts, _ in parts), *instants],
        devices=(GPU0,),
        request_postings=[
            posting(T0_NS, end_ns, amounts, to=to, request=request)
            for to, amounts, request in parts
            if request
        ],
        finished=finishes,
        late=1,
    )
    (meter,) = page.metered
    page = replace(page, metered=(replace(meter, energy_uj=meter.energy_uj + metered_off_uj),))
    url = f"sqlite:{path}"
    ledger = open_ledger(url, create=True)
    try:
        ledger.book(page)
    finally:
        ledger.close()
    return url
