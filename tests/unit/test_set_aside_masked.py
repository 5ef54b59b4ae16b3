"""What is set aside of an answer tells no secret, whichever provider gave it."""

from __future__ import annotations

from urllib.parse import quote, quote_plus

import pytest

from engine.parsing.flaw import FLAW_RAW_MAX
from engine.stores.transaction import Trouble
from tests.unit.parts import Parts

SECRET = "p&ss%word that is long"
SPELLINGS = [SECRET, quote(SECRET, safe=""), quote_plus(SECRET)]
BODIES = {
    "bulksms": ["0|x\n4477|{}\n{}\n", "<html>?password={}</html>", "{}"],
    "infobip": ['{"results": [{"echo": "{}"}, 1]}', "{} is wrong"],
}
KEYS = {"bulksms": {"password": SECRET}, "infobip": {"api_key": SECRET}}


async def set_aside(provider: str, body: bytes) -> list[Trouble]:
    async with Parts(provider, (200, body), **KEYS[provider]) as parts:
        reply = await parts.asker.ask(parts.poll(batch_id="4711", message_id=None))
        await parts.asker.commit(reply.page)
        return await parts.store.read(lambda tx: tx.troubles("a", 100))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(("provider", "body"), [(p, b) for p in BODIES for b in BODIES[p]])
async def test_a_secret_is_taken_out(provider: str, body: str, spelling: str) -> None:
    pieces = await set_aside(provider, body.replace("{}", spelling).encode())
    assert any(b"***" in piece.raw for piece in pieces)
    for piece in pieces:
        assert spelling.encode() not in piece.raw
        assert spelling not in piece.cause


async def test_and_the_beginning_of_one_that_was_cut_off() -> None:
    body = b"<html>".ljust(FLAW_RAW_MAX - 8, b" ") + SECRET.encode() + b"tail"
    async with Parts("bulksms", (200, body), **KEYS["bulksms"]) as parts:
        reply = await parts.asker.ask(parts.poll(batch_id="4711"))
        await parts.asker.commit(reply.page)
        pieces = await parts.store.read(
            lambda tx: tx.pieces("a", 0, 0, 9, bytes_max=4 * FLAW_RAW_MAX)
        )
    assert [piece.raw[-4:] for piece in pieces if piece.truncated] == [b" ***"]
