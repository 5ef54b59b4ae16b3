"""Records as a broker's messages: a body each, and names made of what a record says."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec

from .cloudevents import CONTENT_TYPE as CLOUDEVENT
from .cloudevents import Envelope, Heading, event, heading

JSON = "application/json"

_PLACEHOLDERS = re.compile(r"\{([^{}]*)\}")
_KNOWN = frozenset({"account", "state"})


class Message(msgspec.Struct, frozen=True, gc=False):
    """A record ready to be sent; `index` is its place in the batch."""

    index: int
    about: Heading
    body: bytes


def messages(
    lines: Sequence[bytes], envelope: Envelope | None
) -> tuple[list[Message], dict[int, str]]:
    """The lines as messages, and by index the causes of those that are no records."""
    found: list[Message] = []
    rejected: dict[int, str] = {}
    for index, line in enumerate(lines):
        try:
            about = heading(line)
        except msgspec.DecodeError as exc:
            rejected[index] = f"not a record: {exc}"
        else:
            body = line if envelope is None else event(line, about)
            found.append(Message(index, about, body))
    return found, rejected


T = TypeVar("T")


def in_order(
    found: Iterable[T], whose: Callable[[T], Hashable], at_once_max: int
) -> Iterator[list[T]]:
    """Portions that may be in flight together: no two records of one message are in the same one,
    so that the later cannot overtake an earlier that is refused and sent again."""
    turns: list[list[T]] = []
    seen: dict[Hashable, int] = {}
    for one in found:
        key = whose(one)
        turn = seen[key] = seen.get(key, -1) + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(one)
    for turn_of in turns:
        for start in range(0, len(turn_of), at_once_max):
            yield turn_of[start : start + at_once_max]


def content_type(envelope: Envelope | None) -> str:
    return JSON if envelope is None else CLOUDEVENT


class Naming:
    """A name with `{account}` and `{state}` in it.

    `clean` makes an account's name fit where not every character may stand. Raises ValueError,
    which starts with `key`, where there is anything else in braces.
    """

    def __init__(
        self, key: str, template: str, clean: Callable[[str], str] = lambda text: text
    ) -> None:
        for found in _PLACEHOLDERS.findall(template):
            if found not in _KNOWN:
                raise ValueError(
                    f"{key}: {{{found}}} is not known; there are {{account}}, {{state}}"
                )
        if not template or "{" in (rest := _PLACEHOLDERS.sub("", template)) or "}" in rest:
            raise ValueError(f"{key}: expected a name, perhaps with {{account}} or {{state}} in it")
        self._template = template
        self._clean = clean

    def of(self, about: Heading) -> str:
        return self.filled(self._clean(about.account), about.state)

    def filled(self, account: str, state: str) -> str:
        return self._template.replace("{account}", account).replace("{state}", state)
