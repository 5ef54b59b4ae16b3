"""Infobip, given anything at all: a report or a flaw, an outcome, and nothing dropped."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.core.contracts import Head, Verb
from engine.core.report import Report
from tests.unit.infobip_answers import FEED, SAMPLE, account, read

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
    | st.sampled_from(["null", "", "NO_ERROR", "2019-11-09T16:00:00.000+0000", "DELIVERED"])
)
NAMES = st.sampled_from(
    sorted({*SAMPLE, "from", "sender", "destination", "messageCount", "mmsCount", "mccMnc",
     "callbackData", "seenAt", "receivedAt", "channel", "groupId", "groupName", "id", "name",
     "description", "permanent", "pricePerMessage", "currency", "new"})
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | TEXTS, inner, max_size=6),
    max_leaves=20,
)


@given(VALUES | st.dictionaries(NAMES, VALUES, max_size=12))
def test_any_record_is_a_report_or_a_flaw(record: Any) -> None:
    reader = account().reader(FEED, Head(200, {}))
    reports = reader.reports([record])
    flaws = reader.take_flaws()
    assert len(reports) + len(flaws) == 1
    for report in reports:
        assert msgspec.json.decode(msgspec.json.encode(report), type=Report).message_id


@given(st.dictionaries(NAMES, VALUES, max_size=12))
def test_nothing_that_has_no_place_is_dropped(record: dict[str, Any]) -> None:
    reader = account().reader(FEED, Head(200, {}))
    for report in reader.reports([record]):
        for name in record.keys() & {"new", "seenAt", "channel", "entityId", "applicationId"}:
            assert report.extra[name] == record[name]


@given(VALUES, st.sampled_from([200, 400, 401]))
def test_any_error_body_has_an_outcome(said: Any, status: int) -> None:
    for body in ({"requestError": said}, {"requestError": {"serviceException": said}},
                 {"errorCode": said, "description": said, "violations": said}):  # fmt: skip
        outcome = read(body, status=status).outcome
        assert outcome.verb in (Verb.RETRY, Verb.PAUSE)
        assert outcome.cause.isprintable()


@given(st.binary(max_size=300), st.booleans())
def test_no_body_raises(body: bytes, cut: bool) -> None:
    for prefix in (b"", b'{"results":[', b'{"results":[{"messageId":"a"},'):
        assert read(prefix + body, cut=cut, step=11).outcome.verb in Verb
