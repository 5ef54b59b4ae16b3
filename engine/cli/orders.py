"""What commands ask of a running worker: handed over, and its answers waited for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import msgspec

from engine.core.errors import EngineError
from engine.dispatch.sink_orders import SinkAnswer, SinkOrder
from engine.machine.clock import RealClock
from engine.stores.transaction import InboxItem, Question, answer_note

if TYPE_CHECKING:
    from engine.stores.transaction import Store, Transaction

WORKER_MAX_S = 60.0
WORKER_LOOK_S = 0.2


async def ask_all(
    store: Store, kind: str, questions: Sequence[tuple[str, Question]]
) -> list[bytes | None]:
    """Hand over questions, each with its account; their answers, None for one that did not come
    within `WORKER_MAX_S`. They get their ids and times here."""
    now_ms = RealClock().now_ms()
    until_ms = now_ms + round(WORKER_MAX_S * 1000)
    notes: list[tuple[str, str]] = []
    for account, question in questions:
        asked = msgspec.structs.replace(question, id=str(uuid4()), until_ms=until_ms)
        payload = msgspec.json.encode(asked)
        item = InboxItem(account=account, kind=kind, payload=payload, at_ms=now_ms)
        await store.write(lambda tx, item=item: tx.put_inbox(item))  # type: ignore[misc]
        notes.append((account, answer_note(kind, asked.id)))
    found: list[bytes | None] = [None] * len(notes)

    def look(tx: Transaction) -> list[bytes | None]:
        return [tx.notes(name).get(account) for account, name in notes]

    with anyio.move_on_after(WORKER_MAX_S):
        while None in found:
            await anyio.sleep(WORKER_LOOK_S)
            found = await store.read(look)

    def forget(tx: Transaction) -> None:
        for account, name in notes:
            tx.drop_note(account, name)

    await store.write(forget)
    return found


async def order_sinks(
    store: Store,
    kind: str,
    asked: Sequence[tuple[str, str]],
    *,
    to_ms: int | None = None,
    look: str,
) -> list[SinkAnswer]:
    """Ask it of each sink and account; the answers.

    Raises EngineError where the worker is not through in time; `look` says what shows how far.
    """
    orders = [(account, SinkOrder(sink=sink, to_ms=to_ms)) for sink, account in asked]
    found = await ask_all(store, kind, orders)
    answers = [msgspec.json.decode(one, type=SinkAnswer) for one in found if one is not None]
    if len(answers) < len(asked):
        raise EngineError(
            f"the running worker was not through within {WORKER_MAX_S:g} s; what it has begun it"
            f" ends, `{look}` shows how far it is"
        )
    return answers
