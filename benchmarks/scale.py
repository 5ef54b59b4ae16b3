"""The arithmetic of `SCALE.md`; `benchmarks.written` puts its tables into the page.

Everything comes out of a result's measured costs and the assumptions below. What a result has not
measured (`postgres-store`, say) is not in it.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from benchmarks.goals import markdown

DAY_S = 86_400
US = 1e6
TB, GB = 1e12, 1e9


class Assumed(msgspec.Struct, frozen=True):
    """What the load looks like; each can be disputed, and is written into the page."""

    messages: float = 1e9  # a day
    accounts: int = 1000
    peak: float = 3.0  # the busiest hour beside the mean
    records: float = 1.2  # a message: most bring one report, some a state on the way
    interval_s: float = 10.0  # between two polls of a feed
    page: int = 1000
    polls: float = 1.3  # a batch, until it is final
    batch: int = 100  # recipients of a batch, where there are batches
    limit: float = 10.0  # requests a second that a provider allows an account
    full: float = 0.7  # of a core, at the peak, before answers begin to wait
    retention_days: int = 30


class Costs(msgspec.Struct, frozen=True):
    """What was measured: processor time, bytes, and the machine's rates."""

    report_us: float  # of a page of 1,000
    poll_us: float  # with one row, over TLS
    row_us: float  # a report in a small page
    record_bytes: float  # in a jsonl sink
    state_bytes: float  # a message in the store, its log row included
    claims: float  # due polls a second that the schedule gives
    pending_mib: float
    reports_a_s: float  # that one process took in, all told
    polls_a_s: float
    database_a_s: float = 0.0  # new messages a second that one PostgreSQL took; 0: not measured
    wal_bytes: float = 0.0  # a report there


def costs(cases: dict[str, Any]) -> Costs:
    """Raises KeyError where a case that is needed is not in the result."""

    def values(case: str, row: str) -> dict[str, Any]:
        rows = cases[case]["rows"]
        return dict(next(one for one in rows if one["name"].startswith(row))["values"])

    pages, small = values("throughput", "engine"), values("avaamo-pages", "engine")
    polls, state = values("bulksms-tls", "engine"), values("growth", "state")
    schedule = values("schedule", "")
    database = values("postgres-store", "new, 4") if "postgres-store" in cases else {}
    return Costs(
        report_us=pages["CPU us/record"],
        poll_us=polls["CPU us/record"],
        row_us=small["CPU us/record"],
        record_bytes=state["sink bytes/record"],
        state_bytes=state["state bytes/message"],
        claims=schedule["claimed and put again/s"],
        pending_mib=schedule["worker, MiB"],
        reports_a_s=pages["records/s"],
        polls_a_s=polls["records/s"],
        database_a_s=database.get("reports/s", 0.0),
        wal_bytes=database.get("wal bytes/report", 0.0),
    )


def load(given: Assumed, cost: Costs) -> list[list[str]]:
    """Three ways to hear of the same messages: requests and cores at the peak."""
    a_second = given.messages / DAY_S * given.peak
    reports = a_second * given.records
    feed_polls = max(given.accounts / given.interval_s, reports / given.page)
    lines = [["", "requests a second", "of the limit", "processor time", "cores", "processes"]]
    ways = (
        ("one-time feeds, pages of 1,000", feed_polls, reports * cost.report_us),
        (
            f"batches of {given.batch} on the ladder",
            a_second / given.batch * given.polls,
            reports * cost.row_us,
        ),
        ("a batch a message", a_second * given.polls, 0.0),
    )
    for name, polls, reports_us in ways:
        used = (polls * cost.poll_us + reports_us) / US
        cores = used / given.full
        lines.append(
            [
                name,
                f"{polls:,.0f}",
                f"{polls / (given.accounts * given.limit):.1%}",
                f"{used:,.2f} s a second",
                f"{cores:,.1f}",
                f"{math.ceil(cores):,}",
            ]
        )
    return lines


def disk(given: Assumed, cost: Costs) -> list[list[str]]:
    """What lies there, and what is written."""
    records = given.messages * given.records
    sink, state = records * cost.record_bytes, given.messages * cost.state_bytes
    written = sink + state * 2  # the store once into the WAL, once into the database
    wal = records * cost.wal_bytes
    database = [["WAL of a PostgreSQL store instead", f"{wal / TB:.2f} TB", "", ""]] if wal else []
    return [
        ["", "a day", "kept", "in all"],
        ["the store, log included", f"{state / TB:.2f} TB", f"{given.retention_days} days",
         f"{state * given.retention_days / TB:.1f} TB"],
        ["a jsonl sink, uncompressed", f"{sink / TB:.2f} TB", "as you like", ""],
        ["written, at least", f"{written / TB:.2f} TB", "",
         f"{written / DAY_S / 1e6:,.0f} MB a second"],
        *database,
    ]  # fmt: skip


def breaks(given: Assumed, cost: Costs) -> list[list[str]]:
    """How many messages a day each thing carries by itself, the least first."""
    share = given.full / given.peak * DAY_S

    def carried(a_second: float, each: float) -> float:
        return a_second * share / each

    each_state = cost.state_bytes * given.retention_days
    limited = given.accounts * given.limit / given.peak * DAY_S
    rows = [
        ("one process, a batch a message", carried(cost.polls_a_s, given.polls)),
        ("one process, one-time feeds", carried(cost.reports_a_s, given.records)),
        ("one schedule in SQLite, a batch a message", carried(cost.claims, given.polls)),
        ("the providers' limits, a batch a message", limited / given.polls),
        (f"the providers' limits, batches of {given.batch}", limited / given.polls * given.batch),
        ("1 TB of disk for one store", TB / each_state),
    ]
    if cost.database_a_s:
        rows.append(("one PostgreSQL", carried(cost.database_a_s, given.records)))
    rows.sort(key=lambda row: row[1])
    shown = [[name, f"{n / 1e6:,.0f} million"] for name, n in rows]
    return [["what", "messages a day"], *shown]


def page(cases: dict[str, Any], given: Assumed = Assumed()) -> str:  # noqa: B008 - it is frozen
    """The computed part of the page."""
    cost = costs(cases)
    measured = [
        ["measured", ""],
        ["a report of a page of 1,000", f"{cost.report_us:.1f} us of processor time"],
        ["a report of a page of 100", f"{cost.row_us:.1f} us"],
        ["a poll with one row, over TLS", f"{cost.poll_us:,.0f} us"],
        ["a record in a jsonl sink", f"{cost.record_bytes:,.0f} bytes"],
        ["a message in the store, log included", f"{cost.state_bytes:,.0f} bytes"],
        ["due polls that the schedule gives", f"{cost.claims:,.0f} a second"],
    ]
    assumed = [["assumed", ""]] + [
        [name, f"{getattr(given, name):,g}"] for name in given.__struct_fields__
    ]
    parts = (
        ("", measured),
        ("", assumed),
        ("At the peak, all accounts together:\n\n", load(given, cost)),
        ("Disk, all accounts together:\n\n", disk(given, cost)),
        ("Where it ends, taken one by one, with the peak allowed for:\n\n", breaks(given, cost)),
    )
    return "\n".join(text + markdown(lines) for text, lines in parts)
