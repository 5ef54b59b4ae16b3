"""A provider under test: how it is made, and answers of which the author knows what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from engine.config import parse
from engine.config.model import AccountConfig
from engine.core.contracts import Flaw, Head, Outcome, Poll, Provider, Verb
from engine.core.report import Report


@dataclass(frozen=True)
class Answer:
    """An answer of the provider's, best taken from its documentation, and what it means.

    `reports`: by report, in order, the fields that matter, as `{"message_id": "m1", "state": …}`.
    """

    poll: Poll  # the question
    body: bytes
    reports: Sequence[Mapping[str, Any]]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case
    verb: Verb = Verb.DONE
    flaws: int = 0  # pieces of it that cannot be read

    @property
    def head(self) -> Head:
        return Head(self.status, dict(self.headers))


@dataclass(frozen=True)
class ProviderCase:
    """A provider under test.

    `provider`: its class, or "module:Class". `options`: its own keys, as the configuration would
    have them. `answers`: at least one that holds reports.
    """

    provider: type[Provider] | str
    options: Mapping[str, Any]
    answers: Sequence[Answer]
    id: str = ""

    def account(self) -> AccountConfig:
        """What the configuration would make of its keys. Raises ConfigError."""
        found = self.provider
        if isinstance(found, str):
            module, _, name = found.partition(":")
            found = getattr(import_module(module), name)
        keys = {
            "name": "a",
            "provider": "provider",
            "base_url": "http://127.0.0.1",
            "content": True,
        }
        data = {"accounts": [{**keys, **self.options}]}
        return parse(data, providers={"provider": found}, sinks={}).accounts[0]

    def make(self) -> Provider:
        return self.account().provider


@dataclass
class Read:
    """What a reader has made of an answer."""

    reports: list[Report]
    flaws: list[Flaw]
    records: list[Any]  # as the parser gave them
    outcome: Outcome


def read(provider: Provider, answer: Answer, chunks: Sequence[bytes], *, cut: bool = False) -> Read:
    """Read an answer as the engine does, in these chunks."""
    reader = provider.reader(answer.poll, answer.head)
    done = Read([], [], [], Outcome())

    def take(records: Sequence[Any]) -> None:
        done.records += records
        done.reports += reader.reports(records)
        done.flaws += reader.take_flaws()

    for chunk in chunks:
        take(reader.parser.feed(chunk))
    take(reader.parser.close(cut=cut))
    done.outcome = reader.outcome()
    return done
