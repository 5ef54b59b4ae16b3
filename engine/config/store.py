"""The `[store]` table: which store, where, and how long things are kept.

The URL may hold a password, so it is a secret from the first look at it: no fault repeats any part
of it, only the part that names the kind of store leaves the wrapper.
"""

from __future__ import annotations

from pathlib import Path
from types import NoneType
from urllib.parse import urlsplit

from engine.core.secret import Secret

from . import values
from .model import DAY_S, LOG_MAX, LOG_MAX_MEMORY, StoreConfig
from .reader import Section

SYNCHRONOUS = ("full", "normal", "off")
STORE_SCHEMES = frozenset({"memory", "postgresql", "sqlite"})
_DEFAULT_URL = "sqlite:///state.db"
_WANTED_POSTGRES = "expected postgresql://user@host/database, special characters as %XX"
_WANTED_SQLITE = "expected sqlite:///file for a path from here, sqlite:////dir/file for a full one"


def read_store(section: Section, schemes: frozenset[str]) -> StoreConfig:
    url = section.take("url", section.reading.secret, None)
    folder = values.secret_folder(section.data.get("url"), section.reading.folder)
    given = url if url is not None else Secret(_DEFAULT_URL)
    scheme, path = "sqlite", None
    try:
        scheme, path = _place(given.reveal(), schemes, folder)
    except ValueError as error:
        section.fault("url", str(error))
    retention_s = section.take("retention", values.Span(), 30 * DAY_S)
    log_retention_s = section.take("log_retention", values.Span(), DAY_S)
    log_max_default = LOG_MAX_MEMORY if scheme == "memory" else LOG_MAX
    log_max = section.take("log_max", values.Size(1), log_max_default)
    min_free_disk = section.take("min_free_disk", values.Size(), None)
    synchronous = section.take("synchronous", values.Choice(SYNCHRONOUS), "full")
    section.close()
    return StoreConfig(
        url=given,
        scheme=scheme,
        path=path,
        retention_s=retention_s,
        log_retention_s=log_retention_s,
        log_max=log_max,
        min_free_disk=min_free_disk,
        synchronous=synchronous,
        hidden=not isinstance(section.data.get("url"), (str, NoneType)),
    )


def _place(url: str, schemes: frozenset[str], folder: Path) -> tuple[str, Path | None]:
    """The URL's kind of store and, for sqlite, its file."""
    scheme, mark, rest = url.partition("://")
    scheme = "postgresql" if scheme == "postgres" else scheme
    if not mark or scheme not in schemes:
        raise ValueError(f"this build has the stores {values.listed(sorted(schemes))}")
    if scheme == "memory" and rest:
        raise ValueError("expected memory:// with nothing behind it")
    if scheme == "postgresql":
        _check_postgres(url)
    if scheme != "sqlite":
        return scheme, None
    if rest == "/:memory:":
        raise ValueError("a store in memory is written memory://")
    if not rest.startswith("/") or rest.endswith("/") or "\0" in rest:
        raise ValueError(_WANTED_SQLITE)
    return scheme, folder / rest[1:]


def _check_postgres(url: str) -> None:
    """What can be told of it without a server. Raises ValueError, which repeats none of it."""
    try:
        parts = urlsplit(url)
        whole = parts.port != 0 and len(parts.path) > 1 and not parts.fragment
    except ValueError:
        whole = False
    if not whole or not url.isprintable():
        raise ValueError(_WANTED_POSTGRES) from None
