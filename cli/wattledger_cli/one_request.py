"""`wattledger requests --request ID`: one request, asked of the daemon, else of the ledger."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from wattledger.errors import DataMissingError, InputError, UnreachableError
from wattledger.records import UJ_PER_J
from wattledger.timespan import format_instant
from wattledger_cli.figures import CARBON_G, COUNT, ENERGY_J, quantity
from wattledger_cli.node import ANSWER_DEADLINE_S, NoAnswerError, Node, local_socket
from wattledger_cli.output import draw_notes, draw_table, emit, note
from wattledger_cli.tables import numbers, printable, words

if TYPE_CHECKING:
    from wattledger.statement.request import OneRequest, OneRequestStatement
    from wattledger_cli.options import Options
    from wattledger_cli.pricing import Prices
    from wattledger_proto.v1.node_pb2 import RequestStatus

_GLOB = frozenset("*?[")
_LITERAL_S = 2.0
_PROVISIONAL = "its last windows are not booked yet: ask again in 15 s"


def is_one(asked: list[str] | None) -> bool:
    """Whether it is an id, not a pattern or several."""
    return asked is not None and len(asked) == 1 and _GLOB.isdisjoint(asked[0])


def show_request(
    options: Options, asked: str, engine: str, limit: int, price: Prices | None
) -> bool:
    """Find it and write the answer; always true.

    Raises DataMissingError where nobody knows the id, and UnreachableError where a daemon that
    may know it does not answer.
    """
    if not asked:
        raise InputError("--request '': give the id of a request, or a pattern such as 'cmpl-*'")
    now_ns = time.time_ns()
    found, silent = _found(options, asked, engine, now_ns)
    if not found:
        if isinstance(silent, NoAnswerError):
            raise silent
        note(options, _told_of(silent))
        raise DataMissingError(
            f"no request {printable(asked)!r} is known: give the id of the engine or of the"
            f" client's X-Request-Id, or a pattern and a window: --request '*ID*' --last 24h"
        )
    if isinstance(silent, NoAnswerError):
        note(options, _told_of(silent))
    _show(options, found, limit, price, now_ns)
    return True


def show_if_literal(
    options: Options, asked: str, engine: str, limit: int, price: Prices | None
) -> bool:
    """Show the request whose very id looks like a pattern; whether there is one."""
    now_ns = time.time_ns()
    try:
        found, _ = _found(options, asked, engine, now_ns, _LITERAL_S)
    except (UnreachableError, InputError):
        # As a pattern it is asked of the ledger, which then says what is wrong.
        return False
    if found:
        _show(options, found, limit, price, now_ns)
    return bool(found)


def _show(
    options: Options, found: list[OneRequest], limit: int, price: Prices | None, now_ns: int
) -> None:
    from wattledger.statement.request import OneRequestStatement, priced

    if price is not None:
        found = [priced(item, price.intensity, now_ns, price.pue) for item in found]
    statement = OneRequestStatement(tuple(found[:limit]), now_ns)
    records = [item.to_json() for item in statement.requests]
    emit(options, statement.to_json(), records, lambda: _draw(statement, len(found)))


def _told_of(silent: UnreachableError | None) -> list[str]:
    return [] if silent is None else [f"the ledger alone was asked: {silent}"]


def _found(
    options: Options, asked: str, engine: str, now_ns: int, deadline_s: float = ANSWER_DEADLINE_S
) -> tuple[list[OneRequest], UnreachableError | None]:
    """What the daemon says, else the ledger; and why the daemon said nothing."""
    from wattledger.statement.request import booked
    from wattledger_collectors.engines.request_names import names_of

    silent: UnreachableError | None = None
    if options.ledger is None:
        try:
            return _asked(asked, engine, deadline_s), None
        except UnreachableError as error:
            silent = error
    with options.store() as store:
        found = booked(store, names_of(asked), now_ns)
    return [item for item in found if engine in ("", item.request.key.engine)], silent


def _asked(asked: str, engine: str, deadline_s: float) -> list[OneRequest]:
    """Ask the local daemon; raises UnreachableError."""
    with Node(local_socket()) as node:
        return [_of(status) for status in node.request(asked, engine, deadline_s).requests]


def _of(told: RequestStatus) -> OneRequest:
    from wattledger.records import Quality
    from wattledger.statement.request import OneRequest
    from wattledger.store.named import NamedRequest, RequestKey

    item = NamedRequest(
        RequestKey(told.host, "", told.engine, told.request),
        told.model if told.HasField("model") else None,
        told.workload if told.HasField("workload") else None,
        told.job if told.HasField("job") else None,
        told.finished_ns if told.HasField("finished_ns") else None,
        told.prompt_tokens,
        told.cached_tokens,
        told.decode_tokens,
        told.prefill_tokens,
        round(told.prefill_j * UJ_PER_J),
        round(told.decode_j * UJ_PER_J),
        frozenset({told.method}),
        frozenset({Quality(told.quality)}),
    )
    return OneRequest(item, told.provisional, told.gco2e if told.HasField("gco2e") else None)


def _draw(statement: OneRequestStatement, found: int) -> None:
    for at, item in enumerate(statement.requests):
        if at:
            draw_notes((("", ""),))
        _draw_one(item)
    if found > len(statement.requests):
        shown = f"{len(statement.requests)} of {found}, the latest first: --limit {found} has all"
        draw_notes((("shown", shown),))


def _draw_one(told: OneRequest) -> None:
    item = told.request
    joules = [uj / UJ_PER_J for uj in (item.prefill_uj, item.decode_uj, item.energy_uj)]
    tokens = [item.prefill_tokens, item.decode_tokens, item.prefill_tokens + item.decode_tokens]
    per_token = [j / count if count else None for j, count in zip(joules, tokens, strict=True)]
    draw_table(
        [
            words("phase", ["prefill", "decode"], "request"),
            numbers("tokens", COUNT, tokens[:2], tokens[2]),
            numbers("energy", ENERGY_J, joules[:2], joules[2]),
            numbers("per token", ENERGY_J, per_token[:2], per_token[2]),
        ],
        totals=True,
    )
    whose = [f"{name} {value}" for name, value in _owners(told) if value]
    finished = "not told yet" if item.finished_ns is None else format_instant(item.finished_ns)
    notes = [
        ("request", item.key.request),
        ("engine", ", ".join(filter(None, (item.key.engine, item.model, item.key.host)))),
        ("whose", ", ".join(whose)),
        ("finished", finished),
        ("prompt", f"{item.prompt_tokens:,} tokens, {item.cached_tokens:,} of them cached"),
        ("carbon", _carbon(told)),
        ("energy", f"{item.quality.value} ({item.method})"),
        ("provisional", _PROVISIONAL if told.provisional else ""),
    ]
    draw_notes([(label, text) for label, text in notes if text])


def _owners(told: OneRequest) -> list[tuple[str, str | None]]:
    return [("job", told.request.job), ("workload", told.request.workload)]


def _carbon(told: OneRequest) -> str:
    return "" if told.gco2e is None else f"{quantity(told.gco2e, CARBON_G)} CO2e operational"
