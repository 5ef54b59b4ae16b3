"""Records to standard output, one JSON object a line, for pipes and for looking on.

Written past Python's buffer, since only so is it known how far an output that failed had come:
the rest of a line that was begun is owed, and goes out before anything else does. A process has one
standard output: several such sinks take turns, or one's lines would stand within another's. A live
view on the same terminal is kept apart by the command line, not here. It must never close the
stream.
"""

from __future__ import annotations

import select
import sys
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from engine.machine.offload import Offload

from ..core.contracts import Batch
from ..core.errors import SinkError

FULL_WAIT_S = 0.2  # between two tries at an output that is set not to block


class _Output:
    """What the sinks of this process share."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self._owed: tuple[Any, bytes] = (None, b"")  # which stream is owed the rest of a line

    def owed(self, stream: Any) -> bytes:
        return self._owed[1] if self._owed[0] is stream else b""

    def owe(self, stream: Any, rest: bytes) -> None:
        self._owed = (stream, rest) if rest else (None, b"")


_output = _Output()


class StdoutOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """There is nothing to set."""


class StdoutSink:
    """Writes a batch and flushes; what the reader makes of it is not known."""

    name: ClassVar[str] = "stdout"
    Options: ClassVar[type[msgspec.Struct]] = StdoutOptions

    def __init__(self, options: StdoutOptions) -> None:
        self._offload = Offload("dlr-stdout")

    async def open(self) -> None:
        _stream()

    async def write(self, batch: Batch) -> None:
        if not batch.lines:
            return
        try:
            await self._offload.run(self._put, batch.lines)
        except BrokenPipeError as exc:
            raise SinkError(
                "cannot write to standard output: its reader has gone; start the pipe again"
            ) from exc
        except (OSError, ValueError) as exc:  # ValueError: the stream was closed
            raise SinkError(f"cannot write to standard output: {exc}") from exc

    async def close(self) -> None:
        """Nothing is held back, and the stream belongs to the process."""
        await self._offload.close()

    def _put(self, lines: Sequence[bytes]) -> None:
        with _output.turn:
            stream = _stream()
            stream.flush()  # what others printed comes first
            raw = getattr(stream, "raw", stream)
            data = _output.owed(stream) + b"\n".join(lines) + b"\n"
            done = 0
            try:
                with memoryview(data) as view:
                    while done < len(data):
                        with view[done:] as rest:
                            taken = raw.write(rest)
                        if taken is None:
                            select.select([], [raw], [], FULL_WAIT_S)
                        done += taken or 0
            finally:
                if done:
                    torn = data[done - 1 : done] != b"\n"
                    _output.owe(stream, data[done : data.index(b"\n", done) + 1] if torn else b"")
            stream.flush()


def _stream() -> Any:
    """Looked up at each write: a program may have put another in its place."""
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None:
        raise SinkError("there is no standard output to write bytes to")
    return stream
