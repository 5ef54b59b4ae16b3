"""The command line of one of several workers."""

from __future__ import annotations

import pytest

from engine.cli.parser import build
from engine.cli.supervise import _argv


@pytest.mark.parametrize("timeout", ["30d", "12345678", "1ms", "0"])
def test_a_worker_is_told_what_its_parent_was(timeout: str) -> None:
    words = ["run", "--config=-odd.toml", "--until-idle", "--idle-timeout", timeout, "-v"]
    given = build().parse_args([*words, "--workers", "2"])
    argv = list(_argv(given))
    told = build().parse_args(argv[argv.index("run") :])
    assert vars(told) == {**vars(given), "workers": 1}
