"""How an answer meets the wire, whole or with a fault.

Each way out ends in a Delivery that says how much of the body was really written, because an
oracle for a one-time feed has to know what a client can have seen. It must never raise because
the client went away: that is one of the things simulated.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from aiohttp import web

from engine.sim.answer import Answer
from engine.sim.profile import Fault

DRIP_PIECES = 20
ENDLESS_PIECE = b" " * 65536
ENDLESS_PIECES = 1 << 20
"""64 GiB: more than any client takes, and yet an end."""
CHUNK = 16384
GZIP = 31
SOFT_SPOTS = (b'"description":"', b'"message":"', b'"content":"', b'"l":"', b"0|Re")
"""Where a wrong byte spoils a text and nothing else."""
HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Welcome</body></html>"


@dataclass(slots=True, frozen=True)
class Delivery:
    """What became of an answer: its response, and the bytes of the plain body that went out."""

    response: web.StreamResponse
    written: int
    sent: int
    """Bytes as they went out, compressed or not."""
    broken: str | None = None
    """Why there is no whole response, where there is none."""


async def deliver(
    request: web.Request, answer: Answer, fault: Fault | None, gzip: bool
) -> Delivery:
    """Write this answer, spoiled as the fault says."""
    gzip = gzip and "gzip" in request.headers.get("Accept-Encoding", "")
    kind = fault.kind if fault is not None else "ok"
    try:
        if fault is not None and kind in ("cut", "cut_chunked"):
            return await _cut(request, answer, fault, gzip)
        if fault is not None and kind == "drip":
            return await _drip(request, answer, fault)
        if kind == "endless":
            return await _endless(request, answer)
        if kind in ("reset", "lost"):
            return _reset(request, kind)
        if answer.chunks is not None:
            return await _stream(request, answer, answer.chunks, gzip)
        return await _whole(request, answer, gzip)
    except ConnectionError:
        return Delivery(web.Response(), 0, 0, "client gone")


def spoil(answer: Answer, fault: Fault) -> Answer:
    """The faults that change the body, before its length is known."""
    if answer.chunks is not None:
        answer.body, answer.chunks = b"".join(answer.chunks), None
    before = answer.body
    answer.shortened = fault.kind in ("empty", "truncated")
    if fault.kind == "empty":
        answer.body = b""
    elif fault.kind == "truncated":
        answer.body = before[: int(len(before) * fault.share)]
    elif fault.kind == "wrong_type":
        answer.content_type = "application/octet-stream"
    elif fault.kind == "bad_encoding":
        spot = min((p + len(s) for s in SOFT_SPOTS if (p := before.find(s)) >= 0), default=0)
        answer.body = before[:spot] + b"\xe9\xff" + before[spot:]
        answer.ledger = [(end + (2 if end > spot else 0), g) for end, g in answer.ledger]
        if hit := next((g for end, g in answer.ledger if end > spot > 0), None):
            hit.spoiled = True
    return answer


def _response(answer: Answer, status: int | None = None) -> web.StreamResponse:
    headers = {"Content-Type": answer.content_type, **answer.headers}
    return web.StreamResponse(status=status or answer.status, headers=headers)


async def _whole(request: web.Request, answer: Answer, gzip: bool) -> Delivery:
    response = _response(answer)
    payload = answer.body
    if gzip and payload:
        payload = _squeeze(payload)
        response.headers["Content-Encoding"] = "gzip"
    response.content_length = len(payload)
    await response.prepare(request)
    if payload:
        await response.write(payload)
    await response.write_eof()
    return Delivery(response, len(answer.body), len(payload))


async def _stream(
    request: web.Request, answer: Answer, chunks: Iterator[bytes], gzip: bool
) -> Delivery:
    response = _response(answer)
    squeeze = zlib.compressobj(1, zlib.DEFLATED, GZIP) if gzip else None
    if squeeze is not None:
        response.headers["Content-Encoding"] = "gzip"
    response.enable_chunked_encoding()
    await response.prepare(request)
    written = sent = 0
    try:
        for chunk in chunks:
            out = squeeze.compress(chunk) if squeeze is not None else chunk
            if out:
                await response.write(out)
            written += len(chunk)
            sent += len(out)
            await asyncio.sleep(0)  # other accounts have their turn
        if squeeze is not None:
            await response.write(squeeze.flush())
        await response.write_eof()
    except ConnectionError:
        return Delivery(response, written, sent, "client gone")
    return Delivery(response, written, sent)


async def _cut(request: web.Request, answer: Answer, fault: Fault, gzip: bool) -> Delivery:
    """Part of the body, then the end of the connection: what was written does arrive."""
    body = b"".join(answer.chunks) if answer.chunks is not None else answer.body
    response = _response(answer)
    payload = _squeeze(body) if gzip else body
    if gzip:
        response.headers["Content-Encoding"] = "gzip"
    if fault.kind == "cut_chunked":
        response.enable_chunked_encoding()
    else:
        response.content_length = max(len(payload), 1)
    response.force_close()
    await response.prepare(request)
    # at least a byte is missing, or it would be no cut
    part = payload[: min(int(len(payload) * fault.share), len(payload) - 1)]
    for place in range(0, len(part), CHUNK):
        await response.write(part[place : place + CHUNK])
    if request.transport is not None:
        request.transport.close()
    seen = len(zlib.decompressobj(GZIP).decompress(part)) if gzip else len(part)
    # all bytes of a compressed body may be there before its trailer
    seen = min(seen, len(body) - 1)
    return Delivery(response, max(seen, 0), len(part), fault.kind)


async def _drip(request: web.Request, answer: Answer, fault: Fault) -> Delivery:
    body = b"".join(answer.chunks) if answer.chunks is not None else answer.body
    response = _response(answer)
    response.content_length = len(body)
    await response.prepare(request)
    size = max(-(-len(body) // DRIP_PIECES), 1)
    written = 0
    try:
        for place in range(0, len(body), size):
            await asyncio.sleep(fault.seconds / DRIP_PIECES)
            await response.write(body[place : place + size])
            written = min(place + size, len(body))
        await response.write_eof()
    except ConnectionError:
        return Delivery(response, written, written, "client gone")
    return Delivery(response, written, written)


async def _endless(request: web.Request, answer: Answer) -> Delivery:
    response = _response(answer)
    response.enable_chunked_encoding()
    response.force_close()
    await response.prepare(request)
    start = answer.body[:1] or b" "
    written = 0
    try:
        await response.write(start)
        for _ in range(ENDLESS_PIECES):
            await response.write(ENDLESS_PIECE)
            written += len(ENDLESS_PIECE)
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    return Delivery(response, 0, written, "endless")


def _reset(request: web.Request, kind: str) -> Delivery:
    """RST instead of an answer."""
    transport = request.transport
    if transport is not None:
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    response = web.Response()
    response.force_close()
    return Delivery(response, 0, 0, kind)


def _squeeze(body: bytes) -> bytes:
    made = zlib.compressobj(1, zlib.DEFLATED, GZIP)
    return made.compress(body) + made.flush()
