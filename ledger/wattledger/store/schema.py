"""The tables of a SQLite ledger, and how an older file becomes a newer one.

Names of things, written once and pointed at by integer ids. A NULL equals a NULL in them:
- `boot` (host, boot_id), `clock` (boot, epoch_ns; `end_ns` is how far it has been booked,
  `imported` marks the pseudo clock under which another meter's entries of a host are kept);
- `device` (host, device, kind, model, with its latest idle power; `seen_ns` says as of when),
  `account` (the eight fields of `records.Account`);
- `request` (boot, engine, request; `booked_ns` is the first window that named it).

What was said, UTC nanoseconds, integer microjoules:
- `posting_raw`, `metered_raw`: entries as booked, by clock. `span` is 0 where the entry fits
  a UTC minute, 1 where it fits a UTC hour, else 2;
- `posting_minute`, `metered_minute`: sums of span 0; `posting_hour`, `metered_hour`: sums of
  spans 0 and 1. Longer entries live in the raw tables only;
- `request_raw`: the finer copies of postings that name a request; `request_total`: their sums
  per request and account, which outlive them;
- `finish`: finished requests; `event`: late, duplicate and dropped engine events per window.

Of the daemon itself: `metric` (part, name) and `self_metric`, what each was at a time; `learned`,
the idle power learned of each device (`learned_ns`: when, UTC), which outlives a boot;
`calibration`, the state of an engine's cost model (by host, engine kind, model and devices), and
`fit`, what was found of it over time.

The rest: `journal` and `journal_boot` (raw evidence not booked yet), `meta` (settings of the
daemon), `horizon` (per tier: readers rely on nothing before `kept_ns`; nothing prunable is
left before `swept_ns`).
"""

from __future__ import annotations

import sqlite3

from wattledger.errors import UnreachableError

APPLICATION_ID = 0x77617474

_AMOUNTS = """static_uj INTEGER NOT NULL, dynamic_uj INTEGER NOT NULL, device_ns INTEGER NOT NULL,
    prefill_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
    decode_tokens INTEGER NOT NULL, requests INTEGER NOT NULL"""
_COUNTS = """energy_uj INTEGER NOT NULL, device_ns INTEGER NOT NULL, gaps INTEGER NOT NULL,
    resets INTEGER NOT NULL, wraps INTEGER NOT NULL"""

_VERSION_1 = (
    """CREATE TABLE boot (id INTEGER PRIMARY KEY, host TEXT NOT NULL, boot_id TEXT NOT NULL,
    UNIQUE (host, boot_id))""",
    """CREATE TABLE clock (id INTEGER PRIMARY KEY, boot INTEGER NOT NULL REFERENCES boot,
    epoch_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL, imported INTEGER NOT NULL,
    UNIQUE (boot, epoch_ns))""",
    """CREATE TABLE device (id INTEGER PRIMARY KEY, host TEXT NOT NULL, device TEXT NOT NULL,
    kind TEXT NOT NULL, model TEXT, static_w REAL, static_basis TEXT NOT NULL, wrap_uj INTEGER,
    estimated INTEGER NOT NULL, seen_ns INTEGER NOT NULL)""",
    "CREATE UNIQUE INDEX device_key ON device (host, device, kind, ifnull(model, x''))",
    """CREATE TABLE account (id INTEGER PRIMARY KEY, activity TEXT NOT NULL,
    quality TEXT NOT NULL, method TEXT NOT NULL, static_basis TEXT NOT NULL, workload TEXT,
    job TEXT, engine TEXT, model TEXT)""",
    """CREATE UNIQUE INDEX account_key ON account (ifnull(job, x''), ifnull(workload, x''),
    ifnull(engine, x''), ifnull(model, x''), activity, quality, method, static_basis)""",
    f"""CREATE TABLE posting_raw (start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
    device INTEGER NOT NULL REFERENCES device, account INTEGER NOT NULL REFERENCES account,
    clock INTEGER NOT NULL REFERENCES clock, span INTEGER NOT NULL, {_AMOUNTS},
    PRIMARY KEY (start_ns, end_ns, device, account, clock)) WITHOUT ROWID""",
    "CREATE INDEX posting_long ON posting_raw (span, end_ns) WHERE span > 0",
    f"""CREATE TABLE posting_minute (start_ns INTEGER NOT NULL, device INTEGER NOT NULL,
    account INTEGER NOT NULL, {_AMOUNTS},
    PRIMARY KEY (start_ns, device, account)) WITHOUT ROWID""",
    f"""CREATE TABLE posting_hour (start_ns INTEGER NOT NULL, device INTEGER NOT NULL,
    account INTEGER NOT NULL, {_AMOUNTS},
    PRIMARY KEY (start_ns, device, account)) WITHOUT ROWID""",
    f"""CREATE TABLE metered_raw (start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
    device INTEGER NOT NULL REFERENCES device, clock INTEGER NOT NULL REFERENCES clock,
    span INTEGER NOT NULL, {_COUNTS},
    PRIMARY KEY (start_ns, end_ns, device, clock)) WITHOUT ROWID""",
    "CREATE INDEX metered_long ON metered_raw (span, end_ns) WHERE span > 0",
    f"""CREATE TABLE metered_minute (start_ns INTEGER NOT NULL, device INTEGER NOT NULL,
    {_COUNTS}, PRIMARY KEY (start_ns, device)) WITHOUT ROWID""",
    f"""CREATE TABLE metered_hour (start_ns INTEGER NOT NULL, device INTEGER NOT NULL,
    {_COUNTS}, PRIMARY KEY (start_ns, device)) WITHOUT ROWID""",
    """CREATE TABLE request (id INTEGER PRIMARY KEY, boot INTEGER NOT NULL REFERENCES boot,
    engine TEXT NOT NULL, request TEXT NOT NULL, booked_ns INTEGER NOT NULL,
    UNIQUE (request, engine, boot))""",
    "CREATE INDEX request_booked ON request (booked_ns)",
    f"""CREATE TABLE request_raw (start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
    device INTEGER NOT NULL REFERENCES device, account INTEGER NOT NULL REFERENCES account,
    request INTEGER NOT NULL REFERENCES request ON DELETE CASCADE,
    clock INTEGER NOT NULL REFERENCES clock, span INTEGER NOT NULL, {_AMOUNTS},
    PRIMARY KEY (request, start_ns, end_ns, device, account, clock)) WITHOUT ROWID""",
    "CREATE INDEX request_start ON request_raw (start_ns)",
    "CREATE INDEX request_long ON request_raw (span, end_ns) WHERE span > 0",
    """CREATE TABLE request_total (request INTEGER NOT NULL REFERENCES request ON DELETE CASCADE,
    account INTEGER NOT NULL REFERENCES account, parts INTEGER NOT NULL,
    energy_uj INTEGER NOT NULL, PRIMARY KEY (request, account)) WITHOUT ROWID""",
    """CREATE TABLE finish (request INTEGER NOT NULL REFERENCES request ON DELETE CASCADE,
    finished_ns INTEGER NOT NULL, clock INTEGER NOT NULL REFERENCES clock, model TEXT,
    workload TEXT, job TEXT, prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
    decode_tokens INTEGER NOT NULL, PRIMARY KEY (request, finished_ns, clock)) WITHOUT ROWID""",
    "CREATE INDEX finish_time ON finish (finished_ns)",
    """CREATE TABLE event (start_ns INTEGER NOT NULL, clock INTEGER NOT NULL REFERENCES clock,
    end_ns INTEGER NOT NULL, late INTEGER NOT NULL, duplicates INTEGER NOT NULL,
    dropped INTEGER NOT NULL, PRIMARY KEY (start_ns, clock)) WITHOUT ROWID""",
    "CREATE TABLE journal_boot (id INTEGER PRIMARY KEY, boot_id TEXT NOT NULL UNIQUE)",
    """CREATE TABLE journal (id INTEGER PRIMARY KEY,
    boot INTEGER NOT NULL REFERENCES journal_boot, t_ns INTEGER NOT NULL, kind TEXT NOT NULL,
    seq INTEGER NOT NULL, body BLOB NOT NULL)""",
    "CREATE INDEX journal_time ON journal (boot, t_ns)",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE horizon (tier TEXT PRIMARY KEY, kept_ns INTEGER NOT NULL,
    swept_ns INTEGER NOT NULL) WITHOUT ROWID""",
    "INSERT INTO horizon VALUES ('raw', 0, 0), ('minute', 0, 0), ('hour', 0, 0)",
)

_VERSION_2 = (
    """CREATE TABLE metric (id INTEGER PRIMARY KEY, part TEXT NOT NULL, name TEXT NOT NULL,
    UNIQUE (part, name))""",
    """CREATE TABLE self_metric (t_ns INTEGER NOT NULL, metric INTEGER NOT NULL REFERENCES metric,
    value REAL NOT NULL, PRIMARY KEY (t_ns, metric)) WITHOUT ROWID""",
    """CREATE TABLE learned (id INTEGER PRIMARY KEY, host TEXT NOT NULL, device TEXT NOT NULL,
    kind TEXT NOT NULL, model TEXT, static_w REAL NOT NULL, learned_ns INTEGER NOT NULL)""",
    "CREATE UNIQUE INDEX learned_key ON learned (host, device, kind, ifnull(model, x''))",
)

_COEFFICIENTS = ", ".join(
    f"{name}_j REAL, {name}_low_j REAL, {name}_high_j REAL" for name in "fabc"
)
_VERSION_3 = (
    """CREATE TABLE calibration (id INTEGER PRIMARY KEY, host TEXT NOT NULL, kind TEXT NOT NULL,
    model TEXT, devices TEXT NOT NULL, taught_ns INTEGER NOT NULL, state TEXT NOT NULL)""",
    """CREATE UNIQUE INDEX calibration_key ON calibration (host, kind, ifnull(model, x''),
    devices)""",
    f"""CREATE TABLE fit (calibration INTEGER NOT NULL REFERENCES calibration ON DELETE CASCADE,
    fitted_ns INTEGER NOT NULL, engine TEXT NOT NULL, rows INTEGER NOT NULL,
    rank INTEGER NOT NULL, identified INTEGER NOT NULL, reason TEXT NOT NULL,
    lag_s REAL NOT NULL, idle_w REAL, idle_basis TEXT NOT NULL, residual_ratio REAL NOT NULL,
    method TEXT NOT NULL, since_ns INTEGER NOT NULL, engines TEXT NOT NULL, {_COEFFICIENTS},
    PRIMARY KEY (calibration, fitted_ns)) WITHOUT ROWID""",
)

_MIGRATIONS = (_VERSION_1, _VERSION_2, _VERSION_3)
SCHEMA_VERSION = len(_MIGRATIONS)


def version_of(conn: sqlite3.Connection, path: str) -> int:
    """The schema version of a ledger, 0 for an empty file.

    Raises:
        UnreachableError: another program's database, or a newer wattledger's.
    """
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    (application_id,) = conn.execute("PRAGMA application_id").fetchone()
    (tables,) = conn.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application_id != APPLICATION_ID and (application_id or version or tables):
        raise UnreachableError(f"{path}: not a wattledger ledger: name another file")
    if version > SCHEMA_VERSION:
        raise UnreachableError(
            f"{path}: written by a newer wattledger (schema {version}, this one knows "
            f"{SCHEMA_VERSION}): upgrade wattledger"
        )
    return int(version)


def migrate(conn: sqlite3.Connection, path: str) -> None:
    """Bring a ledger to this version's schema, in one transaction.

    Raises:
        UnreachableError: as `version_of`.
    """
    if version_of(conn, path) == SCHEMA_VERSION:
        return
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("BEGIN IMMEDIATE")
    # Asked again: another process may have migrated it before this one held the lock.
    for script in _MIGRATIONS[version_of(conn, path) :]:
        for statement in script:
            conn.execute(statement)
    conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    conn.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    conn.execute("COMMIT")
