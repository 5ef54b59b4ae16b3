"""What the tests of pushed reports share: accounts that take pushes, one push, what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from tests.integration.harness import bulksms, infobip
from tests.integration.webbing import LATER, NOWHERE, Asker

SECRET = "a/secret of+the%port&"
AT = "/push/bulk/" + quote(SECRET, safe="")
INFO = "/push/info/" + quote(SECRET, safe="")
ONE, TWO = "447700900001", "447700900002"


def bulk(url: str = NOWHERE, **keys: Any) -> dict[str, Any]:
    return bulksms(url, **{"push_secret": SECRET, "schedule": LATER, **keys})


def info(url: str = NOWHERE, **keys: Any) -> dict[str, Any]:
    idle = {"interval": "1h", "idle_interval": "1h", "ladder": ["1h"]}
    return infobip(url, **{"push_secret": SECRET, "schedule": idle, **keys})


async def pushed(web: Asker, *, to: str = ONE, status: str = "11", **more: str) -> int:
    params = {"msisdn": to, "batch_id": "4711", "status": status, **more}
    code, said, _ = await web.ask(f"{AT}?{urlencode(params)}")
    assert said
    return code


def written(folder: Path) -> list[bytes]:
    """All that the engine has left."""
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
