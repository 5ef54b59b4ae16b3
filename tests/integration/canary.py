"""A provider that gives away what it is told, in every way that a provider may fail.

It answers behind `/<account>/<mode>`, and says the account's secrets back: as they are, in URLs,
escaped, in base64 and in hex.
"""

from __future__ import annotations

import asyncio
import html
import json
import re
import time
from base64 import b64encode, urlsafe_b64encode
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus, unquote_plus

MARK = "c4n4ry"  # stands in every secret

STATUSES = ("400", "401", "403", "404", "429", "500", "503")
MODES = (
    *STATUSES, "text", "json", "records", "cut", "reset", "silent", "stall", "html", "empty",
    "away", "around", "header", "no_http", "chunks", "coding",
)  # fmt: skip


def spellings(secret: str) -> list[str]:
    """How a provider may say a secret back."""
    raw = secret.encode()
    return [
        secret, quote(secret), quote(secret, safe=""), quote_plus(secret),
        re.sub("%..", lambda found: found[0].lower(), quote(secret, safe="")),
        json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1],
        html.escape(secret), secret.replace("/", r"\/"), json.dumps(json.dumps(secret)),
        quote(quote(secret, safe=""), safe=""), raw.hex(), raw.hex().upper(),
        *(b64encode(before + raw + b"!").decode() for before in (b"", b"a", b"ab", b"john:")),
        *(urlsafe_b64encode(before + raw).decode() for before in (b"", b"a", b"ab")),
    ]  # fmt: skip


def traces(secret: str) -> list[bytes]:
    """What is left of a secret in any encoding, boundaries aside."""
    raw = secret.encode()
    found = [raw.hex().encode(), raw.hex().upper().encode()]
    for shift in range(3):
        for encode in (b64encode, urlsafe_b64encode):
            encoded = encode(bytes(shift) + raw)
            found.append(encoded[(0, 2, 3)[shift] : 8 * (shift + len(raw)) // 6][1:-1])
    return found


def secret(name: str, *, ascii_only: bool = False) -> str:
    """One that every encoding changes."""
    return f"{MARK}-{name}/+&=" + ("x %" if ascii_only else "ü %") + "'\"<z9"


def wordy(name: str) -> str:
    """One that fits a header."""
    return secret(name, ascii_only=True)


# By kind of account: its own keys, and which of them are secret.
KINDS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "bulk-get": (
        {"provider": "bulksms", "username": "john", "optional_fields": ["source_id"]},
        {"password": secret("get")},
    ),
    "bulk-post": (
        {"provider": "bulksms", "username": "john", "method": "POST",
         "optional_fields": ["source_id"]},
        {"password": secret("post")},
    ),
    "info-key": ({"provider": "infobip"}, {"api_key": wordy("key")}),
    "info-basic": (
        {"provider": "infobip", "username": "john"}, {"password": secret("basic")},
    ),
    "info-whole": (
        {"provider": "infobip"}, {"authorization": f"Scheme {wordy('whole')}"},
    ),
    "bot": ({"provider": "avaamo", "agent_id": 5157}, {"access_token": wordy("access")}),
    "omni-header": (
        {"provider": "messangi"}, {"headers.Authorization": f"Bearer {wordy('bearer')}"},
    ),
    "omni-login": (
        {"provider": "messangi", "username": "john"},
        {"password": secret("login"), "token": f"Bearer {wordy('token')}"},
    ),
    "info-extra": (
        {"provider": "infobip", "api_key": wordy("key2")}, {"headers.X-Secret": wordy("header")},
    ),
}  # fmt: skip
SECRETS = {
    f"{kind}.{key}": value for kind, (_, own) in KINDS.items() for key, value in own.items()
} | {"info-extra.api_key": wordy("key2")}


def leaks(output: bytes, secrets: dict[str, str]) -> list[str]:
    """The secrets that can be read out of it, each with what stands around it."""
    found = []
    for name, secret in secrets.items():
        for trace in traces(secret):
            at = output.find(trace)
            if at >= 0:
                found.append(f"{name}: {output[max(0, at - 80) : at + 80]!r}")
    at = output.find(MARK.encode())
    if at >= 0:
        found.append(f"in plain: {output[max(0, at - 120) : at + 80]!r}")
    return found


class Parrot:
    """The server. `secrets` are by account, then by what they are."""

    def __init__(self, secrets: dict[str, dict[str, str]]) -> None:
        self.secrets = secrets
        self.asked: set[tuple[str, str]] = set()
        self.heard: set[str] = set()  # the secrets that have really come
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Parrot:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.base = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            await self._answer(writer, head.decode("utf-8", "replace"), body.decode())
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, head: str, body: str) -> None:
        path = head.split(" ", 2)[1]
        account, _, rest = path.lstrip("/").partition("/")
        mode, _, rest = rest.partition("/")
        self.asked.add((account, mode))
        secrets = self.secrets[account]
        said = head + body
        self.heard |= {
            f"{account}.{name}"
            for name, secret in secrets.items()
            if any(way in unquote_plus(said) + said for way in (secret, *_encoded(secret)))
        }
        if rest.startswith("login"):
            token = secrets["token"]
            writer.write(f"HTTP/1.1 200 OK\r\nauthorization: {token}\r\n".encode())
            writer.write(b"Content-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        echo = "\n".join([said, *(s for secret in secrets.values() for s in spellings(secret))])
        await self._misbehave(writer, mode, account, echo, path)

    async def _misbehave(
        self, writer: asyncio.StreamWriter, mode: str, account: str, echo: str, path: str
    ) -> None:
        line = " ".join(echo.split())
        status, body, more = "200 OK", echo, ""
        if mode in STATUSES:
            status = f"{mode} No"
            refusal = {
                "requestError": {"serviceException": {"messageId": line[:90], "text": line}},
                "meta": {"explain": line}, "error": line, "message": line,
            }  # fmt: skip
            body = f"23|{line}" if account.startswith("bulk") else json.dumps(refusal)
        elif mode in ("json", "coding"):
            body = json.dumps({"results": [line, [line]], "items": line, "entries": {line: line}})
            body = f"0|{line}\n\n{line}" if account.startswith("bulk") else body
            more = "Content-Encoding: gzip\r\n" if mode == "coding" else ""
        elif mode == "records":
            body = records(account, line)
        elif mode == "html":
            body = f"<html><a href='{path}'>{html.escape(echo)}</a>"
        elif mode == "empty":
            body = ""
        elif mode in ("away", "around"):
            status = "302 Found"
            host = "http://localhost:9" if mode == "away" else ""
            more = f"Location: {host}{path}\r\n"
        elif mode == "header":
            more = f"X-Echo: {quote(line[:4000])}\r\nRetry-After: {quote(line[:900])}\r\n"
        raw = body.encode()
        if mode == "reset":
            writer.transport.abort()  # type: ignore[attr-defined]
            return
        if mode == "silent":
            await asyncio.sleep(30)
        if mode == "no_http":
            writer.write(f"{line}\r\n\r\n".encode())
            await writer.drain()
            return
        if mode == "chunks":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(f"{line}\r\n{line}\r\n".encode())
            await writer.drain()
            return
        length = len(raw) + (100 if mode in ("cut", "stall") else 0)
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n"
            .encode() + raw
        )  # fmt: skip
        await writer.drain()
        if mode == "stall":
            await asyncio.sleep(30)


def _encoded(secret: str) -> tuple[str, str]:
    """As Basic has it, and as a JSON body has it."""
    basic = b64encode(f"john:{secret}".encode()).decode()
    return basic, json.dumps(secret, ensure_ascii=False)[1:-1]


def records(account: str, line: str) -> str:
    """Good reports that say it in every field that may hold words."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time.time() - 60))
    if account.startswith("bulk"):
        return f"0|Returns to follow\n\n447700900001|50|{line.replace('|', ' ')}\nx|{line}\n"
    entry = {
        "uuid": f"id-{account}", "to_phone": "447700900001", "sms_status": "failed",
        "sms_status_response": line, "created_at": time.time() - 60, "deep": [{line: [line]}],
    }  # fmt: skip
    result = {
        "messageId": f"id-{account}", "to": "447700900001", "callbackData": line,
        "sentAt": now, "doneAt": now, "status": {"groupId": 2, "name": "N", "description": line},
        "error": {"id": 27, "name": "E", "description": line}, "deep": [{line: [line]}],
    }  # fmt: skip
    item = {
        "channel": "S", "sender": "s", "recipient": "447700900001", "date": now, "direction": "O",
        "status": "UNDELIV", "statusdate": now, "statusdescription": line, "content": line,
        "subject": line, "deep": [{line: [line]}],
    }  # fmt: skip
    if account.startswith("info"):
        return json.dumps({"results": [result, line, {"to": line}]})
    if account.startswith("bot"):
        envelope = {"current_page": 1, "total_entries": 3, "total_pages": 1}
        return json.dumps({**envelope, "entries": [entry, line, {"to_phone": line}]})
    return json.dumps(
        {"meta": {"explain": line}, "pagination": {"total": 3}, "items": [item, line, {"c": line}]}
    )
