"""The benchmarks at a tiny size: that each still runs and counts what it should, never how fast."""

from __future__ import annotations

import asyncio
from pathlib import Path
from xml.etree import ElementTree

import anyio
import asyncpg
import msgspec
import pytest

from benchmarks import (
    drain,
    durability,
    goals,
    growth,
    ladder,
    mapping,
    memory,
    parse,
    plots,
    postgres_store,
    rivals,
    scale,
    schedule,
    shapes,
    sinks,
    throughput,
    written,
)
from benchmarks.__main__ import CASES, main
from benchmarks.harness import Row, each_once, machine, table
from tests.services import CI, require


@pytest.mark.parametrize(
    ("case", "size", "count"),
    [
        (throughput.infobip_pages, 8000, 8000),
        (throughput.avaamo_pages, 300, 300),
        (throughput.bulksms_polls, 20, 20),
        (throughput.bulksms_tls, 20, 20),
    ],
)
def test_engine_and_loops_take_the_same_records(case: object, size: int, count: int) -> None:
    assert callable(case)
    rows: list[Row] = case(size, 1)
    assert [row.name for row in rows] == [
        "engine", "bare loop", "bare loop, mapped", "server alone",
    ]  # fmt: skip
    assert all(row.faults == [] for row in rows)
    assert all(row.values["records"] == count for row in rows)


def test_memory_compares_every_item_of_one_answer() -> None:
    idle, *rows = memory.run(1, 1)
    assert idle.values["peak MiB"]
    assert [row.faults for row in rows] == [[], [], []]
    assert rows[-1].name == "largest: 3,000 items"


def test_schedule_keeps_every_pending_batch() -> None:
    (row,) = schedule.run(500, 1)
    assert row.faults == []
    assert row.values["pending"] == 500


def test_growth_has_a_cost_for_each_part() -> None:
    row, _ = growth.run(16_000, 1)
    assert row.faults == []
    assert row.series["us a record"][-1][0] == 16_000


def test_lateness_asks_for_each_batch_once_and_not_too_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ladder, "LOADS", (0.8,))
    rows = ladder.run(40, 1)
    assert [row.faults for row in rows] == [[], []]
    assert [row.values["batches"] for row in rows] == [40, 32]
    assert [x for x, _ in rows[1].series["p99"]] == [80]


def test_both_ways_of_parsing_count_every_record() -> None:
    rows = parse.run_json(1, 1) + parse.run_pipe(1000, 1)
    assert [row.faults for row in rows] == [[]] * 8
    counts = [row.values["records"] for row in rows]
    assert counts[::2] == counts[1::2]


@pytest.mark.parametrize("rival", rivals.RIVALS, ids=lambda rival: rival.name)
def test_rivals_take_the_same_records(rival: rivals.Rival) -> None:
    """CI makes the environments that take some seconds; airbyte-cdk's takes minutes and 340 MB."""
    if CI and rival.package != "airbyte-cdk":
        assert rivals.environment(rival) == rivals.python(rival)
    if not rivals.installed(rival):
        pytest.skip(f"no environment with {rival.package}: `scripts/bench rivals` makes it")
    with throughput.one_time(8000) as work:
        _, faults = rivals.through(rival, rivals.python(rival), work, "once")
    assert faults == []


def test_drain_agrees_with_the_simulators_ledger() -> None:
    (row,) = drain.run(1200, 1)
    assert row.faults == []
    assert row.values["requests"] == 3  # two pages, and the empty one


def test_durability_counts_the_syncs_of_each_level() -> None:
    full, normal, off = durability.run(100, 1)
    assert full.faults == normal.faults == off.faults == []
    assert full.values["syncs/answer"] > off.values["syncs/answer"]
    assert normal.values["syncs/answer"] > off.values["syncs/answer"]


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
    if asyncio.run(_server_is_near()):
        assert all(row.values["server cpu us/report"] > 0 for row in rows)


async def _server_is_near() -> bool:
    """Whether its processes can be seen from here."""
    database = await asyncpg.connect(postgres_store.POSTGRES)
    try:
        return await anyio.Path(f"/proc/{database.get_server_pid()}/stat").exists()
    finally:
        await database.close()


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


def test_every_goal_is_that_of_a_case() -> None:
    assert {goal.case for goal in goals.GOALS} <= {case.name for case in CASES}


@pytest.mark.parametrize(
    ("measured", "says"), [(0.79, "missed"), (0.8, "least"), (1.29, "least"), (1.3, "aim")]
)
def test_a_ratio_misses_or_reaches_its_goal(measured: float, says: str) -> None:
    row = {"name": "engine", "values": {"ratio": measured}}
    (verdict,) = goals.verdicts({"throughput": {"rows": [row], "size": 1, "unit": "records"}})
    assert verdict.says == says


def test_lateness_is_better_when_it_is_less() -> None:
    row = {"name": "80%, run 1", "values": {"p99 ms": 101.0}}
    (verdict,) = goals.verdicts({"lateness": {"rows": [row], "size": 1, "unit": "polls"}})
    assert verdict.says == "missed"
    assert goals.summary([verdict])[1][-3:] == ["101 ms", "MISSED", ""]


def test_a_records_wrong_field_is_a_fault(tmp_path: Path) -> None:
    shape = shapes.Avaamo({"accounts": ["bot"], "size": 2, "pages": 1, "start_s": 1_800_000_000})
    given = [shape.expected("bot", n, {}) for n in range(2)]
    for record in given:
        record["observed_at"] = "2027-01-15T08:00:00.000Z"
    file = tmp_path / "reports.jsonl"

    def faults() -> list[str]:
        file.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in given))
        return shapes.compare(file, shape)

    assert faults() == []
    given[1]["recipient"] = "+1"
    assert [fault.partition(",")[0] for fault in faults()] == ["records: 1 are not as expected"]
    del given[1]
    given.append(given[0])
    assert faults() == ["records: 1 are missing", "records: 1 are there twice"]


def test_the_pages_show_the_recorded_result() -> None:
    for file, text in written.pages(msgspec.json.decode(written.RESULT.read_bytes())).items():
        assert file.read_text(encoding="utf-8") == text, "run `python -m benchmarks.written`"


def test_twice_the_messages_are_twice_the_disk() -> None:
    cost = scale.Costs(**dict.fromkeys(scale.Costs.__struct_fields__, 100.0))
    once, twice = (scale.disk(scale.Assumed(messages=n), cost)[1][3] for n in (1e9, 2e9))
    assert (once, twice) == ("3.0 TB", "6.0 TB")


def test_plots_are_drawn_beside_the_result(tmp_path: Path) -> None:
    cases = {
        "throughput": {"rows": [{"name": "engine", "values": {"ratio": 0.5, "records/s": 9.0}}]},
        "memory": {"rows": [{"name": "largest", "series": {"peak": [[1.0, 50.0], [2.0, 60.0]]}}]},
    }
    drawn = plots.draw(cases, tmp_path, "memory")
    assert [file.name for file in drawn] == ["memory-throughput.svg", "memory.svg"]
    for file in drawn:
        assert ElementTree.parse(file).getroot().tag.endswith("svg")


def test_a_record_that_is_missing_or_there_twice_is_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "reports.jsonl"
    file.write_text('{"account":"a","event_id":"1"}\n' * 2)
    assert each_once(file, 2) == ["records: 1 are there twice"]
    assert each_once(file, 3) == ["records: expected 3, got 2", "records: 1 are there twice"]


def test_a_fault_stands_below_its_table() -> None:
    text = table("t", [Row(name="a", values={"n": 1000}, faults=["too slow"])])
    assert text.splitlines() == ["t", "       n", "a  1,000", "  FAULT a: too slow"]


def test_mapping_reads_every_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its answers by both ways; twice, since what an account's records have is learnt."""
    monkeypatch.setattr(mapping, "RECORDS", 400)
    for provider, body in mapping.cases().values():
        chunks = mapping.pieces(body)
        ways = (mapping.parsed, mapping.one_by_one, mapping.mapped, mapping.mapped)
        assert [way(provider, chunks) for way in ways] == [400] * 4
