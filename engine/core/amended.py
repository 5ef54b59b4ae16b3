"""An answer's head that a strict parser refuses, said once more as far as its meaning is clear.

RFC 9112 would have such an answer thrown away, and what serves caches and proxies has to do so.
Here it ends at one reader, on a connection of its own that is closed after it, and a provider that
gives each report once has no second copy. So the body's length goes by the rules of section 6.3 as
far as they lead: chunked wins over a length, equal lengths are one, and where nothing can be
counted on the body lasts until the connection ends. A 204 that has a body all the same is read as
the 200 that it should have been.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_STATUS = re.compile(rb"HTTP/[0-9.]+[ \t]+([1-9][0-9]{2})(?![0-9])", re.IGNORECASE)
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:[ \t]*([^\0]*)")
_LENGTH = re.compile(rb"[ \t]*([0-9]{1,18})[ \t]*")


class Amended(NamedTuple):
    """A head that every parser takes, and that ends its connection.

    `lengths` are those that were announced, where they differ: the head has the largest of them,
    and a body that ends at another one is as good.
    """

    head: bytes
    lengths: frozenset[int]


def amended(head: bytes, *, followed: bool) -> Amended | None:
    """`head` in plain words; None where not even a status can be read.

    `followed` says that more came with it. A field that breaks the rules is left out, and all but
    the first of one name.
    """
    first, *lines = head.strip().splitlines() or [b""]
    status = _STATUS.match(first)
    if status is None:
        return None
    kept: dict[bytes, bytes] = {}
    lengths: set[int] = set()
    chunked = False
    for line in lines:
        if (field := _FIELD.fullmatch(line)) is None:
            continue
        name, value = field[1].lower(), field[2]
        if name == b"content-length":
            lengths |= {
                int(found[1]) for one in value.split(b",") if (found := _LENGTH.fullmatch(one))
            }
        elif name == b"transfer-encoding":
            chunked = chunked or b"chunked" in value.lower()
        elif name not in (b"connection", b"upgrade"):
            kept.setdefault(name, b"%s: %s\r\n" % (field[1], value))
    code = status[1]
    if code == b"204" and (chunked or followed or any(lengths)):
        code = b"200"
    if chunked:
        frame = b"Transfer-Encoding: chunked\r\n"
    else:
        frame = b"Content-Length: %d\r\n" % max(lengths) if lengths else b""
    plain = b"HTTP/1.1 %s\r\n%s%sConnection: close\r\n\r\n" % (code, b"".join(kept.values()), frame)
    return Amended(plain, frozenset() if chunked or len(lengths) < 2 else frozenset(lengths))
