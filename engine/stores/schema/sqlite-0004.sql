-- Version 4: what a message costs does not grow with their number. Rows stand in the order in which
-- they came; one narrow index finds them by (mark, hash of the id), and what is looked up by people
-- (by an id alone, a recipient, a reference) is sorted in runs behind the writer. A newest record
-- stands once, in its log row, which stays as long as a message needs it.

CREATE TABLE message_new (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given again: runs name it
    key INTEGER NOT NULL,                  -- mark << 31 | hash of the message id
    account INTEGER NOT NULL,
    pending INTEGER NOT NULL,              -- 0: final, 1: not, 2: not and tracked
    open_ms INTEGER,                       -- where windows find it, while it is open
    ended_ms INTEGER,                      -- when it last changed, once it is final
    elsewhere TEXT,                        -- its id, where the mark may be another one next time
    batch TEXT,
    who INTEGER,                           -- hash of the recipient's key
    reference INTEGER,                     -- hash of the reference
    data TEXT NOT NULL                     -- all that is known of it: see `Known`
) STRICT;

-- Records that stand in no log row.
CREATE TABLE spare (
    id INTEGER PRIMARY KEY,
    record BLOB NOT NULL
) STRICT;

-- Of each log row, how many messages have their newest record there.
CREATE TABLE held (
    log INTEGER PRIMARY KEY,
    records INTEGER NOT NULL
) STRICT;
CREATE INDEX held_by_none ON held (log) WHERE records <= 0;
INSERT INTO held (log, records) SELECT id, 0 FROM log;

-- Sorted runs of (hash, message), each of the rows that came after the run before. Run 0 takes what
-- has changed since.
CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    last INTEGER NOT NULL,  -- the last message in it
    at_ms INTEGER NOT NULL  -- when that came
) STRICT;
INSERT INTO run (id, last, at_ms) VALUES (0, 0, 0);
CREATE TABLE lookup (
    run INTEGER NOT NULL,
    hash INTEGER NOT NULL,
    message INTEGER NOT NULL,
    PRIMARY KEY (run, hash, message)
) STRICT, WITHOUT ROWID;

ALTER TABLE account ADD COLUMN first_message INTEGER;  -- none of its messages is in a row before
ALTER TABLE account ADD COLUMN by_id_from INTEGER;     -- the first found by its id alone, too
