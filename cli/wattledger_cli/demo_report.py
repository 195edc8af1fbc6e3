"""What the demo shows at its end: the statement, the costliest requests, the audit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from wattledger_cli.audit import show_audit
from wattledger_cli.carbon import show_carbon
from wattledger_cli.demo_traffic import Tally
from wattledger_cli.figures import share
from wattledger_cli.options import Options
from wattledger_cli.requests import show_requests

if TYPE_CHECKING:
    from wattledger.statement.query import CarbonQuery
    from wattledger.timespan import Window

SHOWN_REQUESTS = 5


def report(options: Options, window: Window, zone: str, tally: Tally) -> None:
    """Write the demo's answers, each under the command that asks the same."""
    from wattledger.carbon.annual import annual_intensity
    from wattledger.statement import query as asked
    from wattledger.store.protocol import Filters

    annual = annual_intensity(zone)
    told = window.to_json()
    flags = f"--ledger {options.ledger_url()} --from {told['from']} --to {told['to']}"
    query = asked.CarbonQuery(
        window=window, by=("job", "activity"), intensity=annual, zone=annual.zone.code
    )
    _title(f"wattledger carbon {flags} --by job,activity --zone {zone}")
    show_carbon(options, query)
    _title(f"wattledger requests {flags} --limit {SHOWN_REQUESTS}")
    show_requests(options, window, Filters(), SHOWN_REQUESTS)
    _title(f"wattledger audit {flags}")
    show_audit(options, window)
    _conclude(options, query, annual.zone.entity, tally)


def _title(command: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"\n$ {command}\n\n")
    sys.stderr.flush()


def _conclude(options: Options, query: CarbonQuery, place: str, tally: Tally) -> None:
    """Hold the books against the engines' own counts, and say what nobody measured."""
    from wattledger.statement.usage import usage_statement

    with options.store() as store:
        statement = usage_statement(store, query)
    amounts = statement.total.amounts
    prompts = amounts.prefill_tokens + amounts.cached_tokens
    estimated = statement.coverage.energy.get("estimated", 0.0)
    lines = [
        f"tokens booked, of those the engines counted: prompt {prompts:,} of"
        f" {tally.prompt_tokens:,}, answer {amounts.decode_tokens:,} of {tally.answer_tokens:,}",
        f"the intensity is an example, the annual mean of {place}: --zone sets another",
    ]
    if estimated == 1.0:
        lines.append(
            "all energy here is ESTIMATED from CPU load, as no energy counter is readable:"
            " wattledger doctor says why"
        )
    elif estimated:
        lines.append(f"{share(estimated)} of the energy is ESTIMATED: wattledger doctor says why")
    else:
        lines.append("no part of the energy is estimated")
    sys.stdout.flush()
    sys.stderr.write("\n" + "".join(f"demo: {line}\n" for line in lines))
