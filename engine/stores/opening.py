"""Which store a configuration names."""

from __future__ import annotations

from pathlib import Path

from engine.core.errors import StoreError

from .transaction import Store


def make_store(scheme: str, path: Path | None, shown: str, synchronous: str = "full") -> Store:
    """A store that is not open yet; `shown` is what its errors call it.

    Raises StoreError where this build has none of that kind.
    """
    if scheme == "memory":
        from .memory import MemoryStore

        return MemoryStore()
    if scheme == "sqlite" and path is not None:
        from .sqlite import SqliteStore

        return SqliteStore(path, synchronous, shown=shown)
    raise StoreError(f"no store for {scheme}://")
