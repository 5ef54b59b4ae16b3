"""Orders to a running worker's sinks: how commands hand them over and wait for the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import msgspec

from engine.clock import RealClock
from engine.core.errors import EngineError, StoreBusy
from engine.sink_orders import SinkAnswer, SinkOrder
from engine.stores.opening import make_store
from engine.stores.transaction import InboxItem

if TYPE_CHECKING:
    from engine.config.model import Config
    from engine.stores.transaction import Store, Transaction

WORKER_MAX_S = 60.0
WORKER_LOOK_S = 0.2


async def open_store(config: Config) -> tuple[Store, bool]:
    """The store, and whether it is ours: no worker owns it."""
    store = make_store(
        config.store.scheme, config.store.path, config.store.shown, url=config.store.url
    )
    try:
        await store.open(own=True)
    except StoreBusy:
        await store.open(own=False)
        return store, False
    return store, True


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
    note, wanted = f"{kind}:{order_id}", len(sinks) * len(accounts)
    found: dict[str, SinkAnswer] = {}
    with anyio.move_on_after(WORKER_MAX_S):
        while len(found) < wanted:
            said = await store.read(lambda tx: tx.notes(note))
            found = {
                whose: msgspec.json.decode(one, type=SinkAnswer) for whose, one in said.items()
            }
            await anyio.sleep(WORKER_LOOK_S)

    def forget(tx: Transaction) -> None:
        for whose in found:
            tx.drop_note(whose, note)

    await store.write(forget)
    if len(found) < wanted:
        raise EngineError(
            f"the running worker was not through within {WORKER_MAX_S:g} s; what it has begun it"
            f" ends, `{look}` shows how far it is"
        )
    return found
