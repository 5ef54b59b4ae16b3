-- Version 2: how many bytes of the log wait for a sink is a look-up, not a count.

ALTER TABLE account ADD COLUMN log_bytes INTEGER NOT NULL DEFAULT 0;  -- of all rows there ever were
-- The row is made anew so that this stands before the body, behind which each look would have to
-- walk through all of it.
CREATE TABLE log_sized (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    before_bytes INTEGER NOT NULL,  -- of the account's rows before this one
    states BLOB NOT NULL,
    body BLOB NOT NULL
) STRICT;

INSERT INTO log_sized (id, at_ms, before_bytes, states, body)
SELECT id, at_ms, sum(size) OVER (PARTITION BY id >> 40 ORDER BY id) - size, states,
    (SELECT body FROM log WHERE log.id = sized.id)
FROM (SELECT id, at_ms, states, length(body) AS size FROM log) AS sized;

UPDATE account SET log_bytes = coalesce(
    (SELECT sum(length(body)) FROM log WHERE log.id >> 40 = account.id), 0
);

DROP TABLE log;
ALTER TABLE log_sized RENAME TO log;
