"""How PostgreSQL fails, in words of our own.

What the server and its client library say is never taken over: it may hold the user, the host, a
password or a value. The words are chosen by SQLSTATE, by its class, or by the kind of the error.
"""

from __future__ import annotations

import asyncpg

from engine.network.failures import os_cause

ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError)
NOT_OURS = "a table of this name is not ours; set table_prefix"
SHARED = (
    "a pooler gives this session to others between two transactions; connect to the server"
    " itself, or have the pooler keep a session to one client (PgBouncer: pool_mode = session)"
)

_CAUSES = {
    "08P01": "a pooler between us and the server refuses a setting of the url, such as search_path",
    "08": "the connection was lost",
    "22": "a setting of the url cannot be used, such as search_path",
    "22P05": "the database's encoding has not all characters; make one with ENCODING 'UTF8'",
    "25006": "the server is read-only, or default_transaction_read_only is on",
    "26": SHARED,
    "28": "the server refuses the user or the password",
    "3D": "there is no such database",
    "40": "another program's transaction was in the way",
    "42501": "rights are missing; grant CREATE on the schema and TEMPORARY on the database, or"
    " make the tables beforehand and grant SELECT, INSERT and UPDATE on them",
    "42P05": SHARED,
    "42": NOT_OURS,
    "53100": "the server's disk is full; free some space",
    "53": "the server has no connection or memory left",
    "55P03": "rows are locked by another program; end its transaction",
    "57014": "the server gave up a query; see statement_timeout",
    "57": "the server is stopping or starting",
}
# Of a value, not of the moment: the same again would be refused again.
_REFUSALS = {
    "22": "a value does not fit its column",
    "22P05": "the database's encoding has no such character",
    "23": "a constraint of the table refuses it",
    "54": "a value is too long for an index",
}


def refusal(error: asyncpg.PostgresError) -> str | None:
    """Why a row can never be taken; None where that is not said."""
    state = error.sqlstate or ""
    known = _REFUSALS.get(state) or _REFUSALS.get(state[:2])
    name = error.constraint_name  # of a person who made the table: nothing of a row
    return known and f"{known} ({state}{f', {name}' if name else ''})"


def cause(error: BaseException) -> str:
    """Why it failed, for people."""
    match error:
        case asyncpg.PostgresError():
            state = error.sqlstate or ""
            known = _CAUSES.get(state) or _CAUSES.get(state[:2]) or "the server failed"
            return f"{known} ({state})"
        case TimeoutError():
            return "the server does not answer"
        case OSError():
            return os_cause(error, "cannot connect, or the server has no TLS")
        case ValueError():
            return "the url cannot be used; look at each part of it"
    return "the connection was lost"
