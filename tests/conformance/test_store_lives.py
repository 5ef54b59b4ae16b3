"""One random life on every store: the books balance, and all stores say the same."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from engine.core.contracts import Traits
from engine.core.report import Report
from engine.core.state import State
from engine.core.units import iso
from engine.core.work import Committed, Expire, Page
from engine.stores import ledger, sqlite_lots
from engine.stores.transaction import (
    Store,
    Transaction,
)
from tests.conformance.storing import (
    ASKED,
    DERIVED,
    DRAINED,
    DRIVERS,
    R1,
    R2,
    T0,
    TIMED,
    WINDOWED,
    commit,
    picture,
    report,
    settle,
    track,
    tracked,
    works,
)

IDS = [f"m{n}" for n in range(6)]


IDS += [f"{batch}{rest}" for batch in ("b1", "b2") for rest in ("", f":{R1}", f":{R2}")]


LIVES = {"d": DRAINED, "e": ASKED, "f": DERIVED, "g": WINDOWED, "h": TIMED}


def some_report(dice: random.Random, traits: Traits) -> Report:
    fields: dict[str, Any] = {"error_code": dice.choice([None, None, "9"])}
    state = dice.choice(list(State))
    if traits.dated:
        fields["done_at"] = dice.choice([None, iso(T0 + dice.randrange(50) * 1000)])
    if dice.random() < 0.5:
        fields["sent_at"] = iso(T0 + dice.randrange(100))
    if traits.derives_ids or dice.random() < 0.3:
        batch, recipient = dice.choice(["b1", "b2"]), dice.choice([R1, R2])
        fields |= {"batch_id": batch, "recipient": recipient}
        message_id = f"{batch}:{recipient}" if traits.derives_ids else f"m{dice.randrange(3)}"
    else:
        fields["channel"] = dice.choice(["sms", "rcs"])
        message_id = f"m{dice.randrange(6)}"
    if traits.sent_at_stays and "sent_at" in fields:
        fields["sent_at"] = iso(T0 + int(message_id[1:]) * 1000)
    return report(message_id, state, **fields)


async def live(store: Store, dice: random.Random, now: int) -> Any:
    """One step; the same dice take the same step on every driver."""
    account = dice.choice(list(LIVES))
    traits = LIVES[account]
    step = dice.random()
    told = [some_report(dice, traits) for _ in range(dice.randrange(1, 5))]
    chosen, batch, number = dice.random(), dice.choice(["b1", "b2"]), dice.randrange(6)
    recipients = dice.choice([[], [R1], [R2, R1]])
    if step < 0.5:
        unlisted = frozenset({0} if chosen < 0.1 else ())
        return await commit(store, *told, traits=traits, at=now, account=account, unlisted=unlisted)
    if step < 0.65:
        by_batch = ("batch" in traits.tracks and chosen < 0.5) or traits.derives_ids
        item = tracked(
            batch if by_batch else None, *recipients[: None if by_batch else 1], sent_ms=now,
            message_id=None if by_batch else f"m{number}", reference="r" if chosen < 0.3 else None,
        )  # fmt: skip
        new = await track(store, item, traits=traits, account=account, now=now)
        return [(one.key, one.due_ms) for one in new]
    if step < 0.85:
        due = sorted(await works(store, account), key=lambda one: (one.kind, one.key))
        if due:
            asked = due[int(chosen * len(due))]
            after_s = max(0, now - asked.start_ms) // 1000
            await settle(store, asked, *told, traits=traits, after_s=after_s, over=chosen > 0.95)
        return len(due)
    if step < 0.9:
        span = Expire(from_ms=T0, to_ms=T0 + int(chosen * 100), limit=number + 1)
        return (await commit(store, traits=traits, at=now, account=account, expire=span)).verdicts
    if step < 0.95:
        ages = {"retention_ms": 600_000, "log_retention_ms": 300_000}
        return await store.write(lambda tx: ledger.prune(tx, now_ms=now, sinks=[], **ages))

    def fails(tx: Transaction) -> None:
        page = Page(account=account, provider="p", traits=traits, observed_ms=now, reports=told)
        ledger.commit(tx, page)
        raise LookupError(account)

    with pytest.raises(LookupError):
        await store.write(fails)
    return None


def balance(shot: dict[str, Any]) -> None:
    recount: Counter[str] = Counter()
    for known in shot["messages"].values():
        recount.update(["known", "final" if known.final else "pending", f"state:{known.state}"])
        recount.update([f"verdict:{known.verdict}"] if known.verdict else [])
    sides = {k: n for k, n in shot["tallies"].items() if k.split(":")[0] in
             {"known", "final", "pending", "state", "verdict"}}  # fmt: skip
    assert sides == dict(recount)
    assert recount["known"] == recount["final"] + recount["pending"]
    first, end = shot["bounds"]
    assert [row[0] for row in shot["log"]] == list(range(first, end))


@pytest.mark.parametrize("seed", range(8))
async def test_a_random_life_balances_and_is_the_same_everywhere(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed % 2:  # lots of a few, or none
        monkeypatch.setattr(sqlite_lots, "LOT_MIN", 1)
        monkeypatch.setattr(sqlite_lots, "LOT_MAX", 3)
    dice = {name: random.Random(seed) for name in DRIVERS}
    async with AsyncExitStack() as stack:
        stores: dict[str, Store] = {}
        for name, make in DRIVERS.items():
            stores[name] = one = await stack.enter_async_context(make(tmp_path))
            await one.open(own=True)
            stack.push_async_callback(one.close)
        for step in range(150):
            now = T0 + step * 30_000
            results = [await live(one, dice[name], now) for name, one in stores.items()]
            if not isinstance(results[0], Committed):
                assert results[1:] == results[:1] * 2, step
            if step % 10 == 9:
                shots = [
                    await one.read(lambda tx: picture(tx, IDS, "".join(LIVES)))
                    for one in stores.values()
                ]
                for account in LIVES:
                    balance(shots[0][account])
                assert shots[1:] == shots[:1] * 2, step
