"""What RabbitMQ refuses, in words for people: never the error's own, which may hold an address or
a record."""

from __future__ import annotations

import re

from aiormq import exceptions
from pamqp.commands import Basic

from engine.network.failures import kind_cause

from .line import lost

FAILURES = (exceptions.AMQPError, OSError, RuntimeError)

_KINDS: dict[type[BaseException], str] = {
    exceptions.ProbableAuthenticationError: "the user name or password is wrong",
    exceptions.AuthenticationError: "the user name or password is wrong",
    exceptions.ChannelAccessRefused: "this user may not write to the exchange",
    exceptions.ChannelNotFoundEntity: "there is no such exchange; declare it",
    exceptions.ConnectionNotAllowed: "this user may not use the virtual host",
    exceptions.ProtocolSyntaxError: "it refuses the connection; is the virtual host there?",
    exceptions.ConnectionClosed: "the broker closed the connection",
    exceptions.ChannelClosed: "the broker closed the channel",
    exceptions.DeliveryError: "the broker did not accept a message; a queue may be full",
    TimeoutError: "it does not answer; a broker with an alarm (memory, disk) takes nothing",
}


def size_max(error: BaseException) -> int | None:
    """How many bytes a message may have, where one with more was refused."""
    if not isinstance(error, exceptions.ChannelPreconditionFailed):
        return None
    size = re.search(r"max size (\d+)", str(error.args))
    return None if size is None else int(size[1])


def refusal(error: BaseException) -> str:
    if isinstance(error, exceptions.DeliveryError) and isinstance(error.frame, Basic.Return):
        key, exchange = error.frame.routing_key, error.frame.exchange
        return f'no queue takes routing key "{key}" at exchange "{exchange}"; bind one to it'
    if (size := size_max(error)) is not None:
        return f"a record is larger than max_message_size, {size} bytes"
    return kind_cause(error, _KINDS) or lost(error)
