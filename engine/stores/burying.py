"""Dead letters and positions: the rules, once for every store.

A record that a sink can never accept is kept beside the log, which does not wait for it; bounded,
the oldest go first. A position goes back by itself only where it is told to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import msgspec

from .transaction import DeadLetter, Place, Transaction

# Dead letters of one sink, and their bytes; the oldest go first.
DEAD_MAX = 10_000
DEAD_BYTES_MAX = 64 << 20

# What is kept of a sink's words.
CAUSE_MAX = 500


class _Heading(msgspec.Struct):
    """What is read of a record."""

    event_id: str
    message_id: str
    revision: int


class Buried(msgspec.Struct, kw_only=True):
    """What became of refused records."""

    new: int = 0
    dropped: int = 0  # older ones, beyond the bounds


class Gone(msgspec.Struct, kw_only=True):
    """What was forgotten of a sink."""

    accounts: int = 0  # in which it had a position
    dead_letters: int = 0


class Lag(msgspec.Struct, kw_only=True):
    """How far a sink is behind in one account's log."""

    account: str
    place: Place | None  # None: it has not been there yet
    records: int = 0
    bytes: int = 0  # of the log's rows that it has not taken whole
    oldest_ms: int | None = None  # when the earliest of these rows was written


def letter(
    sink: str, account: str, place: Place, record: bytes, cause: str, now_ms: int
) -> DeadLetter:
    """A record that was just refused."""
    try:
        heading = msgspec.json.decode(record, type=_Heading)
    except msgspec.DecodeError:  # kept all the same, under what it is
        heading = _Heading(blake2b(record, digest_size=16).hexdigest(), "", 0)
    return DeadLetter(
        sink=sink,
        account=account,
        place=place,
        message_id=heading.message_id,
        revision=heading.revision,
        event_id=heading.event_id,
        cause=cause[:CAUSE_MAX],
        record=record,
        first_ms=now_ms,
        last_ms=now_ms,
    )


def bury(tx: Transaction, sink: str, letters: Sequence[DeadLetter]) -> Buried:
    """Keep what a sink refused for good, and count it in its accounts' books."""
    done = Buried()
    for account in dict.fromkeys(one.account for one in letters):
        new = tx.put_dead_letters([one for one in letters if one.account == account])
        tx.add_tallies(account, {"refused": new})
        done.new += new
    gone = tx.trim_dead_letters(sink, DEAD_MAX, DEAD_BYTES_MAX)
    for account, count in gone.items():
        tx.add_tallies(account, {"dead_dropped": count})
    done.dropped = sum(gone.values())
    return done


def rewind(tx: Transaction, sink: str, account: str, to_ms: int | None) -> tuple[Place, int]:
    """Put a sink back to what was written at or since `to_ms` (None: the oldest record kept).

    Never forward: what it has not taken is not passed over. Returns its place, and how many
    records it will be given again.
    """
    start, end = tx.log_bounds().get(account, (1, 1))
    wanted = (start if to_ms is None else tx.log_since(account, to_ms), 0)
    seq, index = tx.places().get(sink, {}).get(account, (end, 0))
    if wanted >= (seq, index):
        return (seq, index), 0
    tx.put_places(sink, {account: wanted})
    before, after = (tx.log_records(account, one)[0] for one in (wanted[0], seq))
    return wanted, before - after + index


def forget(tx: Transaction, sink: str) -> Gone:
    """A sink is gone for good: its positions and its dead letters, of whatever account."""
    letters = sum(tx.trim_dead_letters(sink, 0, 0).values())
    return Gone(accounts=tx.drop_places(sink), dead_letters=letters)


def lags(tx: Transaction, sinks: Mapping[str, tuple[Sequence[str], str]]) -> dict[str, list[Lag]]:
    """By sink and account, how far behind it is. `sinks`: the accounts that each takes, and where
    it begins in a log that it has not seen yet, "oldest" or "now"."""
    places, bounds, waiting = tx.places(), tx.log_bounds(), tx.backlog()
    found: dict[str, list[Lag]] = {}
    for sink, (accounts, start) in sinks.items():
        for account in accounts:
            first, end = bounds.get(account, (1, 1))
            place = places.get(sink, {}).get(account)
            seq, index = place or (first if start == "oldest" else end, 0)
            if seq < first:
                seq, index = first, 0
            behind = Lag(account=account, place=place)
            if seq < end:
                records, behind.oldest_ms = tx.log_records(account, seq)
                behind.records = records - index
                behind.bytes = waiting.get(sink, {}).get(account, 0)
            found.setdefault(sink, []).append(behind)
    return found
