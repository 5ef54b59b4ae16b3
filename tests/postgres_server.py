"""A PostgreSQL of a test's own, which it may stop, start and kill."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from tests.services import HOST, missing, require_package

PASSWORD = "hunter2-and-more"  # no error may hold it
USER = "postgres"
DEBIAN = "/usr/lib/postgresql/*/bin"
START_S = 60.0


class Server:
    """Asks for a password, and keeps its promises about power cuts as a real one does."""

    def __init__(self, programs: Path, folder: Path, port: int) -> None:
        self._programs = programs
        self._folder = folder
        self.port = port

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{PASSWORD}@{HOST}:{self.port}/postgres"

    async def make(self) -> None:
        words = self._folder / "password"
        words.write_text(PASSWORD)
        words.chmod(0o644)
        data = self._folder / "data"
        await self._run(
            "initdb", "-D", str(data), "-U", USER, "-A", "scram-sha-256", "--pwfile", str(words),
            "--no-sync",
        )  # fmt: skip
        settings = {
            "port": self.port,
            "listen_addresses": f"'{HOST}'",
            "unix_socket_directories": f"'{self._folder}'",
            "shared_buffers": "'16MB'",
            "max_connections": 30,
        }
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        config = data / "postgresql.conf"
        config.write_text(config.read_text() + lines)

    async def start(self) -> None:
        log = self._folder / "log"
        await self._control("start", "-w", "-t", str(round(START_S)), "-l", str(log))

    async def stop(self, how: str = "fast") -> None:
        """`fast` ends transactions, `immediate` is a crash."""
        await self._control("stop", "-w", "-m", how)

    async def _control(self, what: str, *how: str) -> None:
        await self._run("pg_ctl", what, "-D", str(self._folder / "data"), *how)

    async def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        if os.geteuid() == 0:  # which it refuses
            command = ["runuser", "-u", USER, "--", *command]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=self._folder, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert await process.wait() == 0, program


@contextlib.asynccontextmanager
async def own_postgres() -> AsyncIterator[Server]:
    """A server that runs; skips the test where its programs are not installed."""
    require_package("asyncpg", "postgres")
    there = shutil.which("initdb") or next(iter(sorted(glob.glob(f"{DEBIAN}/initdb"))), None)
    if there is None:
        missing("there is no initdb: PostgreSQL's server is not installed")
    if os.geteuid() == 0 and shutil.which("runuser") is None:
        missing("there is no runuser, and PostgreSQL does not run as root")
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="dlr-pg-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, USER)
        server = Server(Path(there).parent, folder, port)
        await server.make()
        await server.start()
        try:
            yield server
        finally:
            with contextlib.suppress(AssertionError):
                await server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
