"""Configuration files and secret files: what cannot be read is one line, with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_config import PROVIDERS, SINKS, account, faults

from engine import config
from engine.core.errors import ConfigError


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a = 1\nb = = 2\n", "is not TOML: Invalid value (at line 2, column 5)"),
        (b"a = [1,\n", "is not TOML: Invalid value (at line 2, column 1)"),
        (b"a = " + b"[" * 5000, "is not TOML: "),
        (b"a = 1\nb = '\xff'\n", "is not UTF-8 (at line 2)"),
        (b"a = 1\na = 2\n", "is not TOML: Cannot overwrite a value (at line 2, column 6)"),
        (b"a = " + b"9" * 5000, "cannot be read: a path or a number in it is out of range"),
    ],
)
def test_files_that_are_no_toml(tmp_path: Path, content: bytes, line: str) -> None:
    file = tmp_path / "engine.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        config.load(file, providers=PROVIDERS, sinks=SINKS)
    (found,) = caught.value.faults
    assert found.startswith(f"engine.toml: {line}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "no.toml", tmp_path, Path("a\0b")):
        with pytest.raises(ConfigError, match="cannot be read: ") as caught:
            config.load(path, providers=PROVIDERS, sinks=SINKS)
        assert len(caught.value.faults) == 1


def test_a_plug_in_that_cannot_be_loaded() -> None:
    class Broken(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            raise ConfigError([f"{name} needs something"])

    broken: Any = Broken(fake=None, file=None)
    with pytest.raises(ConfigError) as caught:
        config.parse(
            {"accounts": [account()], "sinks": [{"name": "s", "type": "file"}]},
            providers=broken,
            sinks=broken,
        )
    assert caught.value.faults == (
        "configuration: accounts[0].provider: fake needs something",
        "configuration: sinks[0].type: file needs something",
    )


def test_secret_files_are_bounded_and_whole(tmp_path: Path) -> None:
    for content, words in (
        (b"\n", "is empty"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"x" * 70_000, "is too long for a secret"),
    ):
        (tmp_path / "token").write_bytes(content)
        data = {"accounts": [account(password={"file": "token"})]}
        assert faults(data, base=tmp_path) == [f'accounts[0].password: the file "token" {words}']
    assert faults({"accounts": [account(password={"env": "E"})]}, env={"E": ""}) == [
        "accounts[0].password: the environment variable E is empty"
    ]


def test_a_relative_file_in_a_folder_that_was_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("os.getcwd", gone)
    with pytest.raises(ConfigError) as caught:
        config.load("engine.toml", providers=PROVIDERS, sinks=SINKS)
    assert caught.value.faults == ("engine.toml: cannot be read: No such file or directory",)
