"""What the demo runs on: a simulated life in fast motion, and a folder for its files.

Every delay follows from the seconds there are, so that what is sent last has ended, rescans and
verdicts included, before the time is over. The folder is the demo's own: files of anybody else are
never removed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.machine.private import FOLDER_MODE

from . import process

if TYPE_CHECKING:
    from engine.sim import Profile

MARK = "# Written by `dlr-engine demo`."
FILES = (
    "engine.toml",
    "state.db",
    "state.db-wal",
    "state.db-shm",
    "state.db.lock",
    "reports.jsonl",
    "reports.db",
    "reports.db-wal",
    "reports.db-shm",
)
FOLDER = "demo-out"
FOLDERS_MAX = 1000

# Of all messages this share is sent by each account.
SHARES = {"bulk": 0.4, "infobip": 0.2, "avaamo": 0.2, "messangi": 0.2}
SENDING = 0.55  # of the time
FULL_S = 20.0  # the delays below are for so many seconds
RUNGS_S = (0.6, 1.2, 2.0, 3.0, 4.5, 6.0)
INTERVAL_S = 0.5
OVERLAP_S = 1.0


class Plan(msgspec.Struct, frozen=True):
    """How long, how many, and how fast everything goes."""

    seconds: float
    messages: int

    @property
    def pace(self) -> float:
        return self.seconds / FULL_S

    @property
    def sending_s(self) -> float:
        return self.seconds * SENDING

    def counts(self) -> dict[str, int]:
        """Messages by account, all of them together `messages`."""
        counts = {name: int(self.messages * share) for name, share in SHARES.items()}
        counts["bulk"] += self.messages - sum(counts.values())
        return counts


def profile(plan: Plan) -> Profile:
    """Four accounts whose states come fast, with faults on the way."""
    from engine.sim import AccountProfile, Delays, Fault, Limits, Mix, Profile

    delays = Delays(enroute=0.3, final=1.2, read=0.8, late=2.6, jitter=0.4)
    mix = Mix(never=0.01, stuck=0.01)
    busy = Fault(kind="503", retry_after=1.0)
    slow_down = Fault(kind="429", retry_after=1.0)
    cut = Fault(kind="cut", share=0.6)
    scale = 1 / plan.pace
    return Profile(
        [
            AccountProfile(
                name="bulk",
                provider="bulksms",
                username="demo",
                password="demo-password",  # noqa: S106 - the simulator guards nothing
                limits=Limits(requests=40, per=1.0, concurrency=1),
                faults=[*["ok"] * 8, busy, *["ok"] * 20, cut, *["ok"] * 20, "error40"],
                time_scale=scale,
                delays=delays,
                mix=mix,
            ),
            AccountProfile(
                name="infobip",
                provider="infobip",
                api_key="demo-key",
                limits=Limits(requests=20, per=1.0, concurrency=1),
                faults=[*["ok"] * 4, slow_down, *["ok"] * 4, busy],
                time_scale=scale,
                delays=delays,
                mix=mix,
            ),
            AccountProfile(
                name="avaamo",
                provider="avaamo",
                access_token="demo-token",  # noqa: S106
                limits=Limits(requests=20, per=1.0, concurrency=2),
                faults=[*["ok"] * 6, cut, *["ok"] * 10, busy],
                time_scale=scale,
                delays=delays,
                mix=mix,
            ),
            AccountProfile(
                name="messangi",
                provider="messangi",
                username="demo",
                password="demo-password",  # noqa: S106
                channels=["S", "E", "P", "W", "R"],
                limits=Limits(requests=20, per=1.0, concurrency=1),
                faults=[*["ok"] * 7, slow_down, *["ok"] * 9, cut],
                time_scale=scale,
                delays=delays,
                mix=mix,
            ),
        ]
    )


def engine_toml(plan: Plan, base_url: str) -> str:
    """The configuration of the demo's worker."""
    ladder = ", ".join(f'"{rung * plan.pace:g}s"' for rung in RUNGS_S)
    windows = (
        f'schedule = {{ interval = "{INTERVAL_S * plan.pace:g}s", rescan = [{ladder}] }}\n'
        f'overlap = "{OVERLAP_S * plan.pace:g}s"\nlookback = "10s"'
    )
    return f"""\
{MARK} The providers in it were simulated, and have ended with it;
# `show` and `stats` still work on what was recorded.

[store]
url = "sqlite:///state.db"

[[accounts]]
name = "bulk"
provider = "bulksms"
base_url = "{base_url}/bulk"
username = "demo"
password = "demo-password"
limits = {{ requests = 40, per = "1s", concurrency = 1 }}
schedule = {{ ladder = [{ladder}] }}

[[accounts]]
name = "infobip"
provider = "infobip"
base_url = "{base_url}/infobip"
api_key = "demo-key"
limits = {{ requests = 20, per = "1s", concurrency = 1 }}
schedule = {{ interval = "{INTERVAL_S * plan.pace:g}s", ladder = [{ladder}] }}

[[accounts]]
name = "avaamo"
provider = "avaamo"
base_url = "{base_url}/avaamo"
agent_id = 5157
access_token = "demo-token"
limits = {{ requests = 20, per = "1s", concurrency = 2 }}
{windows}

[[accounts]]
name = "messangi"
provider = "messangi"
base_url = "{base_url}/messangi"
login_url = "{base_url}/messangi/login"
username = "demo"
password = "demo-password"
limits = {{ requests = 20, per = "1s", concurrency = 1 }}
{windows}

[[sinks]]
name = "lines"
type = "jsonl"
path = "reports.jsonl"

[[sinks]]
name = "tables"
type = "sqlite"
path = "reports.db"
"""


def make_folder() -> Path:
    """An empty `demo-out`, or the next free number where that is somebody else's or in use."""
    for number in range(1, FOLDERS_MAX):
        folder = Path(FOLDER if number == 1 else f"{FOLDER}-{number}")
        if not folder.exists():
            folder.mkdir(FOLDER_MODE)
            return folder
        if _ours(folder) and not process.start(partial(_in_use, folder)):
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
            return folder
    raise FileExistsError(17, f"there are {FOLDERS_MAX} folders of this name", FOLDER)


def _ours(folder: Path) -> bool:
    """Whether a demo has made it: it is empty, or its configuration says so."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        with (folder / "engine.toml").open(encoding="utf-8") as file:
            return file.readline().startswith(MARK)
    except (OSError, UnicodeDecodeError):
        return False


async def _in_use(folder: Path) -> bool:
    """Whether another demo runs in there right now."""
    from engine.core.errors import StoreError
    from engine.stores.sqlite import SqliteStore

    store = SqliteStore(folder / "state.db")
    try:
        await store.open(own=True)
    except StoreError:
        return True
    await store.close()
    return False
