"""Blocking calls on a thread of their own: what fails lets go of what they held."""

from __future__ import annotations

import threading

import pytest

from engine.core.errors import SinkError
from engine.machine.disk_causes import write_cause
from engine.targets.own_thread import OwnThread


async def test_what_fails_lets_go_and_is_told_in_our_words() -> None:
    dropped: list[str] = []
    thread = OwnThread(
        "a-thread",
        "cannot write x",
        lambda: dropped.append(threading.current_thread().name),
        write_cause,
    )

    def fail(error: Exception) -> None:
        raise error

    assert await thread.run(divmod, 7, 3) == (2, 1)
    assert dropped == []
    full = OSError(28, "No space left on device", "/a/path")
    with pytest.raises(SinkError) as caught:
        await thread.run(fail, full)
    assert caught.value.cause == "cannot write x: No space left on device; free some space"
    assert caught.value.__cause__ is caught.value.__context__ is None
    with pytest.raises(ValueError, match="a fault"):
        await thread.run(fail, ValueError("a fault"))
    with pytest.raises(SinkError, match="of our own"):
        await thread.run(fail, SinkError("of our own"))
    await thread.close()
    assert dropped == ["a-thread"] * 4
    assert not [each for each in threading.enumerate() if each.name == "a-thread"]
