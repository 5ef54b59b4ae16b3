"""The soak's balance can fail: each thing that may go wrong is put in, and has to be named."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.soak import drive, evidence, setting
from benchmarks.soak.balance import (
    KINDS,
    Balance,
    Given,
    Kill,
    Life,
    Line,
    Side,
    Sinks,
    Step,
    judge,
)
from benchmarks.soak.lag import LAG_MAX_S, Lag, lags
from benchmarks.soak.plot import Panel, sparkline, svg
from benchmarks.soak.processes import Worker
from engine.config import load
from engine.registry import providers, sinks
from engine.sim import Profile
from engine.stores.opening import make_store
from engine.stores.sqlite import SqliteStore

LADDER_S = 60.0
SENT = Step(0.0, "sent", "enroute", final=False)
DELIVERED = Step(5.0, "delivered", "delivered", final=True)
OPERATOR = Step(1.0, "DELIVERED_TO_OPERATOR", "enroute", final=False)
HANDSET = Step(5.0, "DELIVERED_TO_HANDSET", "delivered", final=True)


def line(key: str, revision: int, step: Step | None, **keys: Any) -> Line:
    known: dict[str, Any] = {
        "event_id": f"{key}/{revision}", "account": "bot", "key": key, "revision": revision,
        "state": step.state if step else "unknown", "final": step.final if step else True,
        "verdict": None if step else "never_reported", "status": step.status if step else None,
        "error_code": None, "observed_at": (step.at if step else LADDER_S) + 1,
    }  # fmt: skip
    return Line(**known | keys)


def bot(lives: dict[str, tuple[Step, ...]], **keys: Any) -> Side:
    books = {"known": len(lives), "final": len(lives), "pending": 0}
    made: dict[str, Any] = {
        "name": "bot", "provider": "avaamo", "books": books,
        "lives": {key: Life(0.0, steps) for key, steps in lives.items()},
    }  # fmt: skip
    return Side(**made | keys)


def both(lines: Sequence[Line], **keys: Any) -> Sinks:
    newest = {one.key: one.event_id for one in lines}
    rows = list(dict.fromkeys(one.event_id for one in lines))
    return Sinks(**{"lines": list(lines), "rows": rows, "newest": list(newest.values())} | keys)


TWO = {"a": (SENT, DELIVERED), "b": (SENT, DELIVERED)}
GOOD = [line("a", 1, SENT), line("b", 1, SENT), line("a", 2, DELIVERED), line("b", 2, DELIVERED)]


def of(
    side: Side, held: Sinks, kills: Sequence[Kill] = (), troubles: Sequence[str] = ()
) -> Balance:
    return judge([side], held, kills=kills, ladder_s=LADDER_S, troubles=troubles)


def named(balance: Balance) -> dict[str, list[str]]:
    assert balance.counted == {kind: len(balance.found[kind]) for kind in KINDS}
    assert balance.sound == (not any(balance.found.values()))
    return {kind: texts for kind, texts in balance.found.items() if texts}


def test_what_is_right_is_sound() -> None:
    balance = of(bot(TWO), both(GOOD))
    assert named(balance) == {}
    assert (balance.messages, balance.records, balance.rows, balance.verdicts) == (2, 4, 4, 0)


def test_a_lost_message() -> None:
    assert named(of(bot(TWO), both(GOOD[0:1] + GOOD[2:3]))) == {
        "lost": ["bot b: nothing is recorded of it"]
    }


def test_a_record_that_one_sink_lacks() -> None:
    held = both(GOOD, rows=["a/1", "a/2", "b/2", "c/1"])
    assert named(of(bot(TWO), held)) == {
        "lost": [
            "bot b: revision 1 is not in the tables",
            "record c/1 is in the tables and not in the lines",
        ]
    }


def test_a_fact_under_two_event_ids_is_twice() -> None:
    again = [*GOOD, line("a", 3, DELIVERED)]
    assert named(of(bot(TWO), both(again))) == {
        "twice": ["bot a: ('delivered', None, None) is recorded 2 times"]
    }


def test_a_row_that_is_in_a_table_twice() -> None:
    held = both(GOOD, rows=["a/1", "a/1", "a/2", "b/1", "b/2"])
    assert named(of(bot(TWO), held)) == {"twice": ["record a/1 is in the tables 2 times"]}


def test_a_repeated_line_needs_a_kill_and_has_to_be_the_same() -> None:
    held = both([*GOOD, GOOD[2]])
    assert named(of(bot(TWO), held)) == {"twice": ["bot a: line repeated, and nothing was killed"]}
    balance = of(bot(TWO), held, kills=[Kill(2.0, 3.0)])
    assert named(balance) == {}
    assert (balance.records, balance.repeats) == (4, 1)
    changed = msgspec.structs.replace(GOOD[2], observed_at=9.0)
    assert named(of(bot(TWO), both([*GOOD, changed]), kills=[Kill(2.0, 3.0)])) == {
        "wrong": ["bot a: two records under one event_id a/2"]
    }


def test_a_message_that_stands_wrong() -> None:
    assert named(of(bot(TWO), both(GOOD[:3]))) == {
        "wrong": ["bot b: enroute, pending, delivered is true"]
    }
    failed = Step(5.0, "failed", "rejected", final=True)
    assert named(of(bot(TWO), both([*GOOD[:3], line("b", 2, failed)]))) == {
        "wrong": [
            "bot b: failed (rejected) never said",
            "bot b: rejected (None), delivered is true",
        ]
    }


def test_a_message_that_nobody_sent() -> None:
    stranger = line("c", 1, SENT)
    assert named(of(bot(TWO), both([*GOOD, stranger]))) == {
        "wrong": ["bot c: recorded, and nobody sent it"]
    }
    elsewhere = msgspec.structs.replace(stranger, account="other")
    assert named(of(bot(TWO), both([*GOOD, elsewhere]))) == {
        "wrong": ["other: 1 messages of an account that nobody has"]
    }


def test_a_state_that_was_recorded_before_it_was_true() -> None:
    early = [*GOOD[:3], line("b", 2, DELIVERED, observed_at=4.9)]
    assert named(of(bot(TWO), both(early))) == {
        "wrong": ["bot b: delivered recorded before it was so"]
    }


def test_a_gap_in_the_revisions() -> None:
    assert named(of(bot(TWO), both([*GOOD[:3], line("b", 3, DELIVERED)]))) == {
        "gap": ["bot b: revisions [1, 3]"]
    }


@pytest.mark.parametrize(
    ("at", "right"), [(LADDER_S - 1, ["delivered"]), (LADDER_S + 1, ["delivered", "verdict"])]
)
def test_a_verdict_needs_a_state_that_came_after_the_ladder(at: float, right: list[str]) -> None:
    late = bot({"a": (SENT, Step(at, "delivered", "delivered", final=True))})
    ends = {
        "delivered": line("a", 2, late.lives["a"].steps[1]),
        "verdict": line("a", 2, SENT, final=True, verdict="last_known", observed_at=LADDER_S + 2),
    }
    for name, end in ends.items():
        found = named(of(late, both([GOOD[0], end])))
        assert found == ({} if name in right else {"wrong": [
            "bot a: enroute (last_known), delivered is true"
        ]})  # fmt: skip


def test_silence_ends_with_a_verdict() -> None:
    silent = bot({"a": ()}, provider="bulksms")
    assert named(of(silent, both([line("a", 1, None)]))) == {}
    refused = line("a", 1, None, error_code="24")
    assert named(of(silent, both([refused]))) == {
        "wrong": ["bot: 1 batches called unknown, the provider: 0"]
    }
    silent.counts = {"faults": {"error24": 1}}
    assert named(of(silent, both([refused]))) == {}


def queue(*given: Given, **keys: Any) -> Side:
    return bot(
        {"a": (OPERATOR, HANDSET), "b": (HANDSET,)}, provider="infobip", given=list(given), **keys
    )


def handed(key: str, step: Step, answer: int, at: float = 10.0, **keys: Any) -> Given:
    return Given(**{"key": key, "status": step.status, "answer": answer, "at": at,
                    "on_wire": True} | keys)  # fmt: skip


TAKEN = [line("a", 1, OPERATOR), line("a", 2, HANDSET), line("b", 1, HANDSET)]
NEVER = line("b", 1, None)
FIRST = [handed("a", OPERATOR, 1), handed("a", HANDSET, 2, 20.0)]


def test_a_one_time_report_that_was_on_the_wire_is_recorded() -> None:
    side = queue(*FIRST, handed("b", HANDSET, 3, 30.0))
    balance = of(side, both(TAKEN))
    assert named(balance) == {}
    assert balance.one_time["bot"].recorded == 3
    assert named(of(side, both([*TAKEN[:2], NEVER]))) == {
        "lost": ["bot b DELIVERED_TO_HANDSET: no kill explains it"]
    }


def test_a_kill_may_take_the_answer_on_the_wire_and_no_other() -> None:
    side = queue(*FIRST, handed("b", HANDSET, 3, 30.0))
    held = both([*TAKEN[:2], NEVER])
    balance = of(side, held, kills=[Kill(30.5, 32.0)])
    assert named(balance) == {}
    assert balance.one_time["bot"].killed == 1
    assert balance.one_time["bot"].answers == [
        "answer 3: its request came 0.500 s before a kill, 1 reports, none of it recorded"
    ]
    for other in (Kill(29.0, 29.5), Kill(70.0, 71.0)):  # before it was asked for; long after
        assert "lost" in named(of(side, held, kills=[other]))
    later = queue(*FIRST[1:], handed("b", HANDSET, 1, 5.0))  # another one was asked for since
    assert "lost" in named(of(later, held, kills=[Kill(30.5, 32.0)]))


def test_half_an_answer_is_never_allowed_to_be_lost() -> None:
    side = queue(FIRST[0], handed("a", HANDSET, 3, 30.0), handed("b", HANDSET, 3, 30.0))
    assert named(of(side, both([*TAKEN[:2], NEVER]), kills=[Kill(30.5, 32.0)])) == {
        "lost": ["bot b DELIVERED_TO_HANDSET: the rest of its answer is recorded"]
    }


def test_what_a_fault_took_is_not_lost_by_the_worker() -> None:
    held = both([*TAKEN[:2], NEVER])
    cut = of(queue(*FIRST, handed("b", HANDSET, 3, on_wire=False)), held)
    assert (named(cut), cut.one_time["bot"].cut) == ({}, 1)
    spoiled = queue(*FIRST, handed("b", HANDSET, 3, spoiled=True))
    assert named(of(spoiled, held)) == {"lost": ["bot: 1 spoiled reports, 0 are set aside"]}
    spoiled.books["set_aside"] = 1
    assert named(of(spoiled, held)) == {}


def test_a_report_that_came_after_a_newer_one_has_to_be_in_the_books() -> None:
    side = queue(*FIRST, handed("b", HANDSET, 3, 30.0))
    held = both([line("a", 1, HANDSET), TAKEN[2]])
    assert named(of(side, held)) == {
        "lost": ["bot: 1 reports came too late to count, the books have 0"]
    }
    side.books["superseded"] = 1
    assert named(of(side, held)) == {}


def test_books_limits_and_the_worker_itself() -> None:
    side = bot(TWO, violations=["rate: 11 where 10 are allowed"])
    side.books |= {"pending": 1, "final": 1, "incidents": 2}
    side.counts = {"leaked": 1}
    assert named(of(side, both(GOOD), troubles=["ended by itself"])) == {
        "wrong": [
            "bot: 2 sent, the books have 2 known, 1 final, 1 pending",
            "bot: 2 incidents",
            "bot: 1 requests leaked elsewhere",
        ],
        "limit": ["bot: rate: 11 where 10 are allowed"],
        "worker": ["ended by itself"],
    }


def test_the_newest_of_a_message_is_the_same_in_both_sinks() -> None:
    assert named(of(bot(TWO), both(GOOD, newest=["a/2", "b/1"]))) == {
        "wrong": [
            f"record {event_id}: the newest of its message in one sink alone"
            for event_id in sorted({"b/1", "b/2"})
        ]
    }


# How late it came

RUNGS_S = (1.0, 3.0, 60.0)
FOUND_S = 2.0


def lag(provider: str, *lines: Line, **lives: tuple[Step, ...]) -> list[Lag]:
    side = bot(lives, provider=provider)
    return lags(evidence.reads([side], lines, RUNGS_S, found_s=FOUND_S))


@pytest.mark.parametrize(
    ("provider", "due"), [("bulksms", 60.0), ("avaamo", 60.0 + FOUND_S), ("infobip", 5 + FOUND_S)]
)
def test_a_state_is_late_from_when_the_schedule_should_have_read_it(
    provider: str, due: float
) -> None:
    lines = [line("a", 1, SENT, observed_at=50.0), line("a", 2, DELIVERED, observed_at=due + 7)]
    (one,) = lag(provider, *lines, a=(SENT, DELIVERED))
    assert (one.states, one.p50, one.p99, one.most) == (1, 7.0, 7.0, 7.0), "final states alone"


def test_what_comes_after_the_last_rung_and_verdicts_are_not_judged() -> None:
    late = Step(61.0, "delivered", "delivered", final=True)
    lines = [line("a", 2, late, observed_at=9000.0), line("b", 1, None)]
    assert lag("avaamo", *lines, a=(SENT, late), b=()) == []


@pytest.mark.parametrize(("behind", "wrong"), [(1, False), (2, True)])
def test_an_account_that_falls_behind_is_named(behind: int, wrong: bool) -> None:
    late_s = 60.0 + FOUND_S + LAG_MAX_S + 0.1
    lines = [
        line(str(n), 2, DELIVERED, observed_at=late_s if n < behind else 60.0) for n in range(101)
    ]
    (one,) = lag("avaamo", *lines, **{str(n): (SENT, DELIVERED) for n in range(101)})
    assert one.is_behind == wrong
    balance = judge([], both([]), kills=[], ladder_s=LADDER_S, behind=[one] if wrong else [])
    assert list(named(balance)) == (["lag"] if wrong else [])


# What is read


def record(**keys: Any) -> bytes:
    known = {
        "event_id": "e", "account": "bot", "channel": "sms", "direction": "mt",
        "message_id": "m", "revision": 1, "sender": None, "recipient": None, "state": "enroute",
        "final": False, "verdict": None, "provider_status": "sent", "error_code": None,
        "sent_at": None, "observed_at": "2026-11-22T00:00:01.250Z", "extra": {},
    }  # fmt: skip
    return json.dumps(known | keys).encode() + b"\n"


def test_lines_of_all_files_in_their_order_and_what_is_torn(tmp_path: Path) -> None:
    day = "reports-2026-11-22"
    with gzip.open(tmp_path / f"{day}.jsonl.gz", "wb") as file:
        file.write(record(event_id="1"))
    (tmp_path / f"{day}.2.jsonl").write_bytes(record(event_id="3"))
    with gzip.open(tmp_path / f"{day}.1.jsonl.gz", "wb") as file:
        file.write(record(event_id="2") + record()[:40] + b"\n")
    (tmp_path / "reports.jsonl").write_bytes(record(event_id="4") + record()[:-1])
    with closing(sqlite3.connect(tmp_path / "reports.db")) as db, db:
        for name in ("reports", "messages"):
            db.execute(f"CREATE TABLE {name} (event_id TEXT)")
            db.execute(f"INSERT INTO {name} VALUES (?)", (name,))
    held = evidence.sinks(tmp_path, {"bot": "avaamo"})
    assert [one.event_id for one in held.lines] == ["1", "2", "3", "4"]
    assert [text.partition(": ")[0] for text in held.torn] == [
        f"{day}.1.jsonl.gz:2", "reports.jsonl:2"
    ]  # fmt: skip
    assert (held.rows, held.newest) == (["reports"], ["messages"])
    assert held.lines[0].observed_at % 60 == 1.25
    assert {kind for kind in named(of(bot({}), held)) if kind == "torn"} == {"torn"}


def test_both_sides_of_the_setting_are_accepted(tmp_path: Path) -> None:
    """By the simulator and by the worker; every account is in both."""
    (tmp_path / "profile.toml").write_text(setting.profile(7))
    profile = Profile.load(tmp_path / "profile.toml")
    text = setting.configuration("http://127.0.0.1:1", "2026-11-22T00:00:00+00:00")
    (tmp_path / "engine.toml").write_text(text)
    config = load(tmp_path / "engine.toml", providers=providers(), sinks=sinks())
    names = [member.name for member in setting.MEMBERS]
    assert [account.name for account in profile.accounts] == names
    assert [account.name for account in config.accounts] == names


# What is handed over


class Api:
    """In the place of the simulator's own paths: messages with ids of their own."""

    count = 0

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert path == "send"
        ids = [f"{body['account']}-{self.count + n}" for n in range(body["n"])]
        self.count += body["n"]
        return {"batch_id": ids[0], "message_ids": ids, "recipients": ids, "sent_at": 1.5}


async def test_a_sender_tracks_what_the_accounts_can_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways: into the inbox, and by the command, which takes a store that nobody has."""
    (tmp_path / "engine.toml").write_text(
        setting.configuration("http://127.0.0.1:1", "2026-11-22T00:00:00+00:00")
    )
    store = SqliteStore(tmp_path / "state.db")
    await store.open(own=True)
    await store.close()
    monkeypatch.setattr(drive, "COMMAND_EVERY", 1000)
    worker = Worker(tmp_path)
    sender = drive.Sender(Api(), tmp_path, worker, load=1.0)  # type: ignore[arg-type]
    held = make_store("sqlite", tmp_path / "state.db", "state.db")
    await held.open(own=False)
    commanded = setting.MEMBERS[0].name  # its turn is the first tick
    for member in setting.MEMBERS:
        await sender.tick(member, 20.0, held)
    await held.close()
    assert worker.troubles == []
    await store.open(own=True)
    waiting = await store.write(lambda tx: tx.inbox(1000))
    works = await store.read(lambda tx: tx.works_due(commanded, 1 << 50, 1000))
    await store.close()
    followed = {member.name for member in setting.MEMBERS if member.tracked}
    assert {item.account for item in waiting} == followed - {commanded}
    assert [work.key for work in works][:1] == [f"{commanded}-0"]
    assert sender.sent == sum(20 * member.rate for member in setting.MEMBERS)


# What is shown


def test_curves() -> None:
    assert sparkline([0, 1, 2, 4], 4) == "▁▃▅█"
    assert sparkline([1, 9, 1, 1], 2) == "█▁"
    assert sparkline([]) == ""
    drawn = svg("a < b", [Panel("p", "MiB", [("c", [[(0, 0), (1, 50)]])])], 1, [(0.5, "#f00")])
    assert "a &lt; b" in drawn
    assert drawn.count("<polyline") == 1
    assert "80 MiB" in drawn  # the axis goes to the next round number
