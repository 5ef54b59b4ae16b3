"""What `/metrics` says: counters of the processes, and the books and the log from the store.

Labels are names of accounts, sinks, states, kinds of work and workers, and lengths of windows:
nothing that a provider has said, no recipient, no id.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.core.work import NEVER_DUE_MS

from .exposition import Family
from .host import Look

# The process's counters: what each counts, and which label its subject is.
COUNTERS: dict[str, tuple[str, str]] = {
    "requests": ("account", "Requests made to the provider, logins included."),
    "failures": ("account", "Requests that brought no proper answer."),
    "records": ("account", "Records written."),
    "verdicts": ("account", "Records that are verdicts."),
    "repeated": ("account", "Reports that were known already."),
    "superseded": ("account", "Reports that lost against a newer one."),
    "set_aside": ("account", "Pieces that could not be read."),
    "unlisted": ("account", "Reports with a code that no table lists."),
    "incidents": ("account", "Gaps that could not be closed."),
    "pauses": ("account", "Times that the account was paused."),
    "handed_over": ("account", "One-time answers that went to the worker that has the account."),
    "pushed": ("account", "Reports that the provider has sent by itself."),
    "faults": ("account", "Faults in the program or a plug-in: please report them."),
    "log_full": ("", "Times that polling waited for a sink."),
    "disk_short": ("", "Times that polling waited for the disk."),
    "written": ("sink", "Records that the sink has taken."),
    "sink_failures": ("sink", "Writes that failed."),
    "dead_letters": ("sink", "Records that the sink refused for good."),
    "dead_dropped": ("sink", "The oldest of those, gone for want of room."),
}
_OTHER = ("account", "See the README's table of counters.")


def families(look: Look | None, *, began_s: float) -> list[Family]:
    """All that there is to say. `look` is None where the store does not answer."""
    found = [
        _one("dlr_start_time_seconds", "When this process began, by its clock.", began_s),
        _one("dlr_store_trouble", "1: the store cannot be used at present.", int(look is None)),
    ]
    if look is not None:
        found += _counters(look)
        found += [*_books(look), *_schedule(look), *_health(look), *_log(look)]
    return found


def _one(name: str, text: str, value: float, **labels: str) -> Family:
    family = Family(name, "gauge", text, [])
    family.add(value, **labels)
    return family


def _counters(look: Look) -> Iterator[Family]:
    made: dict[str, Family] = {}
    zeros: dict[tuple[str, str], int] = {}
    if len(look.counts) == 1:  # for alerts a counter that has not moved is there, too
        subjects = {"account": look.accounts, "sink": tuple(look.sinks), "": ("",)}
        zeros = {(n, one): 0 for n, (label, _) in COUNTERS.items() for one in subjects[label]}
    for worker, counts in sorted(look.counts.items()):
        for (name, subject), count in sorted((zeros | dict(counts)).items()):
            label, text = COUNTERS.get(name, _OTHER)
            if name not in made:
                made[name] = Family(f"dlr_{name}_total", "counter", text, [])
            made[name].add(count, worker=worker, **({label: subject} if label else {}))
    yield from made.values()


def _books(look: Look) -> Iterator[Family]:
    states = Family("dlr_messages", "gauge", "Messages by state.", [])
    verdicts = Family("dlr_verdicts", "gauge", "Messages whose newest record is a verdict.", [])
    sides = [
        ("known", "Messages that are known: final and pending."),
        ("final", "Messages whose outcome is known, or of which nothing more is expected."),
        ("pending", "Messages that are not final."),
    ]
    kept = [
        ("records", "Records that the store has numbered, ever."),
        ("set_aside", "Pieces that could not be read, ever."),
        ("replayed", "Of those, the ones that were read after all."),
        ("unlisted", "Reports with a code that no table lists, ever."),
        ("superseded", "Reports that lost against a newer one, ever."),
    ]
    plain = {key: Family(f"dlr_messages_{key}", "gauge", text, []) for key, text in sides}
    plain |= {key: Family(f"dlr_stored_{key}", "gauge", text, []) for key, text in kept}
    incidents = Family("dlr_stored_incidents", "gauge", "Gaps that stayed open, ever.", [])
    for account in look.accounts:
        tally = look.tallies.get(account, {})
        for key, family in plain.items():
            family.add(tally.get(key, 0), account=account)
        for key, count in sorted(tally.items()):
            part, _, rest = key.partition(":")
            if part == "state":
                states.add(count, account=account, state=rest)
            elif part == "verdict":
                verdicts.add(count, account=account, verdict=rest)
            elif part == "incident":
                incidents.add(count, account=account, kind=rest)
    yield from (states, verdicts, *plain.values(), incidents)


def _schedule(look: Look) -> Iterator[Family]:
    scheduled = Family("dlr_scheduled", "gauge", "Polls in the schedule.", [])
    due = Family("dlr_due", "gauge", "Polls that are due now.", [])
    late = Family(
        "dlr_lateness_seconds",
        "gauge",
        "How long the poll that is due the longest has been due.",
        [],
    )
    following = Family("dlr_next_poll_timestamp_seconds", "gauge", "When the next poll is due.", [])
    for account in look.accounts:
        for kind, (count, now, first_ms) in sorted(look.works.get(account, {}).items()):
            labels = {"account": account, "kind": kind.value}
            scheduled.add(count, **labels)
            due.add(now, **labels)
            late.add(max(0, look.at_ms - first_ms) / 1000 if now else 0, **labels)
            if count and first_ms < NEVER_DUE_MS:
                following.add(first_ms / 1000, **labels)
    yield from (scheduled, due, late, following)


def _health(look: Look) -> Iterator[Family]:
    texts = {
        "paused": "1: the provider refuses the account's credentials.",
        "failing": "1: the latest request failed.",
        "waits": "1: the engine asks nothing, for want of room or of a lease.",
    }
    flags = {key: Family(f"dlr_{key}", "gauge", text, []) for key, text in texts.items()}
    held = Family("dlr_hold_seconds", "gauge", "How long the account is still held.", [])
    row = Family("dlr_failures_in_a_row", "gauge", "Failures since the last proper answer.", [])
    answered = Family(
        "dlr_answered_timestamp_seconds", "gauge", "When the provider last answered properly.", []
    )
    used = Family("dlr_limit_used", "gauge", "Requests that count in the window now.", [])
    allowed = Family("dlr_limit_requests", "gauge", "Requests that the window allows.", [])
    for account in look.accounts:
        status: dict[str, Any] = look.statuses.get(account, {})
        if not status:
            continue
        for key, family in flags.items():
            family.add(int(bool(status.get(key))), account=account)
        held.add(status.get("hold_s", 0), account=account)
        row.add(status.get("failures", 0), account=account)
        if status.get("answered_ms") is not None:
            answered.add(status["answered_ms"] / 1000, account=account)
        for rate in status.get("used", []):
            labels = {"account": account, "per": f"{rate['per_s']:g}"}
            used.add(rate["used"], **labels)
            allowed.add(rate["requests"], **labels)
    yield from (*flags.values(), held, row, answered, used, allowed)


def _log(look: Look) -> Iterator[Family]:
    rows = Family("dlr_log_rows", "gauge", "Rows of the log that are kept.", [])
    position = Family("dlr_sink_position", "gauge", "The log row that the sink takes next.", [])
    behind = Family("dlr_sink_behind_rows", "gauge", "Log rows that wait for the sink.", [])
    size = Family("dlr_sink_behind_bytes", "gauge", "Their bytes.", [])
    failing = Family("dlr_sink_failing", "gauge", "1: the sink cannot be written.", [])
    letters = Family("dlr_sink_dead_letters", "gauge", "Dead letters that are kept.", [])
    bulk = Family("dlr_sink_dead_letter_bytes", "gauge", "Their bytes.", [])
    inbox = Family("dlr_inbox_waiting", "gauge", "1: something waits in the inbox.", [])
    for account in look.accounts:
        if account in look.bounds:
            start, end = look.bounds[account]
            rows.add(end - start, account=account)
    for sink, trouble in sorted(look.sinks.items()):
        for account in look.accounts:
            if account not in look.places.get(sink, {}):
                continue
            position.add(look.places[sink][account][0], sink=sink, account=account)
            behind.add(look.behind(sink, account), sink=sink, account=account)
            size.add(look.backlog.get(sink, {}).get(account, 0), sink=sink, account=account)
        failing.add(int(trouble is not None), sink=sink)
        count = look.dead.get(sink)
        letters.add(count.letters if count else 0, sink=sink)
        bulk.add(count.bytes if count else 0, sink=sink)
    inbox.add(int(look.inbox))
    yield from (rows, position, behind, size, failing, letters, bulk, inbox)
