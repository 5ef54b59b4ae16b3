"""Which store a configuration names."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from engine.core.errors import StoreError
from engine.core.secret import Secret

from .transaction import Store


def make_store(
    scheme: str,
    path: Path | None,
    shown: str,
    synchronous: str = "full",
    *,
    url: Secret | None = None,
) -> Store:
    """A store that is not open yet; `shown` is what its errors call it. `url` is a server's.

    Raises StoreError where this build has none of that kind.
    """
    if scheme == "memory":
        from .memory import MemoryStore

        return MemoryStore()
    if scheme == "sqlite" and path is not None:
        from .sqlite import SqliteStore

        return SqliteStore(path, synchronous, shown=shown)
    if scheme == "postgresql" and url is not None:
        if find_spec("asyncpg") is None:
            raise StoreError(f"the store {shown} needs asyncpg: pip install dlr-engine[postgres]")
        from .postgres import PostgresStore

        return PostgresStore(url, synchronous, shown=shown)
    raise StoreError(f"no store for {scheme}://")
