-- The SQLite store, version 1. Times are epoch milliseconds.

CREATE TABLE account (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    log_start INTEGER NOT NULL DEFAULT 1,  -- the first row still kept
    log_next INTEGER NOT NULL DEFAULT 1    -- the number of the next row
) STRICT;

CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    account INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    direction TEXT NOT NULL,
    revision INTEGER NOT NULL,
    state TEXT NOT NULL,
    final INTEGER NOT NULL,
    open INTEGER NOT NULL,
    verdict TEXT,
    provider_status TEXT,
    error_code TEXT,
    status_ms INTEGER,
    sent_ms INTEGER,
    placed_ms INTEGER,
    seen_ms INTEGER NOT NULL,
    batch_id TEXT,
    reference TEXT,
    recipient TEXT,
    recipient_key TEXT,
    tracked INTEGER NOT NULL,
    record BLOB NOT NULL,
    history BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX message_identity ON message (message_id, account, direction);
CREATE INDEX message_batch ON message (batch_id, account) WHERE batch_id IS NOT NULL;
CREATE INDEX message_reference ON message (reference) WHERE reference IS NOT NULL;
CREATE INDEX message_recipient ON message (recipient_key) WHERE recipient_key IS NOT NULL;
CREATE INDEX message_open ON message (account, placed_ms) WHERE open = 1;
CREATE INDEX message_ended ON message (seen_ms) WHERE final = 1;

CREATE TABLE work (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again: polls in flight know it
    account INTEGER NOT NULL,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    due_ms INTEGER NOT NULL,
    start_ms INTEGER NOT NULL,
    answered_ms INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX work_identity ON work (account, kind, key);
CREATE INDEX work_due ON work (account, due_ms);

-- A row is a chunk of at most 1,000 records or 1 MiB; id = account << 40 | seq.
CREATE TABLE log (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    states BLOB NOT NULL,
    body BLOB NOT NULL
) STRICT;

CREATE TABLE place (
    sink TEXT NOT NULL,
    account INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    record INTEGER NOT NULL,
    PRIMARY KEY (sink, account)
) STRICT, WITHOUT ROWID;

CREATE TABLE tally (
    account INTEGER NOT NULL,
    name TEXT NOT NULL,
    n INTEGER NOT NULL,
    PRIMARY KEY (account, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE trouble (
    id INTEGER PRIMARY KEY,
    account INTEGER NOT NULL,
    kind TEXT NOT NULL,
    identity TEXT NOT NULL,
    cause TEXT NOT NULL,
    position TEXT NOT NULL,
    raw BLOB NOT NULL,
    first_ms INTEGER NOT NULL,
    last_ms INTEGER NOT NULL,
    times INTEGER NOT NULL
) STRICT;
CREATE INDEX trouble_age ON trouble (last_ms);
CREATE UNIQUE INDEX trouble_identity ON trouble (account, kind, identity);

CREATE TABLE inbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account TEXT NOT NULL,
    kind TEXT NOT NULL,
    payload BLOB NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE note (
    account TEXT NOT NULL,
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (account, name)
) STRICT, WITHOUT ROWID;
