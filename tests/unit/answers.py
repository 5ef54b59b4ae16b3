"""What the tests of providers share: an answer in pieces, as it would come in, and any JSON."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from engine.core.contracts import Poll, Provider
from engine.testing import Answer
from engine.testing.provider_case import Read
from engine.testing.provider_case import read as read_chunks

WHOLE = 1 << 20  # bytes: a piece of this size is all of most answers

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def read_answer(
    provider: Provider,
    poll: Poll,
    body: bytes,
    status: int = 200,
    *,
    cut: bool = False,
    step: int = WHOLE,
) -> Read:
    """What the provider makes of the answer to `poll`, which comes in pieces of `step` bytes.

    `cut`: the connection ended before the body did.
    """
    pieces = [body[at : at + step] for at in range(0, len(body), step)]
    return read_chunks(provider, Answer(poll, body, (), status), pieces, cut=cut)


def half(body: bytes) -> int:
    """The step in which a body comes in two pieces."""
    return max(1, (len(body) + 1) // 2)


def json_of(value: Any) -> bytes:
    """JSON; bytes are what they are."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()
