"""What takes secrets out of a text: in every spelling, cut off, torn apart, and never by chance."""

from __future__ import annotations

import pytest

from engine.core.mask import Mask, Watch, by_chance
from tests.integration.canary import MARK, SECRETS, leaks, secret, spellings


@pytest.mark.parametrize("name", SECRETS)
def test_a_mask_finds_every_spelling(name: str) -> None:
    mask = Mask([SECRETS[name]])
    for spelled in spellings(SECRETS[name]):
        for text in (spelled, f"a{spelled}b", f"x={spelled}&y", f'"{spelled}"'):
            assert not leaks(mask.text(text).encode(), {name: SECRETS[name]}), text
            assert mask.holds(text.encode()), text
    assert mask.text("nothing of that kind") == "nothing of that kind"


@pytest.mark.parametrize("name", SECRETS)
def test_the_beginning_of_a_secret_that_is_cut_off_goes(name: str) -> None:
    mask = Mask([SECRETS[name]])
    for spelled in spellings(SECRETS[name]):
        for size in range(8, len(spelled)):
            done = mask.text(f"k={spelled[:size]}", cut=True)
            assert MARK not in done
            assert len(done) <= len("k=***") + 12, (spelled[:size], done)
    assert mask.text("k=c4n", cut=True) == "k=c4n"


def test_what_may_stand_in_a_report_by_chance_is_left_there() -> None:
    for word in ("k", "key", "1234", "secret", "4477009", "a1b2"):
        assert by_chance(word)
    for secret_ in ("hunter2", "s3cr3t", "a1b2c", "12345678", "password", "c4n4ry"):
        assert not by_chance(secret_)


def test_a_watch_sees_a_secret_that_is_torn_apart_and_holds_but_little() -> None:
    mask = Mask([secret("torn")])
    for spelled in spellings(secret("torn")):
        for size in range(1, len(spelled)):
            watch = Watch(mask)
            for piece in (b"x" * 100, spelled[:size].encode(), spelled[size:].encode()):
                watch.look(piece)
            assert watch.seen
    for watched in (Watch(mask), Watch(Mask())):
        for _ in range(10):
            watched.look(b"x" * 1000)
        assert not watched.seen
        assert len(watched._tail) <= mask.reach


def test_of_the_tokens_of_logins_the_latest_are_known() -> None:
    """One comes each hour: all that ever came would slow each answer down a little more."""
    mask = Mask(["pa55word-of-the-file"])
    for n in range(100):
        mask.learn(
            ["pa55word-of-the-file"] if n == 50 else [f"Bearer token-{n:03}", f"token-{n:03}"]
        )
    said = mask.text("pa55word-of-the-file token-099 token-098 token-000")
    assert said == "*** *** *** token-000"
    assert mask.text("tok", cut=True) == "tok"
    assert mask.text("the token-09", cut=True) == "the ***"
