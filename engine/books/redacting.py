"""What redacts an account's recipients, and the key it does that with.

The key is the configuration's `redact_key`, else a random one that is made once and kept in the
store, so that the worker and the commands beside it come to the same hashes. It is there before the
first record.
"""

from __future__ import annotations

import logging
import secrets

import msgspec

from engine.config.model import AccountConfig, Config
from engine.core.redact import KEY_BYTES, Redactor, fingerprint, key_of
from engine.core.spelling import Own
from engine.stores.tracked import Tracked
from engine.stores.transaction import Store, Transaction

log = logging.getLogger("dlr_engine")

KEY_NOTE = "redact_key"
USED_NOTE = "redact_key_used"  # the fingerprint of the key that was last in use


async def redactors(config: Config, store: Store) -> dict[str, Redactor]:
    """The redactors of the accounts that want one, by name."""
    wanting = [account for account in config.accounts if account.redact]
    if not wanting:
        return {}
    if config.redact_key is not None:
        key = key_of(config.redact_key.reveal())
    else:
        key = await store.write(_kept_key)
    if await store.write(lambda tx: _changed(tx, key)):
        log.warning(
            "store: its recipients were redacted with another key than this one; what was kept"
            " before is not found or joined under it, and what is under way ends without a state"
        )
    return {account.name: _redactor(account, key) for account in wanting}


def known_redactors(tx: Transaction, config: Config) -> list[Redactor]:
    """For looking recipients up, in a store that is not changed by that."""
    if not any(account.redact for account in config.accounts):
        return []
    if config.redact_key is not None:
        return [Redactor(key_of(config.redact_key.reveal()))]
    key = tx.notes(KEY_NOTE).get("")
    return [] if key is None else [Redactor(key)]


def _redactor(account: AccountConfig, key: bytes) -> Redactor:
    traits = account.provider.traits
    return Redactor(
        key, recipient_fields=traits.recipient_fields, sender_fields=traits.sender_fields
    )


def _kept_key(tx: Transaction) -> bytes:
    """The store's own key, made where there is none."""
    key = tx.notes(KEY_NOTE).get("")
    if key is None:
        key = secrets.token_bytes(KEY_BYTES)
        tx.put_note("", KEY_NOTE, key)
    return key


def _changed(tx: Transaction, key: bytes) -> bool:
    """Note which key is in use; whether it was another one before."""
    before, now = tx.notes(USED_NOTE).get(""), fingerprint(key).encode()
    if before != now:
        tx.put_note("", USED_NOTE, now)
    return before not in (None, now)


def redacted_item(redactor: Redactor, item: Tracked) -> Tracked:
    """What was sent, without its numbers."""
    everyone = Own(item.recipients)

    def clean(text: str | None, own: Own = everyone) -> str | None:
        return None if text is None else redactor.text(text, own)

    references: list[str | None] = item.references
    if references:
        pairs = zip(item.recipients, references, strict=True)
        references = [clean(reference, Own([recipient])) for recipient, reference in pairs]
    return msgspec.structs.replace(
        item,
        batch_id=clean(item.batch_id),
        message_id=clean(item.message_id),
        recipients=[redactor.token(recipient) for recipient in item.recipients],
        references=references,
        reference=clean(item.reference),
    )
