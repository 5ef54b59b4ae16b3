"""Orders to a running worker's sinks: how commands hand them over and wait for the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import msgspec

from engine.clock import RealClock
from engine.core.errors import EngineError
from engine.sink_orders import SinkAnswer, SinkOrder, answer_note
from engine.stores.transaction import InboxItem

if TYPE_CHECKING:
    from engine.stores.transaction import Store, Transaction

WORKER_MAX_S = 60.0
WORKER_LOOK_S = 0.2


async def ask_worker(
    store: Store,
    kind: str,
    sinks: Sequence[str],
    *,
    accounts: Sequence[str] = ("",),
    to_ms: int | None = None,
    look: str,
) -> dict[str, SinkAnswer]:
    """Hand an order over for each sink and account; its answers, by account, else by sink.

    Raises EngineError where the worker is not through in time; `look` says what shows how far.
    """
    order_id, now_ms = str(uuid4()), RealClock().now_ms()
    until_ms = now_ms + round(WORKER_MAX_S * 1000)
    for sink in sinks:
        order = SinkOrder(id=order_id, sink=sink, to_ms=to_ms, until_ms=until_ms)
        payload = msgspec.json.encode(order)
        for account in accounts:
            item = InboxItem(account=account, kind=kind, payload=payload, at_ms=now_ms)
            await store.write(lambda tx, item=item: tx.put_inbox(item))  # type: ignore[misc]
    notes = {
        account or sink: (account, answer_note(kind, order_id, sink))
        for sink in sinks
        for account in accounts
    }
    found: dict[str, SinkAnswer] = {}

    def look_up(tx: Transaction) -> dict[str, bytes]:
        said = {whose: tx.notes(name).get(account) for whose, (account, name) in notes.items()}
        return {whose: one for whose, one in said.items() if one is not None}

    with anyio.move_on_after(WORKER_MAX_S):
        while len(found) < len(notes):
            said = await store.read(look_up)
            found = {
                whose: msgspec.json.decode(one, type=SinkAnswer) for whose, one in said.items()
            }
            await anyio.sleep(WORKER_LOOK_S)

    def forget(tx: Transaction) -> None:
        for whose in found:
            tx.drop_note(*notes[whose])

    await store.write(forget)
    if len(found) < len(notes):
        raise EngineError(
            f"the running worker was not through within {WORKER_MAX_S:g} s; what it has begun it"
            f" ends, `{look}` shows how far it is"
        )
    return found
