"""What was sent, on its way into the schedule.

Tracked items come from the embedding program, or through the inbox from a process that does not
own the store. Both end in `ledger.track`, with the ladder that their account has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from engine import late
from engine.config.model import AccountConfig
from engine.core.contracts import Flaw
from engine.core.errors import ConfigError
from engine.core.redact import Redactor, spells
from engine.core.schedule import Ladder
from engine.core.work import Work
from engine.redacting import redacted_item
from engine.stores.tracked import Tracked, track
from engine.stores.transaction import InboxItem, Transaction

# Items that one transaction takes out of the inbox.
INBOX_MAX = 200


def tracking_ladder(account: AccountConfig) -> Ladder:
    """The offsets after which a tracked item of this account gets its verdict."""
    schedule = account.schedule
    if account.provider.traits.feed == "windowed":
        return Ladder.of(schedule.rescan_s)
    return Ladder.of(
        schedule.ladder_s,
        gaps=schedule.from_previous,
        jitter=schedule.jitter,
        give_up_s=schedule.give_up_s,
    )


def check_tracked(account: AccountConfig, items: Sequence[Tracked]) -> None:
    """Raises ConfigError where the provider cannot follow such an item."""
    tracks = account.provider.traits.tracks
    faults: list[str] = []
    for item in items:
        kind = "batch" if item.batch_id is not None else "message"
        if not (item.batch_id or item.message_id):
            faults.append(f"{account.name}: an item needs a batch id or a message id")
        elif not _is_unicode(item):
            faults.append(f"{account.name}: a {kind} holds characters that are not Unicode text")
        elif kind not in tracks:
            takes = " and ".join(sorted(f"{name} ids" for name in tracks)) or "nothing"
            faults.append(
                f"{account.name}: {account.provider.name} takes {takes}, not a {kind} id"
                + ("" if tracks else ": its messages are found in the feed")
            )
        elif (
            account.redact
            and kind in account.provider.traits.asks
            and spells(item.batch_id or item.message_id or "", item.recipients)
        ):
            faults.append(
                f"{account.name}: the {kind} id spells out a recipient's number, which `redact`"
                " keeps out of the store: it could not be asked for"
            )
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))


def _is_unicode(item: Tracked) -> bool:
    """Whether its texts can be stored: half of a surrogate pair cannot."""
    words = (item.batch_id, item.message_id, item.reference, *item.recipients, *item.references)
    try:
        "".join(word for word in words if word).encode()
    except UnicodeEncodeError:
        return False
    return True


def take_tracked(
    tx: Transaction,
    account: AccountConfig,
    items: Sequence[Tracked],
    *,
    redactor: Redactor | None,
    now_ms: int,
    chance: float,
) -> list[Work]:
    """Into the books; what is tracked already stays as it is."""
    if redactor is not None:
        items = [redacted_item(redactor, item) for item in items]
    return track(
        tx,
        account.name,
        account.provider.traits,
        items,
        ladder=tracking_ladder(account),
        now_ms=now_ms,
        chance=chance,
    )


def digest_inbox(
    tx: Transaction,
    accounts: Mapping[str, AccountConfig],
    redactors: Mapping[str, Redactor],
    now_ms: int,
    chance: float,
    *,
    apart: bool = False,
) -> list[InboxItem]:
    """Take what other processes handed over. Returns the items, tracked ones in the books, and
    late answers: these `apart` where something in them cannot be recorded."""
    taken = tx.take_inbox(INBOX_MAX)
    for item in taken:
        account = accounts.get(item.account)
        if account is None:
            flaw = Flaw("no such account in this worker's configuration", "inbox", item.payload)
            tx.put_flaws(item.account, f"inbox {item.kind}", [flaw], now_ms)
        elif item.kind == "track":
            items = msgspec.json.decode(item.payload, type=list[Tracked])
            redactor = redactors.get(account.name)
            take_tracked(tx, account, items, redactor=redactor, now_ms=now_ms, chance=chance)
        elif item.kind == late.KIND:
            late.take_late(tx, account, item, apart=apart)
    return [item for item in taken if item.account in accounts]


def inbox_item(
    account: str, items: Sequence[Tracked], now_ms: int, redactor: Redactor | None
) -> InboxItem:
    """What `track` hands to a worker that owns the store."""
    if redactor is not None:
        items = [redacted_item(redactor, item) for item in items]
    return InboxItem(
        account=account, kind="track", payload=msgspec.json.encode(list(items)), at_ms=now_ms
    )
