"""What the head of an answer says by itself."""

from __future__ import annotations

import pytest

from engine.core.contracts import Head, Request, Verb
from engine.polling.heads import not_followed, redirected

BASE = "https://provider.example/eapi"


@pytest.mark.parametrize(
    ("request_", "status", "headers", "words"),
    [
        (Request(path="/a"), 304, {}, "does not say where to"),
        (Request(path="/a"), 302, {"location": "https://other.example/a"}, "another origin"),
        (Request(path="/a"), 301, {"location": "http://provider.example/a"}, "another origin"),
        (Request(path="/a", method="POST"), 302, {"location": "/b"}, "redirect of a POST"),
    ],
)
def test_why_a_redirect_is_not_followed(
    request_: Request, status: int, headers: dict[str, str], words: str
) -> None:
    head = Head(status, headers)
    assert redirected(BASE, request_, head) is None
    outcome = not_followed(request_, head)
    assert outcome.verb is Verb.RETRY
    assert outcome.cause.startswith(f"HTTP {status}: ")
    assert words in outcome.cause
    assert "example" not in outcome.cause
