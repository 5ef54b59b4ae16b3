"""How an HTTP exchange fails: the errors of `engine.network.transport`, and their words.

The errors differ by what the caller must do. Their words are made here and nowhere else: from an
errno, a certificate's verdict, a count. The text of a library's or the system's error is never
taken over, for it may hold an address, a URL, and in it a password.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Mapping

import msgspec

from engine.core.errors import EngineError

# For settings of a client library's that would do without.
VERIFIED = "a server's certificate and name are always verified, and nothing switches that off"


class Timeouts(msgspec.Struct, frozen=True):
    """For a connection or the next byte; for all of it; and the size of the inflated body."""

    connect_or_byte_s: float
    total_s: float
    body_max: int


class TransportError(EngineError):
    """An exchange failed. `cause` is for people and holds neither URL nor secret.

    `sent` says whether the request may have reached the provider; `received_bytes` counts the
    body as it came over the wire.
    """

    def __init__(self, cause: str, *, sent: bool, received_bytes: int = 0) -> None:
        super().__init__(cause)
        self.cause = cause
        self.sent = sent
        self.received_bytes = received_bytes


class Unreachable(TransportError):
    """The request never went out: no name, no connection, no TLS, or it is no valid request."""


class Withheld(Unreachable):
    """There was a connection, but the request may not go out any more: nobody's failure."""


class Timeout(TransportError):
    """No connection or no byte for too long, or too long in all."""


class Cut(TransportError):
    """The connection or the body ended early. Pieces that came before were handed on."""


class TooLarge(TransportError):
    """The body is larger than allowed. What is allowed was handed on."""


class BadEncoding(TransportError):
    """The body is not in the encoding that it claims, or in one that was not asked for."""


class BadAnswer(TransportError):
    """What came is not HTTP, or its head is too large."""


_OS_CAUSES = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.ECONNABORTED: "connection aborted",
    errno.EPIPE: "connection closed by the other side",
    errno.ENETUNREACH: "network unreachable",
    errno.EHOSTUNREACH: "host unreachable",
    errno.ETIMEDOUT: "connection timed out",
}


def kind_cause(error: BaseException, words: Mapping[type[BaseException], str]) -> str | None:
    """The words for the first kind that the error is of."""
    return next((said for kind, said in words.items() if isinstance(error, kind)), None)


def os_cause(error: BaseException, otherwise: str) -> str:
    """Of a connection; `otherwise` is for an error that says nothing."""
    if isinstance(error, ssl.SSLError):  # its number is one of TLS, and that of a name one of DNS
        return tls_cause(error)
    if isinstance(error, socket.gaierror):
        return dns_cause(error)
    number = getattr(error, "errno", None)
    if not isinstance(number, int):
        return "connection reset" if isinstance(error, ConnectionResetError) else otherwise
    # The system's own words for the number, never the error's text: that may name the address.
    return _OS_CAUSES.get(number) or os.strerror(number).lower()


def dns_cause(error: OSError) -> str:
    again = error.errno == socket.EAI_AGAIN
    return "DNS: temporary failure" if again else "DNS: no such host"


def tls_cause(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        # Up to the comma: what follows in a mismatch is the host's name.
        said = (error.verify_message or "").partition(",")[0].lower()
        return f"TLS: certificate verify failed: {said}".removesuffix(": ")
    reason = getattr(error, "reason", None) or "handshake failed"
    return f"TLS: {str(reason).lower().replace('_', ' ')}"


def size(count: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit and count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count:,} bytes"
