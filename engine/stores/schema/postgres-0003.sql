-- Version 3: a reference may be longer than what an index holds (2,704 bytes, after compression):
-- Infobip's callbackData has up to 4,000 characters.

DROP INDEX message_reference;
CREATE INDEX message_reference ON message (left(reference, 256)) WHERE reference IS NOT NULL;
