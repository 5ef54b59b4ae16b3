"""BulkSMS's pushed status reports: a message each, as parameters of a GET or a form.

https://developer.bulksms.com/eapi/status_reports/http_push

`msisdn`, `batch_id`, `status`, `source_id`, and `completed_time` where it is known. The answer has
to be 200 with a character of body at least; what is not answered so comes again after an hour,
three more and twelve more, and then no more. Which of two messages to one number of a batch is
meant is not said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import tzinfo
from typing import Any, Final

from msgspec.structs import replace

from engine.core.contracts import Flaw, Outcome, Parser, Verb
from engine.core.http import outcome_of_status
from engine.core.report import Report, msisdn
from engine.parsing.form import FormRecord
from engine.providers.bulksms_quick import written

_MAPPED: Final = frozenset({"msisdn", "batch_id", "status", "completed_time", "source_id"})


class PushReader:
    """`like` makes a report of a status code, for a message that nothing else is known of."""

    def __init__(self, like: Callable[[str], Report], zone: tzinfo, status: int) -> None:
        self._form = FormRecord()
        self.parser: Parser = self._form
        self._like = like
        self._zone = zone
        self._status = status
        self._flaws: list[Flaw] = []

    def reports(self, records: Sequence[Any]) -> list[Report]:
        out: list[Report] = []
        for record in records:
            found = self._report(record) if type(record) is dict else "not a table"
            if isinstance(found, str):
                raw = self._form.raw(record) if type(record) is dict else b""
                self._flaws.append(Flaw(found, "push", raw))
            else:
                out.append(found)
        return out if self._status == 200 else []

    def take_flaws(self) -> list[Flaw]:
        flaws, self._flaws = [*self._form.take_flaws(), *self._flaws], []
        return flaws if self._status == 200 else []

    def outcome(self) -> Outcome:
        if (bad := outcome_of_status(self._status)) is not None:
            return bad
        if self._form.complete:
            return Outcome()  # what could not be read of it is set aside, record by record
        return Outcome(verb=Verb.RETRY, cause=self._form.cause or "no form")

    def _report(self, record: dict[str, Any]) -> Report | str:
        """The report, or why there is none. Values do not go into the cause."""
        recipient, batch_id, code = (_text(record, key) for key in ("msisdn", "batch_id", "status"))
        number = msisdn(recipient)
        if number is None:
            return "no msisdn"
        if not batch_id:
            return "no batch_id"
        if not (code.isascii() and code.isdecimal()):
            return "no status code"
        extra = {key: value for key, value in record.items() if key not in _MAPPED}
        completed, source_id = _text(record, "completed_time"), _text(record, "source_id")
        done_at = written(completed, self._zone) if completed else None
        if completed and done_at is None:
            extra["completed_time"] = completed
        return replace(
            self._like(code),
            message_id=f"{batch_id}:{number}",
            batch_id=batch_id,
            recipient=recipient,
            msisdn=number,
            reference=source_id or None,
            done_at=done_at,
            extra=extra,
        )


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    return value.strip() if type(value) is str else ""
