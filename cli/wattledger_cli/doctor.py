"""`wattledger doctor`: what can be measured here, what not, why, and the mend."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from wattledger_cli.examine import Finding, State, examine_ledger, examine_sensors
from wattledger_cli.examine_daemon import DAEMON_SENSOR, examine_daemon
from wattledger_cli.examine_host import examine_host
from wattledger_cli.options import options_of
from wattledger_cli.output import draw_table, emit
from wattledger_cli.tables import Cells, words

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def doctor(context: typer.Context) -> None:
    """Tell what can be measured here, what not, why, and the mend.

    A sensor stands here twice: as this user could read it, and as the running daemon reads it. One
    that works for the daemon and is denied to this user is as it should be.

    Example: wattledger doctor --format json
    """
    options = options_of(context)
    findings = [*examine_sensors(), *examine_host(), examine_ledger(options.ledger_url())]
    findings += examine_daemon()
    document = {
        "schema": "wattledger.doctor/1",
        "findings": [finding.to_json() for finding in findings],
    }

    def draw() -> None:
        rows = [finding for finding in findings if not _told_already(finding, findings)]
        draw_table(
            (
                words("part", [_label(finding) for finding in rows]),
                words("state", [finding.state for finding in rows]),
                words("what and why", [_told(finding) for finding in rows], holds=Cells.PROSE),
            )
        )

    emit(options, document, [finding.to_record() for finding in findings], draw)


def _told_already(finding: Finding, findings: Sequence[Finding]) -> bool:
    """Whether this user's own look found the same absence that the daemon tells of."""
    return finding.part == DAEMON_SENSOR and any(
        (other.part, other.name, other.state, other.detail)
        == ("sensor", finding.name, State.ABSENT, finding.detail)
        for other in findings
    )


def _label(finding: Finding) -> str:
    # A ledger and a daemon are named by long paths, which their details repeat.
    return finding.part if "/" in finding.name else f"{finding.part} {finding.name}"


def _told(finding: Finding) -> str:
    return f"{finding.detail}; mend: {finding.mend}" if finding.mend else finding.detail
