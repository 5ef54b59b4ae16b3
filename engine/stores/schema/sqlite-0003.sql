-- Version 3: set-aside pieces are kept whole, with the question that the answer belonged to.

ALTER TABLE trouble ADD COLUMN form TEXT NOT NULL DEFAULT 'record';
ALTER TABLE trouble ADD COLUMN truncated INTEGER NOT NULL DEFAULT 0;
ALTER TABLE trouble ADD COLUMN size INTEGER NOT NULL DEFAULT 0;  -- of the piece, before packing
ALTER TABLE trouble ADD COLUMN asked BLOB;  -- NULL: not to be read again, x'': not known
ALTER TABLE trouble ADD COLUMN body BLOB;   -- all of the piece, packed, where raw is a beginning

UPDATE trouble SET size = length(raw);
UPDATE trouble SET asked = x'' WHERE kind = 'set_aside' AND position LIKE 'poll: %';
CREATE INDEX trouble_size ON trouble (size) WHERE size > 0;
-- To find all that was set aside of one answer.
CREATE INDEX trouble_answer ON trouble (account, first_ms) WHERE asked IS NOT NULL;
