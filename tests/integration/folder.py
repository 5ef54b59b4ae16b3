"""A folder with an `engine.toml`: its worker in this process, and programs beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from engine.config import load
from engine.registry import providers, sinks
from engine.worker import Engine

Done = tuple[int, str, str]  # how it ended, what it said, and what it said of faults

PATIENCE_S = 90


async def finished(folder: Path, *words: str) -> Done:
    """A program that was run to its end."""
    process = await asyncio.create_subprocess_exec(
        *words, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    return process.returncode or 0, out.decode(), err.decode()


@asynccontextmanager
async def worker(folder: Path) -> AsyncIterator[Engine]:
    config = load(folder / "engine.toml", providers=providers(), sinks=sinks())
    async with Engine(config) as engine:
        yield engine
