"""`redact = ["recipient"]`: no spelling of a number is kept or handed on, and joins still work."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

import engine
from engine.books.tracking import check_tracked
from engine.cli import main
from engine.stores.sqlite import SqliteStore
from engine.stores.tracked import Tracked
from engine.worker import Engine
from tests.integration.harness import (
    STORES,
    avaamo,
    balanced,
    bulksms,
    configured,
    hasty,
    infobip,
    lines,
    messangi,
    table,
    until,
)
from tests.integration.standin import Asked, Raw, Standin, json_of

NUMBER = "447700900001"
OTHER = "447700900002"
MAIL = "John.Doe@example.com"
SPELLINGS = [
    NUMBER, "4477 0090 0001", "44-7700-900-001", "44.7700.900001", "7700900001", "7700 900001",
    "(0)7700", "(44) 7700", OTHER, "7700900002",
]  # fmt: skip
REDACT = {"redact": ["recipient"]}
KEY = "a key that nobody guesses"


def found_in(raw: bytes) -> list[str]:
    """The spellings that stand in there, also URL-encoded and in any case of letters."""
    text = raw.decode("latin-1").lower()
    words = [*SPELLINGS, MAIL, MAIL.replace("@", "%40"), "0044 7700", "%2b44", "+44"]
    return [word for word in words if word.lower() in text]


def kept(folder: Path) -> dict[str, bytes]:
    """All files that the engine has written."""
    names = (path for path in folder.rglob("*") if path.is_file())
    return {path.name: path.read_bytes() for path in names if path.suffix != ".toml"}


def batch_answer(asked: Asked) -> Raw:
    rows = [
        f"{NUMBER}|11|07700 900001 has it|{NUMBER}-7",
        f"+{NUMBER}|11|with a plus|x",
        f"{OTHER}|50|nobody|-",
        f"00{OTHER}|51|again|-",
        f"{NUMBER}",
        f"no row: +44 7700 900001 / {OTHER}",
    ]
    return Raw("0|Returns to follow\n\n" + "\n".join(rows) + "\n")


def feed_answer(asked: Asked) -> Raw:
    if asked.number > 1:
        return Raw(json_of({"results": []}))
    good = {
        "bulkId": "b-1", "messageId": f"m-{NUMBER}", "to": NUMBER, "from": "shop",
        "sentAt": "2026-11-20T10:00:00.000+0000", "doneAt": "2026-11-20T10:00:01.000+0000",
        "status": {"groupId": 2, "name": "UNDELIVERABLE_NOT_DELIVERED",
                   "description": "Message to +44 7700 900001 sent not delivered"},
        "error": {"groupId": 1, "id": 27, "name": "EC_ABSENT_SUBSCRIBER",
                  "description": f"07700-900001 absent, and so is {OTHER}", "permanent": False},
        "callbackData": f'{{"to":"%2B{NUMBER}"}}',
        "new": {f"k{NUMBER}": ["tel:+447700900001", 447700900001, {"deep": "(0)7700 900001"}]},
    }  # fmt: skip
    bad = {"to": f"+{NUMBER}", "status": {"groupId": 3}, "note": "07700 900001"}
    return Raw(json_of({"results": [good, bad, [NUMBER], f"{NUMBER} failed"]}))


def page_answer(asked: Asked) -> Raw:
    entry = {
        "uuid": "5d0cb4b5-0d4e-4b9f-9d2e-1f0c3a4f0001", "to_phone": "+447700900001",
        "from_phone": "12345", "sms_status": "failed", "created_at": time.time() - 60,
        "message": f"call {NUMBER}", "sms_status_response": f"The number +{NUMBER} is unsubscribed",
        "mobile": "0044 7700 900001",
    }  # fmt: skip
    return Raw(json_of({"current_page": 1, "total_entries": 1, "total_pages": 1,
                        "time_token": time.time(), "entries": [entry]}))  # fmt: skip


def log_answer(asked: Asked) -> Raw:
    now = time.strftime("%Y-%m-%dT%H:%M:00.000Z", time.gmtime(time.time() - 120))
    items = [
        {"channel": "S", "sender": "shop", "recipient": f"+{NUMBER}", "date": now,
         "direction": "O", "status": "DELIVRD", "statusdate": now, "content": f"hi {NUMBER}"},
        {"channel": "S", "sender": NUMBER, "recipient": "12345", "date": now, "direction": "I",
         "status": "DELIVRD", "statusdate": now, "content": "STOP"},
        {"channel": "E", "sender": "shop@shop.example", "recipient": MAIL, "date": now,
         "direction": "O", "status": "SENT", "statusdate": now,
         "recipient_phone": f"+{NUMBER}", "subject": f"for {MAIL.lower()}"},
        {"channel": "?", "recipient": f"+{NUMBER}", "date": now},
    ]  # fmt: skip
    return Raw(json_of({"meta": {"timestamp": round(time.time() * 1000)},
                        "pagination": {"total": len(items)}, "items": items}))  # fmt: skip


def accounts(standin: Standin, **keys: Any) -> list[dict[str, Any]]:
    more = {**REDACT, "content": True, **keys}
    return [
        bulksms(
            standin.answer("bulk", batch_answer), optional_fields=["body", "source_id"], **more
        ),
        infobip(standin.answer("info", feed_answer), **more),
        avaamo(standin.answer("bot", page_answer), **more),
        messangi(standin.answer("omni", log_answer), **more),
    ]


async def played(poller: Engine, folder: Path) -> None:
    await poller.track(
        "bulk", batch_id="4711", recipients=["+44 7700 900001", OTHER, OTHER, "447700900003"],
        reference=f"for 07700 900001 and {OTHER}",
    )  # fmt: skip
    await poller.track("info", message_id=f"m-{NUMBER}", recipient="00447700900001")
    until_all = {"bulk", "info", "bot", "omni"}
    await until(lambda: {line["account"] for line in lines(folder)} == until_all, 20)
    await until(lambda: len(lines(folder)) >= 8, 20, str(lines(folder)))


@pytest.mark.parametrize("store", STORES)
async def test_no_spelling_is_kept_or_handed_on(
    standin: Standin, tmp_path: Path, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    config = configured(tmp_path, *accounts(standin), store=store, redact_key=KEY)
    async with hasty(config) as poller:
        await played(poller, tmp_path)
        await balanced(poller)
        troubles = await poller.store.read(lambda tx: tx.troubles(None, 100))
        health = json.dumps([poller.status(account.name) for account in config.accounts])
    for name, raw in kept(tmp_path).items():
        assert not found_in(raw), name
    assert len(troubles) >= 4
    for trouble in troubles:
        assert not found_in(trouble.raw + trouble.cause.encode() + trouble.position.encode())
    assert not found_in(health.encode())
    assert not found_in(caplog.text.encode())
    for asked in (*standin.asked["bulk"], *standin.asked["info"]):
        assert not found_in(asked.query_string.encode())


async def test_one_hash_joins_accounts_and_providers(standin: Standin, tmp_path: Path) -> None:
    config = configured(tmp_path, *accounts(standin), redact_key=KEY)
    async with hasty(config) as poller:
        await played(poller, tmp_path)
    records = lines(tmp_path)
    token = next(record["recipient"] for record in records if record["account"] == "info")
    assert re.fullmatch(r"tel_[0-9a-f]{24}", token)
    of_number = [record for record in records if record["recipient"] == token]
    assert {record["account"] for record in of_number} == {"bulk", "info", "bot", "omni"}
    assert {record["msisdn"] for record in of_number} == {token}
    bulk = {record["message_id"] for record in records if record["account"] == "bulk"}
    assert f"4711:{token}" in bulk
    assert len([i for i in bulk if i.endswith("#2")]) == 1  # the other number, twice
    inbound = next(record for record in records if record["direction"] == "mo")
    assert inbound["sender"] == token
    mail = next(record for record in records if record["channel"] == "email")
    assert mail["recipient"].startswith("adr_")
    assert mail["msisdn"] is None
    assert mail["subject"] == f"for {mail['recipient']}"
    info = next(record for record in records if record["account"] == "info")
    assert info["message_id"] == f"m-{token}"
    assert info["extra"]["new"] == {f"k{token}": [f"tel:{token}", token, {"deep": token}]}
    assert {row["recipient"] for row in table(tmp_path)} == {r["recipient"] for r in records}


async def test_what_was_tracked_is_matched_and_ends(standin: Standin, tmp_path: Path) -> None:
    """The batch's rows find the messages that were tracked under another spelling."""
    url = standin.answer("bulk", lambda asked: Raw(f"0|Returns to follow\n\n{NUMBER}|11\n"))
    config = configured(tmp_path, bulksms(url, **REDACT))
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="1", recipients=["+44 (0)7700 900001"], reference="r")
        await until(lambda: lines(tmp_path), 10)
        works = await poller.store.read(lambda tx: tx.works_after("bulk", 0, 10))
    assert works == []
    (record,) = lines(tmp_path)
    assert (record["state"], record["reference"], record["verdict"]) == ("delivered", "r", None)


async def test_a_message_of_the_log_has_one_id_and_that_tells_nothing(
    standin: Standin, tmp_path: Path
) -> None:
    """Polled again, and under another key: the id goes with the hash, not with the number."""
    ids = []
    for n, key in enumerate((KEY, KEY, "another key, also secret")):
        folder = tmp_path / str(n)
        folder.mkdir()
        url = standin.answer("omni", one_item)
        async with hasty(configured(folder, messangi(url, **REDACT), redact_key=key)):
            await until(lambda: len(standin.asked["omni"]) >= 4, 10)
            await until(lambda folder=folder: lines(folder), 10)
        (record,) = lines(folder)
        ids.append(record["message_id"])
        standin.asked["omni"].clear()
    assert ids[0] == ids[1] != ids[2]


def one_item(asked: Asked) -> Raw:
    spelled = NUMBER if asked.number % 2 else f"+{NUMBER}"
    item = {"channel": "S", "sender": "s", "recipient": spelled, "direction": "O",
            "date": "2026-11-22T00:00:00.000Z", "status": "DELIVRD",
            "statusdate": "2026-11-22T00:00:00.000Z"}  # fmt: skip
    return Raw(json_of({"meta": {}, "pagination": {"total": 1}, "items": [item]}))


def test_an_id_that_spells_the_number_cannot_be_asked_for(tmp_path: Path) -> None:
    account = infobip("http://127.0.0.1:9", drain=False, **REDACT)
    config = configured(tmp_path, account)
    item = Tracked(message_id=f"m-{NUMBER}", recipients=[f"+{NUMBER}"], sent_ms=0)
    with pytest.raises(engine.ConfigError, match="spells out a recipient's number"):
        check_tracked(config.accounts[0], [item])


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"redact": ["sender"]}, 'redact[0]: expected "recipient", got "sender"'),
        ({"redact": "recipient"}, "redact: expected an array of names"),
    ],
)
def test_other_entries_are_a_fault(tmp_path: Path, keys: dict[str, Any], fault: str) -> None:
    with pytest.raises(engine.ConfigError) as caught:
        configured(tmp_path, bulksms("http://127.0.0.1:9", **keys))
    assert fault in str(caught.value)


def test_a_key_that_can_be_guessed_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(engine.ConfigError) as caught:
        configured(tmp_path, bulksms("http://127.0.0.1:9"), redact_key="k3y-short")
    assert "redact_key: expected at least 16 characters" in str(caught.value)
    assert "k3y-short" not in str(caught.value)


CONFIG = """
[[accounts]]
name = "bulk"
provider = "bulksms"
base_url = "http://127.0.0.1:9/eapi"
username = "john"
password = "pass-word"
redact = ["recipient"]

[[sinks]]
name = "lines"
type = "jsonl"
path = "r.jsonl"
"""


def test_the_commands_use_the_stores_own_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, rows = tmp_path / "engine.toml", tmp_path / "sent.csv"
    file.write_text(CONFIG)
    rows.write_text(f"batch_id,recipient,reference\n7,{OTHER},order {OTHER}\n7,{NUMBER},order 2\n")
    track = ["track", "--config", str(file), "--account", "bulk"]
    assert main([*track, "--batch-id", "4711", "--recipients", "+44 7700 900001"]) == 0
    assert main([*track, "--file", str(rows)]) == 0
    capsys.readouterr()
    shown = []
    for question in (
        ["--recipient", "07700 900001".replace("0", "44", 1)], ["--recipient", "+44 7700-900001"],
        [f"4711:{NUMBER}"], [f"4711:+{NUMBER}"], ["--batch-id", "4711"], [f"7:{OTHER}"],
    ):  # fmt: skip
        assert main(["show", "--config", str(file), *question, "--json"]) == 0, question
        out = capsys.readouterr().out
        assert not found_in(out.encode()), question
        shown.append({message["message_id"] for message in json.loads(out)})
    (message_id,) = shown[2]
    token = message_id.partition(":")[2]
    assert shown[0] == shown[1] == {f"4711:{token}", f"7:{token}"}
    assert shown[4] == {f"4711:{token}"}
    assert main(["stats", "--config", str(file), "--json"]) == 0
    assert not found_in(capsys.readouterr().out.encode())
    for name, raw in kept(tmp_path).items():
        assert name == "sent.csv" or not found_in(raw), name


async def test_what_another_process_hands_over_is_redacted_before(tmp_path: Path) -> None:
    """A worker owns the store; `track` leaves nothing but hashes in its inbox."""
    file = tmp_path / "engine.toml"
    file.write_text(CONFIG)
    owner = SqliteStore(tmp_path / "state.db")
    await owner.open(own=True)
    try:
        track = ["track", "--config", str(file), "--account", "bulk", "--batch-id", "1"]
        command = [*track, "--recipients", NUMBER, "--reference", f"r {NUMBER}"]
        assert await anyio.to_thread.run_sync(main, command) == 0
        (item,) = await owner.read(lambda tx: tx.inbox(10))
    finally:
        await owner.close()
    assert not found_in(item.payload)
    assert b"tel_" in item.payload


async def test_a_changed_key_is_told(
    standin: Standin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = standin.answer("bulk", Raw(status=503))
    for key, told in ((KEY, False), (KEY, False), ("another key, also secret", True)):
        caplog.clear()
        async with hasty(configured(tmp_path, bulksms(url, **REDACT), redact_key=key)):
            pass
        assert ("redacted with another key" in caplog.text) is told
        assert key not in caplog.text
