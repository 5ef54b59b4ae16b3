"""Answers whose head breaks a rule of HTTP, from a provider that gives each report once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from tests.integration.harness import balanced, configured, hasty, infobip, lines, until
from tests.integration.test_infobip import EMPTY, page, report

LENGTH = "Content-Length: {}"
CHUNKED = "Transfer-Encoding: chunked"


@asynccontextmanager
async def given_once(answers: Sequence[bytes]) -> AsyncIterator[str]:
    """A server that sends each of these once, byte for byte, and then only empty pages."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                empty = said(EMPTY, LENGTH.format(len(EMPTY)))
                writer.write(left.pop(0) if left else empty)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def said(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode() + body


def in_chunks(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


async def test_no_report_is_lost_over_a_head(tmp_path: Path) -> None:
    pages = [page(report(str(n)), report(f"{n}b")) for n in range(7)]
    size = len(pages[0])
    right = LENGTH.format(size)
    answers = [
        said(pages[0], right, right),
        said(pages[1], right, LENGTH.format(7)),
        said(in_chunks(pages[2]), right, CHUNKED),
        said(in_chunks(pages[3]), CHUNKED, LENGTH.format(7)),
        said(pages[4], right, status="204 No Content"),
        said(in_chunks(pages[5]), CHUNKED, status="204 No Content"),
        said(pages[6], right, LENGTH.format(size + 7)),  # then silence
    ]
    request = {"timeout": "500ms"}
    async with given_once(answers) as url:
        account = infobip(url, request=request)
        async with hasty(configured(tmp_path, account)) as poller:
            await until(lambda: len(lines(tmp_path)) >= 14, 10)
            await anyio.sleep(0.1)
            await balanced(poller)
            assert poller.telemetry.of("failures", "info") == 0
    expected = [f"{n}{end}" for n in range(7) for end in ("", "b")]
    assert [record["message_id"] for record in lines(tmp_path)] == expected


async def test_a_head_that_is_too_large_to_be_read_is_kept_with_what_came_behind_it(
    tmp_path: Path,
) -> None:
    read, kept = page(report("1")), page(report("2"))
    large = [said(read, "X: " + "a" * 200_000), said(kept, "X: " + "a" * 300_000)]
    async with given_once(large) as url:
        account = infobip(url, request={"timeout": "300ms"})
        async with hasty(configured(tmp_path, account)) as poller:
            await until(lambda: poller.telemetry.of("set_aside", "info"), 10)
            await until(lambda: lines(tmp_path), 10)
            aside = await poller.store.read(
                lambda tx: tx.pieces("info", 0, 0, 9, bytes_max=1 << 20)
            )
    assert [record["message_id"] for record in lines(tmp_path)] == ["1"]
    assert [piece.raw for piece in aside] == [large[1]]


async def test_what_is_no_http_is_read_or_kept_as_it_came(tmp_path: Path) -> None:
    bare, garbled = page(report("1")), b"HTTP/1.1 OK\r\n\r\n" + page(report("2"))
    async with given_once([bare, garbled]) as url:
        account = infobip(url, request={"timeout": "300ms"})
        async with hasty(configured(tmp_path, account)) as poller:
            await until(lambda: poller.telemetry.of("set_aside", "info"), 10)
            await until(lambda: lines(tmp_path))
            kept = await poller.store.read(lambda tx: tx.troubles("info", 1000))
    assert [record["message_id"] for record in lines(tmp_path)] == ["1"]
    assert [(one.kind, one.raw) for one in kept] == [("set_aside", garbled)]
