"""Which statuses a message goes through, by provider, channel and outcome.

This is the oracle's own reading of the providers' tables, kept apart from the engine's on
purpose: a mistake would have to be made twice to go unseen. It must never be derived from the
engine's tables.

developer.bulksms.com/eapi/status_reports/get_report
infobip.com/docs/developer-resources/api-fundamentals/message-status-codes
docs.avaamo.com sms-reporting-api
docs.messangi.com/docs/sms-status (email-status, push-notifications-status, …)
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from engine.sim.messages import Transition
from engine.sim.profile import AccountProfile

Step = tuple[str, str, str | None]
"""(phase, status, error): the phase says which of the profile's delays it waits for."""
Path = tuple[Step, ...]

ENDS = frozenset({"delivered", "read", "undeliverable", "expired", "deleted", "rejected"})

_STATES: dict[str, dict[str, str]] = {
    "bulksms": dict.fromkeys(("10", "12", "40", "60", "61", "62", "63", "64"), "enroute")
    | dict.fromkeys(("22", "23", "24", "25", "26", "27", "28", "31", "32", "33"), "rejected")
    | dict.fromkeys(("50", "51", "52", "54", "55", "56", "57"), "undeliverable")
    | {"0": "accepted", "11": "delivered", "29": "deleted", "53": "expired", "70": "unknown"},
    "avaamo": {
        "sent": "enroute",
        "delivered": "delivered",
        "failed": "rejected",
        "undelivered": "undeliverable",
    },
    "messangi": dict.fromkeys(("QUEUE", "DEQUEUED", "PENDING", "BUFFRED"), "accepted")
    | dict.fromkeys(("SENT", "ENROUTE", "ACCEPTD", "DELIVERED_TO_CARRIER"), "enroute")
    | dict.fromkeys(("DELIVRD", "DELIVERED", "DELIVERED_TO_DEVICE"), "delivered")
    | dict.fromkeys(("READ", "OPEN", "CLICK"), "read")
    | dict.fromkeys(("REJECTD", "BLACKLISTED", "BAD_TO", "INVALID ROUTING"), "rejected")
    | dict.fromkeys(("BAD_DEVICE_TOKEN", "BAD_CARRIER/FROM", "QUOTA_EXCEEDED"), "rejected")
    | dict.fromkeys(("UNDELIV", "UNREACHABLE", "EXHAUSTED", "BOUNCED"), "undeliverable")
    | dict.fromkeys(("UNREGISTERED", "FALLBACK", "CARRIER GATEWAY ERROR"), "undeliverable")
    | {"EXPIRED": "expired", "DELETED": "deleted"},
}

INFOBIP_STATUS: dict[str, tuple[int, str, int, str, str]] = {
    # name: group id, group name, id, words, canonical state
    "PENDING_ACCEPTED": (1, "PENDING", 26, "Message accepted, pending for delivery", "accepted"),
    "PENDING_WAITING_DELIVERY": (1, "PENDING", 3, "Message waiting for delivery", "enroute"),
    "PENDING_ENROUTE": (1, "PENDING", 7, "Message sent to next instance", "enroute"),
    "UNDELIVERABLE_REJECTED_OPERATOR": (
        2,
        "UNDELIVERABLE",
        4,
        "Message rejected by operator",
        "undeliverable",
    ),
    "UNDELIVERABLE_NOT_DELIVERED": (
        2,
        "UNDELIVERABLE",
        9,
        "Message sent not delivered",
        "undeliverable",
    ),
    "DELIVERED_TO_OPERATOR": (3, "DELIVERED", 2, "Message delivered to operator", "enroute"),
    "DELIVERED_TO_HANDSET": (3, "DELIVERED", 5, "Message delivered to handset", "delivered"),
    "EXPIRED_EXPIRED": (4, "EXPIRED", 15, "Message expired", "expired"),
    "EXPIRED_DLR_UNKNOWN": (4, "EXPIRED", 29, "Unknown reason", "expired"),
    "REJECTED_NETWORK": (5, "REJECTED", 6, "Network is forbidden", "rejected"),
    "REJECTED_PREFIX_MISSING": (5, "REJECTED", 8, "Number prefix missing", "rejected"),
    "REJECTED_NOT_ENOUGH_CREDITS": (5, "REJECTED", 12, "Not enough credits", "rejected"),
    "REJECTED_DESTINATION": (5, "REJECTED", 52, "Invalid destination address", "rejected"),
    # the same numeric id stands in two groups; only the group tells the outcome
    "SIGNALS_BLOCKED": (4, "EXPIRED", 87, "Rejected due to anti-fraud mechanism", "expired"),
}

INFOBIP_ERROR: dict[str, tuple[int, str, int, str, bool]] = {
    # name: group id, group name, id, words, permanent
    "NO_ERROR": (0, "Ok", 0, "No Error", False),
    "EC_UNKNOWN_SUBSCRIBER": (1, "HANDSET_ERRORS", 1, "Unknown Subscriber", True),
    "EC_ABSENT_SUBSCRIBER": (1, "HANDSET_ERRORS", 27, "Absent Subscriber", False),
    "EC_CALL_BARRED": (1, "HANDSET_ERRORS", 13, "Call Barred", False),
    "EC_TEMPORARY_HANDSET_FAILURE": (1, "HANDSET_ERRORS", 628, "Temporary Handset Failure", True),
    "EC_NO_RESPONSE": (3, "OPERATOR_ERRORS", 502, "No Response", False),
}

_INFOBIP_OWN_ERROR = {
    "UNDELIVERABLE_NOT_DELIVERED": "EC_ABSENT_SUBSCRIBER",
    "UNDELIVERABLE_REJECTED_OPERATOR": "EC_UNKNOWN_SUBSCRIBER",
    "EXPIRED_EXPIRED": "EC_TEMPORARY_HANDSET_FAILURE",
    "EXPIRED_DLR_UNKNOWN": "EC_NO_RESPONSE",
}

AVAAMO_FAILED = (
    "SMS send rate limit exceeded",
    "Permission to send an SMS has not been enabled for the region indicated by the 'To' number",
    "Attempt to send to unsubscribed recipient",
    "This 'From' number has exceeded the maximum number of queued messages",
    "Unable to create record: The 'To' number {to} is not a valid phone number.",
    "'To' number is not a valid mobile number",
    "Account suspended",
    "Content size exceeds carrier limit",
    "Invalid message recipient",
    "Channels message cannot have same From and To",
)
AVAAMO_UNDELIVERED = (
    "Queue overflow",
    "Unreachable destination handset",
    "Message blocked",
    "Message Delivery - Unknown destination handset",
    "Landline or unreachable carrier",
    "Message filtered",
    "Message Delivery - Unknown error",
    "Carrier network congestion",
)


def _chains(
    first: Sequence[Step], last: Mapping[str, Sequence[str]]
) -> dict[str, tuple[Path, ...]]:
    """For each outcome the first steps, then one of its last statuses."""
    return {
        outcome: tuple((*first, ("final", status, None)) for status in statuses)
        for outcome, statuses in last.items()
    }


def _bulksms() -> dict[str, tuple[Path, ...]]:
    begun: Path = (("accepted", "0", None), ("enroute", "10", None))
    table = _chains(
        begun,
        {
            "delivered": ("11",),
            "undeliverable": ("50", "51", "52", "54", "55", "57"),
            "expired": ("53",),
            "rejected": ("31", "32", "33", "25", "22", "24"),
        },
    )
    stuck: tuple[Path, ...] = (begun, (begun[0], ("enroute", "63", None)), (begun[0],))
    return table | {"stuck": stuck, "never": ((),)}


def _infobip() -> dict[str, tuple[Path, ...]]:
    def ends(*names: str) -> tuple[Path, ...]:
        return tuple((("final", name, _INFOBIP_OWN_ERROR.get(name)),) for name in names)

    operator: Step = ("enroute", "DELIVERED_TO_OPERATOR", None)
    handset: Step = ("final", "DELIVERED_TO_HANDSET", None)
    return {
        "delivered": ((operator, handset), (handset,), (handset,)),
        "undeliverable": ends("UNDELIVERABLE_NOT_DELIVERED", "UNDELIVERABLE_REJECTED_OPERATOR"),
        "expired": ends("EXPIRED_EXPIRED", "EXPIRED_DLR_UNKNOWN", "SIGNALS_BLOCKED"),
        "rejected": ends("REJECTED_NETWORK", "REJECTED_DESTINATION", "REJECTED_PREFIX_MISSING"),
        "stuck": ((operator,), (("enroute", "PENDING_ENROUTE", None),)),
        "never": ((),),
    }


def _avaamo() -> dict[str, tuple[Path, ...]]:
    sent: Step = ("accepted", "sent", None)
    overflow: Path = (sent, ("final", "undelivered", AVAAMO_UNDELIVERED[0]))
    return {
        "delivered": ((sent, ("final", "delivered", None)),),
        "undeliverable": tuple(
            (sent, ("final", "undelivered", words)) for words in AVAAMO_UNDELIVERED[1:]
        ),
        "expired": (overflow,),
        "rejected": tuple((("accepted", "failed", words),) for words in AVAAMO_FAILED),
        "stuck": ((sent,),),
        "never": ((sent,),),
    }


def _messangi() -> dict[str, dict[str, tuple[Path, ...]]]:
    queued: Path = (("accepted", "DEQUEUED", None), ("enroute", "SENT", None))
    read: Step = ("read", "READ", None)
    stays = {"stuck": (queued,), "never": ((queued[0],),)}
    sms = _chains(
        (("accepted", "QUEUE", None), ("enroute", "SENT", None)),
        {
            "delivered": ("DELIVRD", "DELIVERED_TO_DEVICE"),
            "undeliverable": ("UNDELIV", "CARRIER GATEWAY ERROR", "UNREACHABLE"),
            "expired": ("EXPIRED",),
            "rejected": ("REJECTD", "INVALID ROUTING", "BAD_CARRIER/FROM"),
        },
    )
    lost = {"undeliverable": ("BOUNCED",), "expired": ("EXHAUSTED",), "rejected": ("BAD_TO",)}
    email = _chains(queued, lost) | {"delivered": ((*queued, ("final", "OPEN", None)),)}
    # push never says more than SENT, and there SENT is the end
    push: dict[str, tuple[Path, ...]] = _chains(
        (queued[0],),
        {
            "delivered": ("SENT",),
            "undeliverable": ("UNREGISTERED",),
            "expired": ("EXHAUSTED",),
            "rejected": ("BAD_DEVICE_TOKEN",),
        },
    ) | {"stuck": ((queued[0],),)}
    chat = _chains(
        queued,
        {
            "delivered": ("DELIVERED",),
            "undeliverable": ("FALLBACK",),
            "expired": ("EXHAUSTED",),
            "rejected": ("BLACKLISTED", "QUOTA_EXCEEDED"),
        },
    )
    chat["read"] = ((*queued, ("final", "DELIVERED", None), read),)
    return {
        "S": stays | sms,
        "E": stays | email,
        "P": stays | push,
        "W": stays | chat,
        "R": stays | chat,
    }


_PATHS: dict[str, dict[str, dict[str, tuple[Path, ...]]]] = {
    "bulksms": {"S": _bulksms()},
    "infobip": {"S": _infobip()},
    "avaamo": {"S": _avaamo()},
    "messangi": _messangi(),
}
_OUTCOMES = ("delivered", "undeliverable", "expired", "rejected", "never", "stuck")


def state_of(provider: str, channel: str, status: str) -> tuple[str, bool]:
    """The canonical state of a provider's status, and whether nothing is expected after it."""
    if provider == "infobip":
        known = INFOBIP_STATUS.get(status)
        state = known[4] if known else "unknown"
    else:
        state = _STATES[provider].get(status, "unknown")
    return state, state in ENDS or (provider == "messangi" and (channel, status) == ("P", "SENT"))


def draw(
    profile: AccountProfile, channel: str, direction: str, sent_at: float, rand: random.Random
) -> tuple[Transition, ...]:
    """The life of a message that is sent now, by the profile's mix and delays."""
    if direction == "I":  # what a handset sent has arrived when it is seen
        return lay(profile.provider, channel, sent_at, [(0.0, "READ", None)])
    mix = profile.mix
    weights = [mix.delivered, mix.undeliverable, mix.expired, mix.rejected, mix.never, mix.stuck]
    outcome = rand.choices(_OUTCOMES, weights)[0]
    paths = _PATHS[profile.provider][channel]
    if outcome == "delivered" and "read" in paths and rand.random() < mix.read:
        outcome = "read"
    path = rand.choice(paths[outcome])
    delays = profile.delays
    end = delays.late if rand.random() < mix.late else delays.final
    waits = {"accepted": 0.0, "enroute": delays.enroute, "final": end, "read": end + delays.read}
    steps: list[tuple[float, str, str | None]] = []
    for phase, status, error in path:
        spread = 1 + delays.jitter * rand.uniform(-1, 1)
        steps.append((waits[phase] * spread / profile.time_scale, status, error))
    return lay(profile.provider, channel, sent_at, steps)


def lay(
    provider: str,
    channel: str,
    sent_at: float,
    steps: Sequence[tuple[float, str, str | None]],
) -> tuple[Transition, ...]:
    """Steps with their offsets from sending, as transitions: whole milliseconds, ascending."""
    made: list[Transition] = []
    last = 0
    for offset, status, error in steps:
        at = max(round((sent_at + offset) * 1000), last + 1)
        last = at
        state, final = state_of(provider, channel, status)
        made.append(Transition(at / 1000, status, state, final, error))
    return tuple(made)
