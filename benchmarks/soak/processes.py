"""The processes of a soak: none of them outlives it, however it ends.

Each has a session of its own, so that Ctrl-C reaches the soak alone; and the kernel is told to
kill them where the soak itself is killed.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from benchmarks.soak.balance import Kill

ROOT = Path(__file__).parents[2]
START_S = 30.0
LOADED_S = 2.0
"""A program that is ended while Python still loads it dies of the signal, as any would."""
TERM_S = 40.0
"""A worker that was asked to end has its `shutdown_grace` twice: requests, then sinks."""
LOG_MAX = 16 << 20
"""Bytes of the worker's log; then it is emptied, and its errors have been counted."""
PAUSED = ": paused: "
"""What the worker has to say of an account whose credentials are refused."""
CRASHED = ("Traceback", "dlr-engine:")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    assert _libc is not None
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def spawn(
    *arguments: str, folder: Path, log: Path, piped: bool = False
) -> asyncio.subprocess.Process:
    """`python -m engine …` in this folder, of the tree that this file is in; stderr into a log."""
    with log.open("ab") as errors:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "engine", *arguments,
            cwd=folder, stdin=asyncio.subprocess.DEVNULL, stderr=errors,
            stdout=asyncio.subprocess.PIPE if piped else errors,
            start_new_session=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
            preexec_fn=_die_with_parent if _libc is not None else None,
        )  # fmt: skip


async def reap(process: asyncio.subprocess.Process) -> None:
    """Kill it where it still runs; also a stopped process dies of this."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def simulator(folder: Path, profile: Path) -> AsyncIterator[tuple[str, int]]:
    """A simulator in a process of its own: its URL and its pid."""
    log = folder / "simulator.log"
    process = await spawn(
        "simulate", "--port", "0", "--profile", str(profile), folder=folder, log=log, piped=True
    )
    assert process.stdout is not None
    try:
        first = await asyncio.wait_for(process.stdout.readline(), START_S)
        url = first.decode().partition("simulator: ")[2].strip()
        if not url:
            raise RuntimeError(f"the simulator did not start: {log.read_text()[-500:]}")
        drain = asyncio.create_task(_drain(process.stdout))
        try:
            yield url, process.pid
        finally:
            drain.cancel()
    finally:
        await reap(process)


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(65536):
        pass


class Life(msgspec.Struct):
    """A worker's process, from its start to its end."""

    began: float
    ended: float = 0.0
    how: str = ""


class Worker:
    """The worker: one process after the other on the same files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "worker.log"
        self.lives: list[Life] = []
        self.kills: list[Kill] = []
        self.troubles: list[str] = []
        self.stops = 0
        self.gate = asyncio.Lock()
        """Held while a worker is started, or another command may have taken the store."""
        self._process: asyncio.subprocess.Process | None = None
        self._killed_at: float | None = None
        self._read = 0

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self, *options: str) -> None:
        self.read_log()
        began = time.time()
        if self._killed_at is not None:
            self.kills.append(Kill(self._killed_at, began))
            self._killed_at = None
        self._process = await spawn(
            "run", "--config", "engine.toml", "--quiet", *options, folder=self.folder, log=self.log
        )
        self.lives.append(Life(began))

    async def end(self, number: signal.Signals) -> None:
        """Send SIGKILL or SIGTERM, and wait for the end."""
        process = self._process
        assert process is not None
        if process.returncode is not None:
            self.noticed_dead()
            return
        if number is signal.SIGKILL:
            self._killed_at = time.time()
        loading = time.time() - self.lives[-1].began < LOADED_S
        process.send_signal(number)
        try:
            code = await asyncio.wait_for(process.wait(), TERM_S)
        except TimeoutError:
            self.troubles.append(f"still there {TERM_S:g} s after {number.name}")
            self._killed_at = time.time()
            await reap(process)
            code = 0
        if number is signal.SIGTERM and code != 0 and not (loading and code == -number):
            self.troubles.append(f"exit status {code} after SIGTERM")
        self._over(number.name)

    async def stop_for(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so long."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        self.stops += 1
        os.kill(process.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(process.pid, signal.SIGCONT)

    async def finish(self, timeout_s: float) -> None:
        """Wait for its own end, which has to be one without anything left."""
        process = self._process
        assert process is not None
        try:
            code = await asyncio.wait_for(process.wait(), timeout_s)
        except TimeoutError:
            self.troubles.append(f"--until-idle did not end within {timeout_s:g} s")
            await reap(process)
            code = 0
        if code:
            self.troubles.append(f"--until-idle: exit status {code}")
        self._over("idle")
        self.read_log()

    def noticed_dead(self) -> bool:
        """Whether it has ended by itself, which it never should."""
        process = self._process
        if process is None or process.returncode is None or self.lives[-1].how:
            return False
        self.troubles.append(f"ended by itself with exit status {process.returncode}")
        self._over("by itself")
        return True

    def _over(self, how: str) -> None:
        self.lives[-1].ended, self.lives[-1].how = time.time(), how

    async def reap(self) -> None:
        if self._process is not None:
            await reap(self._process)

    def read_log(self) -> None:
        """Errors of the program itself are troubles; what a provider did wrong is a warning."""
        if not self.log.exists():
            return
        with self.log.open("rb") as file:
            file.seek(self._read)
            for raw in file:
                line = raw.decode("utf-8", "replace").strip()
                if (" ERROR " in line and PAUSED not in line) or line.startswith(CRASHED):
                    self.troubles.append(line)
            self._read = file.tell()
        if self._read > LOG_MAX:
            os.truncate(self.log, 0)
            self._read = 0
