"""What the tests of exported files share: a folder whose Messangi account takes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from engine.core.units import iso
from tests.integration.folder import Done, finished

NUMBER = "525512345678"

CONFIG = """
[store]
url = "{store}"

[[accounts]]
name = "omni"
provider = "messangi"
base_url = "{url}"
limits = {{ requests = 50, per = "1s", slack = "100ms" }}
lookback = "1s"
schedule = {{ interval = "100ms", idle_interval = "100ms", rescan = ["2s", "5s", "9s", "9m"] }}
{more}

[[accounts]]
name = "bot"
provider = "avaamo"
base_url = "http://127.0.0.1:9"
agent_id = 5157
access_token = "t"

[[sinks]]
name = "lines"
type = "jsonl"
path = "r.jsonl"
batch = {{ records = 400, wait = "20ms" }}
accounts = ["omni"]
"""


def configure(folder: Path, url: str, *, store: str = "sqlite:///state.db", more: str = "") -> None:
    text = CONFIG.format(url=url, store=store, more=more)
    (folder / "engine.toml").write_text(text)


async def ingest(folder: Path, *files: str, account: str = "omni") -> Done:
    options = ("ingest", "--config", "engine.toml", "--account", account, *files)
    return await finished(folder, *(sys.executable, "-m", "engine", *options))


def item(n: int, **keys: Any) -> dict[str, Any]:
    at = iso(1_760_000_000_000 + n)
    return {
        "channel": "S", "sender": "shop", "recipient": f"+{NUMBER}", "date": at, "direction": "O",
        "status": "DELIVRD", "statusdate": at, "content": f"call {NUMBER}", **keys,
    }  # fmt: skip


async def stats(folder: Path) -> dict[str, Any]:
    command = (sys.executable, "-m", "engine", "stats", "--config", "engine.toml", "--json")
    found: dict[str, Any] = json.loads((await finished(folder, *command))[1])
    return found
