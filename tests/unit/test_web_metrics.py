"""`/metrics`: the text format, and what it says of a look."""

from __future__ import annotations

import re
from pathlib import Path

from engine.core.contracts import Kind
from engine.core.work import NEVER_DUE_MS
from engine.stores.transaction import DeadCount
from engine.web.exposition import Family, render
from engine.web.host import Look
from engine.web.metrics import COUNTERS, families

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")

SAMPLE = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)"
    r'(?:\{(?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*\})?'
    r" (?P<value>NaN|[+-]Inf|-?[0-9.]+(?:e[+-]?[0-9]+)?)"
)


def read(text: str) -> dict[str, float]:
    """The samples of a text that is held to the format: HELP, TYPE, then samples of that name."""
    assert text.endswith("\n")
    found: dict[str, float] = {}
    name, seen = "", set()
    lines = iter(text.removesuffix("\n").split("\n"))
    for line in lines:
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            assert name.startswith("dlr_")
            assert name not in seen
            seen.add(name)
            assert re.fullmatch(rf"# TYPE {name} (counter|gauge)", next(lines))
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample is not None, line
        assert sample["name"] == name
        key = line.rpartition(" ")[0]
        assert key not in found
        found[key] = float(sample["value"])
    return found


def test_labels_and_help_are_escaped() -> None:
    family = Family("dlr_x", "gauge", "a\\b\nc", [])
    family.add(1.5, of='q"\\\n', none="")
    family.add(2)
    assert render([family, Family("dlr_none", "gauge", "", [])]) == (
        '# HELP dlr_x a\\\\b\\nc\n# TYPE dlr_x gauge\ndlr_x{of="q\\"\\\\\\n"} 1.5\ndlr_x 2\n'
    )


def test_numbers_as_prometheus_reads_them() -> None:
    family = Family("dlr_x", "gauge", "", [])
    values = (0, 12345678901234567890, 0.1, 1e300, float("inf"), float("-inf"), float("nan"))
    for n, value in enumerate(values):
        family.add(value, n=str(n))
    lines = render([family]).splitlines()[2:]
    assert [line.rpartition(" ")[2] for line in lines] == [
        "0", "12345678901234567890", "0.1", "1e+300", "+Inf", "-Inf", "NaN",
    ]  # fmt: skip


LOOK = Look(
    at_ms=1_780_000_010_000,
    accounts=("a",),
    tallies={
        "a": {
            "known": 5, "final": 3, "pending": 2, "state:delivered": 3, "state:enroute": 2,
            "verdict:last_known": 1, "records": 9, "set_aside": 4, "incident:short_window": 2,
        },
        "of nobody here": {"known": 7},
    },
    works={"a": {Kind.FEED: (1, 1, 1_780_000_000_000), Kind.BATCH: (3, 0, NEVER_DUE_MS)}},
    bounds={"a": (11, 21)},
    places={"lines": {"a": (18, 0)}, "new": {"a": (1, 0)}},
    backlog={"lines": {"a": 3000}},
    dead={"lines": DeadCount(letters=2, bytes=99, first_ms=0, last_id=2)},
    inbox=True,
    statuses={
        "a": {
            "paused": "why it is paused", "failing": None, "waits": None, "hold_s": 12,
            "failures": 3, "answered_ms": 1_780_000_000_500,
            "used": [{"requests": 5, "per_s": 1.0, "used": 4}],
        }
    },
    sinks={"lines": "why it fails", "new": None},
    counts={"": {("requests", "a"): 70, ("written", "lines"): 8, ("disk_short", ""): 1}},
)  # fmt: skip


def test_what_is_said_of_a_look() -> None:
    text = render(families(LOOK, began_s=1.0))
    said = read(text)
    assert (
        said.items()
        >= {
            "dlr_store_trouble": 0,
            'dlr_requests_total{account="a"}': 70,
            'dlr_failures_total{account="a"}': 0,
            'dlr_written_total{sink="lines"}': 8,
            'dlr_written_total{sink="new"}': 0,
            "dlr_disk_short_total": 1,
            'dlr_messages{account="a",state="delivered"}': 3,
            'dlr_messages_known{account="a"}': 5,
            'dlr_messages_pending{account="a"}': 2,
            'dlr_verdicts{account="a",verdict="last_known"}': 1,
            'dlr_stored_set_aside{account="a"}': 4,
            'dlr_stored_incidents{account="a",kind="short_window"}': 2,
            'dlr_due{account="a",kind="feed"}': 1,
            'dlr_lateness_seconds{account="a",kind="feed"}': 10,
            'dlr_lateness_seconds{account="a",kind="batch"}': 0,
            'dlr_next_poll_timestamp_seconds{account="a",kind="feed"}': 1_780_000_000,
            'dlr_paused{account="a"}': 1,
            'dlr_failing{account="a"}': 0,
            'dlr_hold_seconds{account="a"}': 12,
            'dlr_answered_timestamp_seconds{account="a"}': 1_780_000_000.5,
            'dlr_limit_used{account="a",per="1"}': 4,
            'dlr_limit_requests{account="a",per="1"}': 5,
            'dlr_log_rows{account="a"}': 10,
            'dlr_sink_position{sink="lines",account="a"}': 18,
            'dlr_sink_behind_rows{sink="lines",account="a"}': 3,
            'dlr_sink_behind_rows{sink="new",account="a"}': 10,
            'dlr_sink_behind_bytes{sink="lines",account="a"}': 3000,
            'dlr_sink_failing{sink="lines"}': 1,
            'dlr_sink_dead_letters{sink="lines"}': 2,
            "dlr_inbox_waiting": 1,
        }.items()
    )
    assert 'kind="batch"} 253' not in text  # a time that never comes
    assert "nobody" not in text
    assert "why" not in text


def test_the_counters_of_several_workers_keep_apart() -> None:
    counts = {"h-1": {("requests", "a"): 3}, "h-2": {("requests", "a"): 4}}
    said = read(render(families(Look(at_ms=0, accounts=("a",), counts=counts), began_s=0)))
    assert said['dlr_requests_total{worker="h-1",account="a"}'] == 3
    assert said['dlr_requests_total{worker="h-2",account="a"}'] == 4


def test_a_store_that_does_not_answer_is_told() -> None:
    assert read(render(families(None, began_s=2.5))) == {
        "dlr_start_time_seconds": 2.5, "dlr_store_trouble": 1,
    }  # fmt: skip


def test_every_counter_of_the_readme_has_its_words() -> None:
    (table,) = re.findall(r"(?s)\| counter \| counts \|\n(.*?)\n\n", README)
    named = re.findall(r"`(\w+)`", "\n".join(row.split("|")[1] for row in table.splitlines()))
    assert set(named) == set(COUNTERS)


def test_every_metric_is_described_in_the_readme() -> None:
    names = {family.name for family in families(LOOK, began_s=0)}
    gauges = {name for name in names if not name.endswith("_total")}
    code = " ".join(re.findall(r"`[^`\n]+`", README))
    assert [name for name in sorted(gauges) if not re.search(rf"\b{name}\b", code)] == []
