"""Looking up names on a thread that ends with the transport.

aiohttp's own resolver uses the event loop's pool, whose threads stay until the loop is closed.
"""

from __future__ import annotations

import socket
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from engine.offload import Offload


class Resolver(AbstractResolver):
    """The system's resolver. Raises OSError where there is no such host, as aiohttp expects."""

    def __init__(self) -> None:
        self._offload = Offload("dlr-resolver")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._offload.run(
            socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG
        )
        return [_result(host, entry) for entry in found]

    async def close(self) -> None:
        await self._offload.close()


def _result(host: str, entry: tuple[Any, ...]) -> ResolveResult:
    family, _, proto, _, address = entry
    return ResolveResult(
        hostname=host,
        host=address[0],
        port=address[1],
        family=family,
        proto=proto,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )
