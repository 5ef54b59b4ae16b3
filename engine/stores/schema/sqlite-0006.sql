-- Version 6: what came to its end before it was ever heard of is kept by the lot. A new message
-- that is final, and that no rescan may change, is mostly never written again; some dozens of them
-- are one row, a fifth of the bytes and a third of the work. Rows are numbered as before: a lot's
-- messages have the numbers from its own on. One that does change gets a row of its own, under its
-- number, and that is then the one that counts.

CREATE TABLE lot (
    id INTEGER PRIMARY KEY,    -- the number of its first message
    account INTEGER NOT NULL,
    alive INTEGER NOT NULL,    -- how many have no row of their own
    ended_ms INTEGER NOT NULL, -- when the last of them changed
    batch TEXT,                -- of all of them
    hashes TEXT NOT NULL,      -- what they are looked up by: [hash << 16 | index, ...]
    data BLOB NOT NULL         -- what is known of them: JSON, compressed
) STRICT;
CREATE INDEX lot_batch ON lot (batch, account) WHERE batch IS NOT NULL;

-- Every message by its key, whether it has a row or lies in a lot.
CREATE TABLE by_key (
    key INTEGER NOT NULL,      -- mark << 31 | hash of the message id
    message INTEGER NOT NULL,
    PRIMARY KEY (key, message)
) STRICT, WITHOUT ROWID;
