"""Records as CloudEvents, read back by the specification's own library."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from engine.core import cloudevents
from engine.core.report import Report, decode, encode
from engine.core.state import State

TEXT = 'line\nbreak "quoted" \\ \u2028 😀 é'


def record(**more: object) -> bytes:
    fields = {
        "event_id": "0" * 31 + "1", "account": "bulk-eu", "provider": "bulksms",
        "message_id": "4711:447700900001", "revision": 1, "state": State.DELIVERED, "final": True,
        "observed_at": "2026-01-01T00:00:00.123Z", "content": TEXT, "extra": {"n": [2**70, TEXT]},
    }  # fmt: skip
    return encode(Report(**{**fields, **more}))  # type: ignore[arg-type]


def read(data: bytes) -> CloudEvent:
    """By the library, which checks every attribute."""
    found = JSONFormat().read(CloudEvent, data)
    assert isinstance(found, CloudEvent)
    return found


def test_an_event_says_what_the_record_says() -> None:
    line = record()
    found = read(cloudevents.event(line))
    assert found.get_specversion() == "1.0"
    assert found.get_id() == "0" * 31 + "1"
    assert found.get_source() == "/dlr-engine/bulk-eu"
    assert found.get_type() == "dlr.report.delivered"
    assert found.get_subject() == "4711:447700900001"
    assert found.get_time() == datetime(2026, 1, 1, 0, 0, 0, 123000, tzinfo=UTC)
    assert found.get_datacontenttype() == "application/json"
    assert found.get_data() == json.loads(line)


def test_the_record_is_in_it_byte_for_byte() -> None:
    line = record()
    assert line in cloudevents.event(line)
    assert decode(msgspec.json.decode(cloudevents.event(line), type=dict[str, msgspec.Raw])["data"])


@pytest.mark.parametrize("state", list(State))
def test_each_state_has_a_type(state: State) -> None:
    found = read(cloudevents.event(record(state=state, final=False)))
    assert found.get_type() == f"dlr.report.{state}"


def test_attributes_hold_only_what_they_may() -> None:
    line = record(account="Köln / é%", message_id="a\nb\x7f\x85\ufffec", observed_at="")
    found = read(cloudevents.event(line))
    assert found.get_source() == "/dlr-engine/K%C3%B6ln%20%2F%20%C3%A9%25"
    assert found.get_subject() == "a\ufffdb\ufffd\ufffd\ufffdc"
    assert b'"time":' not in cloudevents.event(line)
    assert found.get_data()["message_id"] == "a\nb\x7f\x85\ufffec"
    assert read(cloudevents.event(record(message_id=""))).get_subject() is None


def test_a_batch_is_an_array_of_events() -> None:
    lines = [record(message_id=f"m{n}") for n in range(3)]
    found = msgspec.json.decode(cloudevents.events(lines), type=list[msgspec.Raw])
    assert [read(bytes(each)).get_subject() for each in found] == ["m0", "m1", "m2"]
    assert [bytes(each) for each in found] == [cloudevents.event(line) for line in lines]


@pytest.mark.parametrize("line", [b"", b"nothing", b"[]", b'{"event_id": 1}', b'{"account": "a"}'])
def test_what_is_no_record_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        cloudevents.event(line)
