"""A simulated message: what it is, and what is said of it when.

The whole life of a message is laid down when it is sent: a tuple of transitions with absolute
times. What a provider shows is then a pure function of the clock, so a virtual clock moves the
whole simulator and no task has to run. A message never changes after it was made; the classes
are not frozen only because making a million of them would take twice as long.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass


@dataclass(slots=True)
class Transition:
    """From `at` on the provider calls the message `status`."""

    at: float
    status: str
    state: str
    """The canonical state the status stands for."""
    final: bool
    error: str | None = None
    """infobip: the error's name; avaamo, messangi: the words."""


@dataclass(slots=True)
class Message:
    """One message, as the provider holds it."""

    serial: int
    message_id: str
    batch_id: str | None
    channel: str
    direction: str
    sender: str
    recipient: str
    reference: str | None
    campaign_id: str | int | None
    content: str
    sent_at: float
    listed_at: float
    transitions: tuple[Transition, ...]

    def at(self, now: float) -> Transition | None:
        """What is true of it at this time; None: nothing was said yet."""
        n = bisect_right(self.transitions, now, key=_when)
        return self.transitions[n - 1] if n else None


def _when(transition: Transition) -> float:
    return transition.at


@dataclass(slots=True, frozen=True)
class Truth:
    """What an engine that reads everything must end up with for one message."""

    message_id: str
    batch_id: str | None
    channel: str
    direction: str
    sender: str
    recipient: str
    reference: str | None
    campaign_id: str | int | None
    sent_at: float
    transitions: tuple[Transition, ...]
    state: str
    status: str | None
    final: bool
    verdict: str | None
    """What the end of the schedule makes of it: never_reported, last_known; null: it ended."""

    @classmethod
    def of(cls, message: Message) -> Truth:
        """The end of this message's life."""
        last = message.transitions[-1] if message.transitions else None
        final = last is not None and last.final
        verdict = None if final else ("last_known" if last else "never_reported")
        return cls(
            message_id=message.message_id,
            batch_id=message.batch_id,
            channel=message.channel,
            direction=message.direction,
            sender=message.sender,
            recipient=message.recipient,
            reference=message.reference,
            campaign_id=message.campaign_id,
            sent_at=message.sent_at,
            transitions=message.transitions,
            state=last.state if last else "unknown",
            status=last.status if last else None,
            final=final,
            verdict=verdict,
        )


@dataclass(slots=True, frozen=True)
class Sent:
    """What the sender gets to know when it has sent."""

    account: str
    batch_id: str | None
    message_ids: list[str]
    recipients: list[str]
    sent_at: float


@dataclass(slots=True)
class Given:
    """One report of a one-time feed that was handed out, and how far it came."""

    message_id: str
    status: str
    done_at: str
    answer: int
    """The number of the request it was given to."""
    on_wire: bool = False
    """The whole report was written to the connection."""
    whole: bool = False
    """So was the rest of the answer."""
    spoiled: bool = False
    """A fault put bytes into it that are no UTF-8."""
    at: float = 0.0
    """When that request arrived."""
