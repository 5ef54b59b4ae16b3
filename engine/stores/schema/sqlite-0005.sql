-- Version 5: what a sink refused for good is a dead letter, with all it takes to offer it again.

CREATE TABLE dead_letter (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again: a retry under way knows it
    sink TEXT NOT NULL,
    account INTEGER NOT NULL,
    seq INTEGER NOT NULL,     -- where in the account's log it stood
    position INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    revision INTEGER NOT NULL,
    event_id TEXT NOT NULL,
    first_ms INTEGER NOT NULL,
    last_ms INTEGER NOT NULL,
    times INTEGER NOT NULL,
    size INTEGER NOT NULL,
    cause TEXT NOT NULL,
    record BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX dead_letter_identity ON dead_letter (sink, event_id);
-- All that is counted, and what is trimmed by, without a look at a record.
CREATE INDEX dead_letter_size ON dead_letter (sink, id, size, first_ms, account);
