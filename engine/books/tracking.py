"""What was sent, on its way into the schedule.

Tracked items come from the embedding program, or through the inbox from a process that does not
own the store. Both end in `ledger.track`, with the ladder that their account has.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from contextlib import suppress

import msgspec

from engine.books import late, periods, portions
from engine.books.redacting import redacted_item
from engine.config.model import AccountConfig, Config, tracking_ladder
from engine.core.contracts import Flaw
from engine.core.errors import ConfigError, LeaseLost
from engine.core.redact import Redactor, spells
from engine.core.schedule import Ladder
from engine.core.units import MS_MAX, MS_MIN
from engine.core.work import Committed, Work
from engine.stores.tracked import Tracked, refit, track
from engine.stores.transaction import SINK_KINDS, InboxItem, Question, Store, Transaction

# Items that one transaction takes out of the inbox.
INBOX_MAX = 200

CAUSE_MAX = 300  # characters of why one was set aside

# By account the works that are new or have grown; None where it is not ours: whoever has it takes
# from the inbox what was handed over.
Handed = dict[str, list[Work] | None]


async def fit_schedule(
    store: Store, account: AccountConfig, rescans: Ladder, rand: random.Random
) -> None:
    """Where the ladder or the rescans were edited, put what is under way on its next rung."""
    name, traits = account.name, account.provider.traits
    tracking = tracking_ladder(account)
    fits = msgspec.json.encode([tracking, rescans])
    notes = await store.read(lambda tx: tx.notes("schedule"))
    if notes.get(name) == fits:
        return
    after_id: int | None = 0 if name in notes else None
    chance = rand.random()
    while after_id is not None:
        start_id = after_id
        after_id = await store.write(
            lambda tx, start=start_id: refit(  # type: ignore[misc]
                tx, name, traits, tracking, rescans, after_id=start, chance=chance
            )
        )
    await store.write(lambda tx: tx.put_note(name, "schedule", fits))


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


def accounts_of(config: Config, names: Iterable[str]) -> dict[str, AccountConfig]:
    """Those of these names. Raises ConfigError where there is none of a name."""
    found = {name: config.account(name) for name in names}
    known = {name: account for name, account in found.items() if account is not None}
    if faults := [f"there is no account {name!r}" for name in found if name not in known]:
        raise ConfigError(faults)
    return known


async def hand_over(
    store: Store,
    config: Config,
    items: Mapping[str, Sequence[Tracked]],
    *,
    owned: Container[str],
    redactors: Mapping[str, Redactor],
    now_ms: int,
    chance: float,
) -> Handed:
    """Make durable what was sent, by account: all of it, or nothing.

    Raises ConfigError where there is no such account, or it cannot follow such an item.
    """
    known = accounts_of(config, items)
    for name, account in known.items():
        check_tracked(account, items[name])

    def take(tx: Transaction, owned: Container[str]) -> Handed:
        done: Handed = {}
        for name, account in known.items():
            redactor = redactors.get(name)
            if name in owned:
                done[name] = take_tracked(
                    tx, account, items[name], redactor=redactor, now_ms=now_ms, chance=chance
                )
            else:
                tx.put_inbox(inbox_item(name, items[name], now_ms, redactor))
                done[name] = None
        return done

    with suppress(LeaseLost):
        return await store.write(lambda tx: take(tx, owned))
    return await store.write(lambda tx: take(tx, frozenset()))


def digest_inbox(
    tx: Transaction,
    accounts: Mapping[str, AccountConfig],
    redactors: Mapping[str, Redactor],
    now_ms: int,
    chance: float,
    questions: Mapping[str, type[Question]],
    begun: Collection[int] = (),
    done: dict[int, Committed] | None = None,
    *,
    apart: bool = False,
    only: int | None = None,
) -> list[InboxItem]:
    """Take what other processes handed over, but for what was `begun` before, or `only` the item of
    this id. Returns the items, tracked ones in the books, and late answers and portions of files:
    these `apart` where something in them cannot be recorded.

    `questions` are the shapes of what is no tracked work, by kind; they stay in the inbox until
    they are answered. `done` is told what has become of late answers, by the items' ids. What
    cannot be taken is set aside with its cause, and counted: a worker that ended over it would find
    it again at its start.
    """
    items, taken, open_ids = waiting(tx, begun, only), [], set()
    for item in items:
        account = accounts.get(item.account)
        try:
            if item.kind in questions and (account is not None or item.kind in SINK_KINDS):
                msgspec.json.decode(item.payload, type=questions[item.kind])
                open_ids.add(item.id)
                taken.append(item)
                continue
            if account is None:
                raise ValueError("no such account in this worker's configuration")
            tracked = _tracked(account, item)
        except ValueError as error:
            _set_aside(tx, account, item, str(error), now_ms)
            continue
        taken.append(item)
        committed: Committed | None = None
        if tracked:
            redactor = redactors.get(account.name)
            take_tracked(tx, account, tracked, redactor=redactor, now_ms=now_ms, chance=chance)
        elif item.kind == late.KIND:
            committed = late.take_late(tx, account, item, apart=apart)
        elif item.kind == portions.KIND:
            committed = portions.take_portion(tx, account, item, apart=apart)
        elif item.kind == periods.KIND:
            period = msgspec.json.decode(item.payload, type=periods.Period)
            committed = periods.take_period(tx, account, period, now_ms)
        if committed is not None and done is not None:
            done[item.id] = committed
    tx.drop_inbox([item.id for item in items if item.id not in open_ids])
    return taken


def waiting(tx: Transaction, begun: Collection[int], only: int | None = None) -> list[InboxItem]:
    """What waits in the inbox and was not `begun` before, some of it; or `only` one item."""
    return [item for item in tx.inbox(INBOX_MAX, begun) if only in (None, item.id)]


def leave_out(
    tx: Transaction,
    accounts: Mapping[str, AccountConfig],
    begun: Collection[int],
    item_id: int,
    cause: str,
    now_ms: int,
) -> None:
    """Set aside an item that the store refuses, by whichever of its values."""
    for item in waiting(tx, begun, item_id):
        _set_aside(tx, accounts.get(item.account), item, cause, now_ms)
        tx.drop_inbox([item.id])


def _set_aside(
    tx: Transaction, account: AccountConfig | None, item: InboxItem, cause: str, now_ms: int
) -> None:
    flaw = Flaw(cause[:CAUSE_MAX], "inbox", item.payload)
    new = tx.put_flaws(item.account, f"inbox {item.kind}", [flaw], now_ms)
    if account is not None:
        tx.add_tallies(item.account, {"set_aside": new})


def _tracked(account: AccountConfig, item: InboxItem) -> list[Tracked]:
    """What an item tracks; of what was read, nothing. ValueError: it cannot be taken."""
    if item.kind == late.KIND:
        late.check(item)
        return []
    if item.kind == portions.KIND:
        portions.check(item)
        return []
    if item.kind == periods.KIND:
        periods.check(item)
        if account.provider.traits.feed != "windowed":
            raise ValueError("its provider has no periods to read")
        return []
    if item.kind != "track":
        raise ValueError("of a kind that is not known")
    items = msgspec.json.decode(item.payload, type=list[Tracked])
    try:
        check_tracked(account, items)
    except ConfigError as error:
        raise ValueError("; ".join(error.faults)) from None
    if not all(_fits(one) for one in items):
        raise ValueError("a time out of range, or other counts of references than of recipients")
    return items


def _fits(item: Tracked) -> bool:
    """Whether its columns belong together, and its times are ones that can be stored."""
    count = len(item.recipients)
    times = [item.sent_ms, *(time for time in item.times_ms if time is not None)]
    return (
        len(item.references) in (0, count)
        and len(item.times_ms) in (0, count)
        and all(MS_MIN <= time <= MS_MAX for time in times)
    )


def inbox_item(
    account: str, items: Sequence[Tracked], now_ms: int, redactor: Redactor | None
) -> InboxItem:
    """What `track` hands to a worker that owns the store."""
    if redactor is not None:
        items = [redacted_item(redactor, item) for item in items]
    return InboxItem(
        account=account, kind="track", payload=msgspec.json.encode(list(items)), at_ms=now_ms
    )
