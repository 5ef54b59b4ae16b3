-- Version 2: how many bytes of the log wait for a sink is a look-up, not a count.

ALTER TABLE account ADD COLUMN log_bytes INTEGER NOT NULL DEFAULT 0;  -- of all rows there ever were
ALTER TABLE log ADD COLUMN before_bytes INTEGER NOT NULL DEFAULT 0;   -- of the rows before this one

WITH sized AS (
    SELECT id, sum(length(body)) OVER (PARTITION BY id >> 40 ORDER BY id) - length(body) AS bytes
    FROM log
)
UPDATE log SET before_bytes = sized.bytes FROM sized WHERE sized.id = log.id;

UPDATE account SET log_bytes = coalesce(
    (SELECT sum(length(body)) FROM log WHERE log.id >> 40 = account.id), 0
);
