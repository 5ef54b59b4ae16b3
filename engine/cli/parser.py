"""The command line: commands, their arguments, and help that shows how they are used.

Only what a word on the command line means is decided here; whether an account exists or a file can
be read is the command's own affair. It must import nothing heavy, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from engine import __version__

from . import words

_ABOUT = """\
Polls SMS and messaging providers for delivery reports and writes them to sinks.

It asks each account no faster than its limits allow, keeps what it has read in a store before it
asks again, and writes one JSON record for every change of a message's state.
"""

_START = """\
examples:
  dlr-engine demo                                  see it work, nothing to set up
  dlr-engine check --config engine.toml --connect  is the configuration right, do the keys fit
  dlr-engine run --config engine.toml              poll until stopped
  dlr-engine track --config engine.toml --account bulk-eu --batch-id 4711 --recipients 447700900001
  dlr-engine show --config engine.toml --recipient "+44 7700 900001"
  dlr-engine stats --config engine.toml

exit status: 0 done; 1 it failed while running; 2 the command line or configuration is wrong.
`dlr-engine COMMAND --help` tells more about a command.
"""


class _Parser(argparse.ArgumentParser):
    """One line for the mistake and one for where to read on, instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n{self.prog}: see `{self.prog} --help`\n")


def build() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="dlr-engine",
        description=_ABOUT,
        epilog=_START,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dlr-engine {__version__}")
    _loudness(parser, first=True)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _run(commands)
    _check(commands)
    _track(commands)
    _backfill(commands)
    _ingest(commands)
    _show(commands)
    _stats(commands)
    _replay(commands)
    _dead_letter(commands)
    _sinks(commands)
    _simulate(commands)
    _demo(commands)
    return parser


def _loudness(parser: argparse.ArgumentParser, *, first: bool = False) -> None:
    """-v and -q, before the command and behind it."""
    default: Any = False if first else argparse.SUPPRESS
    loud = parser.add_mutually_exclusive_group()
    loud.add_argument(
        "-v", "--verbose", action="store_true", default=default, help="log details, for debugging"
    )
    loud.add_argument(
        "-q", "--quiet", action="store_true", default=default, help="log warnings and errors alone"
    )


def _command(
    commands: Any, name: str, summary: str, about: str, examples: Sequence[str], *, config: bool
) -> argparse.ArgumentParser:
    shown = "\n".join(f"  dlr-engine {name} {example}".rstrip() for example in examples)
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=about,
        epilog=f"examples:\n{shown}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if config:
        parser.add_argument(
            "--config", type=Path, required=True, metavar="F", help="the configuration (TOML)"
        )
    _loudness(parser)
    return parser


def _run(commands: Any) -> None:
    parser = _command(
        commands,
        "run",
        "the worker: poll every account, write every sink",
        "Polls every account and writes every sink until it is stopped.\n\n"
        "One worker owns a SQLite store; a second one is refused. A PostgreSQL store is shared by\n"
        "any number of workers, on any number of machines, --workers N of them here.\n\n"
        "SIGTERM or Ctrl-C: no new polls, what is on its way is taken in, sinks are flushed. A\n"
        "second signal ends it at once; the store stays whole. Log lines go to stderr; on a\n"
        "terminal a live view stands below them.",
        [
            "--config engine.toml",
            "--config engine.toml --once                       for cron",
            "--config engine.toml --until-idle --idle-timeout 10m",
            "--config engine.toml --workers 4",
        ],
        config=True,
    )
    parser.add_argument(
        "--workers",
        type=words.workers,
        default=1,
        metavar="N",
        help="so many processes, which share the accounts of a PostgreSQL store (default 1)",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--once", action="store_true", help="do what is due now, write it out, end")
    mode.add_argument(
        "--until-idle",
        action="store_true",
        help="end once all that is tracked has ended, and feeds and sinks are through; 1 where"
        " only what is paused or dead is left",
    )
    parser.add_argument(
        "--idle-timeout",
        type=words.duration,
        default=None,
        metavar="D",
        help="how long --until-idle waits for what is paused or dead (default 5m)",
    )


def _check(commands: Any) -> None:
    parser = _command(
        commands,
        "check",
        "validate a configuration and say what would run",
        "Reads the configuration, names all of its faults, and says what would run: secrets are\n"
        "shown as ***. For each account it says what the schedule needs beside what the limits\n"
        "allow. With --connect every sink is opened and every account asked one harmless\n"
        "question inside its limits, by the worker itself where one is running.",
        ["--config engine.toml", "--config engine.toml --connect"],
        config=True,
    )
    parser.add_argument(
        "--connect", action="store_true", help="open every sink, ask every account one question"
    )


def _track(commands: Any) -> None:
    parser = _command(
        commands,
        "track",
        "hand over what was sent",
        "Takes batches or messages into the schedule. Tracking the same again adds what is new\n"
        "and changes nothing else. A worker that runs on the same store picks it up at once.\n\n"
        "A file has the columns batch_id, message_id, recipient, reference, sent_at (those that\n"
        "are needed), a message or a batch a row: .csv with a header row, or .jsonl. Rows of one\n"
        "batch belong together. Nothing is taken from a file that has a fault.",
        [
            "--config engine.toml --account bulk-eu --batch-id 4711 --recipients 447700900001",
            "--config engine.toml --account bot --message-id 6f1c… --sent-at 2026-11-21T12:00:00Z",
            "--config engine.toml --account bulk-eu --file sent.csv",
        ],
        config=True,
    )
    parser.add_argument("--account", required=True, metavar="A", help="the account it was sent by")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--batch-id", type=words.text, metavar="B", help="a batch")
    what.add_argument("--message-id", type=words.text, metavar="M", help="a message")
    what.add_argument("--file", type=Path, metavar="F", help="many of them: .csv or .jsonl")
    parser.add_argument("--recipients", metavar="R1,R2,…", help="of the batch")
    parser.add_argument("--recipient", type=words.text, metavar="R", help="of the message")
    parser.add_argument(
        "--sent-at", type=words.time, metavar="T", help="RFC 3339 or epoch seconds (default now)"
    )
    parser.add_argument("--reference", type=words.text, metavar="X", help="your own id for it")


def _backfill(commands: Any) -> None:
    parser = _command(
        commands,
        "backfill",
        "read a past period of a windowed feed",
        "Reads what was sent from T to T at avaamo or messangi, in slices as long as a window may\n"
        "be, beside the ordinary feed and inside the account's limits. Where a worker is running\n"
        "it is the worker that does it, and this command shows how far it is; else it is done\n"
        "here. Ctrl-C stops it; the same command goes on from where it was, also after a crash.\n"
        "Exit status 1: it could not be read to its end.",
        [
            "--config engine.toml --account omni --from 2026-06-01T00:00:00Z"
            " --to 2026-09-01T00:00:00Z"
        ],
        config=True,
    )
    parser.add_argument("--account", required=True, metavar="A", help="the account to read")
    parser.add_argument(
        "--from",
        dest="start",
        type=words.time,
        required=True,
        metavar="T",
        help="RFC 3339 or epoch seconds",
    )
    parser.add_argument(
        "--to", dest="end", type=words.time, required=True, metavar="T", help="up to here, not now"
    )


def _ingest(commands: Any) -> None:
    parser = _command(
        commands,
        "ingest",
        "take a file of reports that the provider has exported",
        "Takes the rows of exported files as if they had been polled: the CSV file that\n"
        "messangi's POST /v3/mlog mails, plain or with gzip. A row that is known already changes\n"
        "nothing, so a file may be taken again, also after a crash in its middle; one that cannot\n"
        "be read is set aside, and the others go through. Beside a running worker it is the\n"
        "worker that records them. Exit status 1: a file could not be read to its end.",
        [
            "--config engine.toml --account omni messages.csv",
            "--config engine.toml --account omni 2026-*.csv.gz",
        ],
        config=True,
    )
    parser.add_argument("--account", required=True, metavar="A", help="the account it was sent by")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="in this order")


def _show(commands: Any) -> None:
    parser = _command(
        commands,
        "show",
        "a message's state and its history",
        "Shows messages as they stand and what they went through, also while a worker runs. A\n"
        "recipient is found in any of its spellings. Exit status 1: nothing was found.",
        [
            "--config engine.toml 4711:447700900001",
            '--config engine.toml --recipient "+44 (7700) 900001"',
            "--config engine.toml --batch-id 4711 --json",
        ],
        config=True,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("message_id", nargs="?", type=words.text, metavar="MESSAGE_ID", help="its id")
    what.add_argument("--recipient", type=words.text, metavar="R", help="whom it was sent to")
    what.add_argument("--batch-id", type=words.text, metavar="B", help="all of a batch")
    what.add_argument("--reference", type=words.text, metavar="X", help="your own id for it")
    parser.add_argument("--json", action="store_true", help="a JSON array instead of text")


def _stats(commands: Any) -> None:
    parser = _command(
        commands,
        "stats",
        "the books: messages by state, what is due, limits, sinks, trouble",
        "Shows for every account what is known of its messages (known = final + pending), what\n"
        "is due, its use of the limit, pauses and why, and what was set aside; for every sink how\n"
        "far it has come. Works while a worker runs.",
        ["--config engine.toml", "--config engine.toml --json | jq .accounts"],
        config=True,
    )
    parser.add_argument("--json", action="store_true", help="a JSON object instead of text")


def _replay(commands: Any) -> None:
    parser = _command(
        commands,
        "replay",
        "read what was set aside once more",
        "What of an answer could not be read is kept raw. This takes it through the provider's\n"
        "code as it is now: what can be read becomes records, under the same event_id as ever;\n"
        "the rest stays where it is. A worker that runs on the same store does it itself, and its\n"
        "sinks get the records; else they get them when it runs next. Exit status 1: a running\n"
        "worker was not through within a minute.",
        [
            "--config engine.toml --list",
            "--config engine.toml --dry-run",
            "--config engine.toml --account infobip-1 --since 2026-11-21T12:00:00Z",
        ],
        config=True,
    )
    parser.add_argument("--account", metavar="A", help="of this account alone")
    parser.add_argument(
        "--since", type=words.time, default=0, metavar="T", help="what was last seen since then"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="say what would come of it")
    mode.add_argument(
        "--list", action="store_true", help="show the pieces: cause, position, time, beginning"
    )
    parser.add_argument("--json", action="store_true", help="a JSON array instead of text")


def _dead_letter(commands: Any) -> None:
    parser = _command(
        commands,
        "dead-letter",
        "what a sink refused for good, and the way back",
        "A record that a sink can never take is kept beside the log, with its cause. `list` shows\n"
        "them. `retry` offers them again, by the worker where one is running: what is taken is a\n"
        "dead letter no more, what is refused again stays with its new cause. Exit status 1: a\n"
        "sink could not be written; nothing is lost by that.",
        [
            "--config engine.toml list",
            "--config engine.toml list --sink crm --json",
            "--config engine.toml retry --sink crm",
        ],
        config=True,
    )
    parser.add_argument("action", choices=("list", "retry"), metavar="list|retry")
    parser.add_argument("--sink", type=words.text, metavar="S", help="of this sink alone")
    parser.add_argument("--json", action="store_true", help="a JSON object instead of text")


def _sinks(commands: Any) -> None:
    parser = _command(
        commands,
        "sinks",
        "where each sink stands; put one back, or forget one that is gone",
        "`list` shows positions, how far behind each sink is, its state and its dead letters.\n"
        "`rewind` puts a sink back to a time or to the oldest record kept: what was written since\n"
        "comes again, under the same event_id. `forget` removes position and dead letters of a\n"
        "sink that is no longer in the configuration. Where a worker is running, it does both.",
        [
            "--config engine.toml list",
            "--config engine.toml rewind --sink crm --to 2026-11-21T12:00:00Z",
            "--config engine.toml rewind --sink crm --to start --account bulk-eu",
            "--config engine.toml forget --sink crm",
        ],
        config=True,
    )
    actions = ("list", "rewind", "forget")
    parser.add_argument("action", choices=actions, metavar="list|rewind|forget")
    parser.add_argument("--sink", type=words.text, metavar="S", help="rewind, forget: which one")
    parser.add_argument(
        "--to",
        type=words.back_to,
        metavar="T|start",
        help="rewind: a time, or the oldest record kept",
    )
    parser.add_argument(
        "--account", type=words.text, metavar="A", help="rewind: in this account alone"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object instead of text")


def _simulate(commands: Any) -> None:
    parser = _command(
        commands,
        "simulate",
        "a local server that behaves as the providers do",
        "Serves the four providers on this machine: rate limits, one-time reads, paging, late\n"
        "states, faults. It prints its address and a configuration that fits it. Ctrl-C ends it.",
        ["", "--port 9000", "--profile profile.toml"],
        config=False,
    )
    parser.add_argument(
        "--port", type=words.port, default=8025, metavar="P", help="default 8025; 0: any free one"
    )
    parser.add_argument("--profile", type=Path, metavar="FILE", help="accounts and faults (TOML)")


def _demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        "the simulator and a worker together, and a summary",
        "Runs the simulator and a worker in one process, with faults on the way, and compares in\n"
        "the end what the worker recorded with what the simulator knows to be true. The files\n"
        "stay in ./demo-out for you to look at.",
        ["", "--seconds 10 --messages 500"],
        config=False,
    )
    parser.add_argument(
        "--seconds",
        type=words.seconds,
        default=20.0,
        metavar="S",
        help="at most about so long (20)",
    )
    parser.add_argument(
        "--messages", type=words.count, default=2000, metavar="N", help="messages in all (2000)"
    )
