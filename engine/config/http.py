"""The `[http]` table: where the worker's HTTP surface listens, and what opens `/v1/*`."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address

from . import values
from .model import HTTP_LISTEN, HttpConfig
from .reader import Section

PORT_MAX = 65535

_WANTED = (
    'expected a host and a port such as "127.0.0.1:9464", "[::1]:9464" or, for all addresses,'
    ' "0.0.0.0:9464"'
)
_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]/@\s]+)):([0-9]{1,5})")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def read_http(section: Section) -> HttpConfig:
    default = place(HTTP_LISTEN)
    host, port = section.take("listen", place, default)
    token = section.take("token", section.reading.secret, None)
    section.close()
    return HttpConfig(host=host, port=port, token=token)


def place(value: object) -> tuple[str, int]:
    """Host and port; the port 0 lets the system choose one."""
    found = _LISTEN.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{_WANTED}, got {values.shown(value)}")
    inner, outer, port = found.groups()
    host = inner or outer
    if int(port) > PORT_MAX or not (_is_ipv6(inner) if inner else _is_host(outer)):
        raise ValueError(f"{_WANTED}, got {values.shown(value)}")
    return host, int(port)


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _is_host(text: str) -> bool:
    """An address, or a name; digits and dots that are no address are a mistake."""
    try:
        ip_address(text)
    except ValueError:
        return bool(_NAME.fullmatch(text)) and not re.fullmatch(r"[0-9.]+", text)
    return True
