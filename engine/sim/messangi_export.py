"""Messangi's export: a CSV file of a window's messages, which POST /v3/mlog mails.

docs.messangi.com/docs/reporting#exporting-report-csv. Nothing is mailed here: the account keeps the
latest file, and the simulator's own path /_sim/mailed/{account} gives it out.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable

import orjson

from engine.sim.messages import Message

COLUMNS = (
    "Channel", "Sender", "Recipient", "Date", "Campaignid", "Status", "StatusDate", "Content",
    "Platform", "items.Subject", "Direction", "Subscriberid", "items.StatusDescription",
)  # fmt: skip
REASON = "You request is bein processed. Your report will be delivered in approx:"
PROCESSED = orjson.dumps({"reason": REASON, "timeSecAprox": "0"}).decode()
"""What `meta.explain` says: JSON in a string, in the page's own spelling."""


def written(messages: Iterable[Message], item: Callable[[Message], dict[str, object]]) -> bytes:
    """The file; `item` is a message as the log's long form shows it."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for message in messages:
        shown = {name.lower(): value for name, value in item(message).items()}
        names = (column.removeprefix("items.").lower() for column in COLUMNS)
        writer.writerow("" if shown.get(name) is None else shown[name] for name in names)
    return text.getvalue().encode()
