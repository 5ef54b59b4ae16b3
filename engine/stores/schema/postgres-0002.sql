-- Version 2: the fleet. A lease is good for as long as its worker is alive, and the worker's row
-- says until when that is: to renew is one row, however many accounts there are.

ALTER TABLE worker
    ADD name text COLLATE "C" NOT NULL UNIQUE,
    ADD place text COLLATE "C" NOT NULL,   -- where its process id means something; '': not known
    ADD until timestamptz NOT NULL,
    ADD load double precision NOT NULL DEFAULT 0,
    ADD idle boolean NOT NULL DEFAULT false,
    ADD leaving boolean NOT NULL DEFAULT false;

ALTER TABLE lease
    DROP expires,
    ADD since timestamptz;  -- when it changed hands last
CREATE INDEX lease_worker ON lease (worker);
CREATE INDEX place_account ON place (account);  -- a worker looks at those of its accounts alone

-- A worker that holds the account hears of what is handed over, however it was put there.
CREATE FUNCTION dlr_tell_inbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('dlr_inbox', account) FROM (SELECT DISTINCT account FROM new) AS changed;
    RETURN NULL;
END $$;
CREATE TRIGGER inbox_told AFTER INSERT ON inbox
    REFERENCING NEW TABLE AS new FOR EACH STATEMENT EXECUTE FUNCTION dlr_tell_inbox();
