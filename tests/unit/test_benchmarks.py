"""The benchmarks at a tiny size: that each still runs and counts what it should, never how fast."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks import drain, durability, ladder, memory, postgres_store, sinks, throughput
from benchmarks.__main__ import CASES, main
from benchmarks.harness import Row, each_once, machine, table
from tests.services import require


def test_memory_counts_every_item_of_one_answer() -> None:
    (row,) = memory.run(1, 1)
    assert row.faults == []
    assert row.values["requests"] == 1


def test_drain_agrees_with_the_simulators_ledger() -> None:
    (row,) = drain.run(1200, 1)
    assert row.faults == []
    assert row.values["requests"] == 3  # two pages, and the empty one


def test_durability_counts_the_syncs_of_each_level() -> None:
    full, normal, off = durability.run(100, 1)
    assert full.faults == normal.faults == off.faults == []
    assert full.values["syncs/answer"] > off.values["syncs/answer"]
    assert normal.values["syncs/answer"] > off.values["syncs/answer"]


def test_ladder_asks_for_each_batch_once_and_not_too_early() -> None:
    (row,) = ladder.run(20, 1)
    assert row.faults == []
    assert row.values["batches"] == 20


@pytest.mark.parametrize(
    ("case", "size", "count"),
    [
        (throughput.infobip_pages, 8000, 8000),
        (throughput.avaamo_pages, 300, 300),
        (throughput.bulksms_polls, 20, 20),
    ],
)
def test_engine_and_loop_take_the_same_records(case: object, size: int, count: int) -> None:
    assert callable(case)
    rows: list[Row] = case(size, 1)
    assert [row.name for row in rows] == ["engine", "bare loop"]
    assert all(row.faults == [] for row in rows)
    assert all(row.values["records"] == count for row in rows)


def test_each_sink_stands_beside_its_library() -> None:
    for service in ("postgres",):
        require(service)
    rows = sinks.run(3, 1)
    assert [row.name for row in rows] == list(sinks.pairs())
    assert all(row.values["records"] == 3 for row in rows)


def test_pages_into_postgres_are_there_once() -> None:
    require("postgres")
    rows = postgres_store.run(8000, 1)
    assert [row.name for row in rows] == [
        "new, 1 process",
        "another state",
        "new, 2 processes",
        "new, 4 processes",
    ]
    wrong = [fault for row in rows for fault in row.faults if "expected" in fault]
    assert wrong == []  # what else there may be is about time


def test_idle_start_from_the_command_line_is_kept_as_json(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    main(["idle-start", "--size", "1", "--json", str(file)])  # its status would be about time
    kept = msgspec.json.decode(file.read_bytes())
    assert set(kept["machine"]) == set(machine())
    (row,) = kept["cases"]["idle-start"]["rows"]
    assert not [fault for fault in row["faults"] if "exit" in fault]
    assert len(row["values"]) == 5


def test_cases_have_names_of_their_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 0


def test_a_record_that_is_missing_or_there_twice_is_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "reports.jsonl"
    file.write_text('{"account":"a","event_id":"1"}\n' * 2)
    assert each_once(file, 2) == ["records: 1 are there twice"]
    assert each_once(file, 3) == ["records: expected 3, got 2", "records: 1 are there twice"]


def test_a_fault_stands_below_its_table() -> None:
    text = table("t", [Row(name="a", values={"n": 1000}, faults=["too slow"])])
    assert text.splitlines() == ["t", "       n", "a  1,000", "  FAULT a: too slow"]
