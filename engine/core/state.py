"""Canonical message states and the rule which of two reports wins.

Names follow SMPP 3.4's message_state, with `read` for the channels that have receipts.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """What has become of a message."""

    UNKNOWN = "unknown"  # nothing is known, or a code that no table lists
    ACCEPTED = "accepted"  # the provider has it
    ENROUTE = "enroute"  # on its way to the handset
    DELIVERED = "delivered"  # on the handset, in the mailbox
    READ = "read"  # opened by its recipient
    UNDELIVERABLE = "undeliverable"  # the network or handset would not have it
    EXPIRED = "expired"  # its validity ran out
    DELETED = "deleted"  # cancelled before delivery
    REJECTED = "rejected"  # refused before it was sent on


RANK = {
    State.UNKNOWN: 0,
    State.ACCEPTED: 1,
    State.ENROUTE: 2,
    State.UNDELIVERABLE: 3,
    State.EXPIRED: 3,
    State.DELETED: 3,
    State.REJECTED: 3,
    State.DELIVERED: 4,
    State.READ: 5,
}

FINAL = frozenset(state for state, rank in RANK.items() if rank >= 3)

# Channels on which `read` may follow `delivered`: their delivered messages stay open to rescans.
RECEIPT_CHANNELS = frozenset({"email", "whatsapp", "rcs"})


class Standing:
    """What the rule compares: one report's state, finality and status time."""

    __slots__ = ("final", "listed", "state", "status_ms")

    def __init__(
        self, state: State, *, final: bool, status_ms: int | None, listed: bool = True
    ) -> None:
        self.state = state
        self.final = final  # a verdict is handed in as not final
        self.status_ms = status_ms
        self.listed = listed  # False: the provider's code stands in no table


def wins(new: Standing, old: Standing, *, older: bool = False) -> bool:
    """Whether `new` replaces `old`. The order of the questions is the rule.

    `older`: it was received before `old` was and is read only now; of equals the newer one stays.
    """
    if old.state is State.READ:
        return False
    if old.final and not new.final:
        return False
    if not new.listed and not old.final and not older:
        return True
    if new.status_ms is not None and old.status_ms is not None and new.status_ms != old.status_ms:
        return new.status_ms > old.status_ms
    if older:
        return RANK[new.state] > RANK[old.state]
    return RANK[new.state] >= RANK[old.state]
