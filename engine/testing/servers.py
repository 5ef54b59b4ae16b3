"""What a sink owes the dispatcher besides, where there is a server at its other end."""

from __future__ import annotations

from typing import Any, Protocol

import anyio
import pytest

from engine.core.errors import SinkError

from .records import batch, numbers
from .sink_case import PATIENCE_S, SinkCase, SinkPlace, open_patiently, persist
from .sinks import SinkSuite


class ServerSinkPlace(SinkPlace, Protocol):
    """A place behind a line that can be cut in the middle, and hang."""

    async def cut_soon(self) -> None:
        """The line is cut in the middle of what is written next, then works again at once."""
        ...

    async def hang(self) -> None:
        """The server is reached and does not answer any more, until `cut`."""
        ...


class ServerSinkSuite(SinkSuite):
    """As `SinkSuite`, with a `ServerSinkPlace`."""

    @pytest.mark.usefixtures("hasty")
    def test_down_at_the_start(self, case: SinkCase[Any]) -> None:
        async def check(place: Any) -> None:
            await place.cut()
            sink = case.make(place)
            with anyio.fail_after(PATIENCE_S), pytest.raises(SinkError) as caught:
                await sink.open()
            assert case.tells_no_secret(place, caught.value)
            await place.mend()
            await open_patiently(sink)
            await persist(sink, batch(0, 10))
            await sink.close()
            assert set(numbers(await place.read())) == set(range(10))

        case.run(check)

    @pytest.mark.usefixtures("hasty")
    def test_cut_in_the_middle_of_a_batch(self, case: SinkCase[Any]) -> None:
        async def check(place: Any) -> None:
            sink = case.make(place)
            await sink.open()
            failures = 0
            for turn in range(4):
                await place.cut_soon()
                failures += await persist(sink, batch(turn * 1000, 1000))
            await sink.close()
            assert failures or case.resends
            found = numbers(await place.read())
            assert list(dict.fromkeys(found)) == list(range(4000))
            assert len(found) == 4000 or not case.once

        case.run(check)

    @pytest.mark.usefixtures("hasty")
    def test_a_server_that_hangs(self, case: SinkCase[Any]) -> None:
        async def check(place: Any) -> None:
            sink = case.make(place)
            await sink.open()
            await sink.write(batch(0, 10))
            await place.hang()
            with anyio.fail_after(PATIENCE_S), pytest.raises(SinkError) as caught:
                await sink.write(batch(10, 10))
            assert case.tells_no_secret(place, caught.value)
            await place.cut()
            await place.mend()
            await persist(sink, batch(10, 10))
            await sink.close()
            assert list(dict.fromkeys(numbers(await place.read()))) == list(range(20))

        case.run(check)

    @pytest.mark.usefixtures("hasty")
    def test_closing_beside_a_server_that_hangs(self, case: SinkCase[Any]) -> None:
        async def check(place: Any) -> None:
            sink = case.make(place)
            await sink.open()
            await place.hang()
            with anyio.move_on_after(0.2):
                await sink.write(batch(0, 10))
            with anyio.fail_after(PATIENCE_S / 2):
                await sink.close()

        case.run(check)
