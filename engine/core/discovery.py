"""A message that is heard of for the first time: what `reconcile.fold` makes of it, in one step.

Most reports are of this kind. Nothing was tracked, so there is nothing to compare or to complete
with; what is left of the rules is written out here once more for half of what they cost there.
"""

from __future__ import annotations

from msgspec.structs import force_setattr

from .contracts import Traits
from .reconcile import Known
from .report import Report, event_id
from .state import RECEIPT_CHANNELS, State
from .units import iso, iso_ms

Span = tuple[int, int]


class Discovery:
    """Takes the first reports of messages out of one answer."""

    def __init__(
        self,
        account: str,
        provider: str,
        traits: Traits,
        observed_ms: int,
        span: Span | None = None,
    ) -> None:
        """`span`: the window that was asked for, both ends included."""
        self._account = account
        self._provider = provider
        self._dated = traits.dated
        self._windowed = traits.feed == "windowed"
        self._observed_ms = observed_ms
        self._observed_at = iso(observed_ms)
        # A span's end is in no window of it, as `reconcile` places it.
        self._places = (span[0], max(span[0], span[1] - 1)) if span is not None else None

    def take(self, report: Report, sent_ms: int | None, mark: int | None) -> Known:
        """The message, `report` being its newest record, which is completed in place.

        `sent_ms` is the report's `sent_at`, `mark` what `reconcile.marks_of` says.
        """
        done_ms = iso_ms(report.done_at) if report.done_at is not None else None
        identity = event_id(
            self._account,
            report.message_id,
            report.direction,
            report.provider_status,
            report.error_code,
            report.verdict,
            done_ms if self._dated and done_ms is not None else 1,
        )
        force_setattr(report, "event_id", identity)
        force_setattr(report, "account", self._account)
        force_setattr(report, "observed_at", self._observed_at)
        force_setattr(report, "revision", 1)
        if report.provider != self._provider:
            force_setattr(report, "provider", self._provider)
        state, final = report.state, report.final
        placed_ms = sent_ms if self._windowed else None
        if self._places is not None:
            first_ms, last_ms = self._places
            placed_ms = min(max(sent_ms if sent_ms is not None else last_ms, first_ms), last_ms)
        is_open = not final or (
            state is State.DELIVERED and self._windowed and report.channel in RECEIPT_CHANNELS
        )
        # By their places: by their names they would take twice as long.
        return Known(
            self._account, report.message_id, report.direction, 1,  # revision
            state, final, is_open, report.verdict, report.provider_status, report.error_code,
            done_ms, sent_ms, placed_ms, self._observed_ms,
            report.batch_id, report.reference, report.recipient, False,  # tracked
            b"", identity, done_ms, mark,
        )  # fmt: skip
