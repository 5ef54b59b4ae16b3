"""Looking up names on a thread that ends with the transport.

aiohttp's own resolver uses the event loop's pool, whose threads stay until the loop is closed.
"""

from __future__ import annotations

import socket
from typing import Any

import anyio
from aiohttp.abc import AbstractResolver, ResolveResult

from engine.machine.offload import Offload


class Resolver(AbstractResolver):
    """The system's resolver. Raises OSError where there is no such host, as aiohttp expects.

    Each host has a thread of its own while it is looked up: a name server that does not answer for
    one provider holds up no other. There are never more than hosts in the configuration.
    """

    def __init__(self) -> None:
        self._lookups: dict[str, Offload] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        lookup = self._lookups.setdefault(host, Offload("dlr-resolver"))
        try:
            found = await lookup.run(
                socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG
            )
        finally:
            if not lookup.hangs and self._lookups.pop(host, None) is not None:
                await lookup.close()
        return [_result(host, entry) for entry in found]

    async def close(self) -> None:
        lookups, self._lookups = self._lookups, {}
        async with anyio.create_task_group() as closing:
            for lookup in lookups.values():
                closing.start_soon(lookup.close)


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
