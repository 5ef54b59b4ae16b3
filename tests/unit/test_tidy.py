"""Style as a test: what a reader may count on in every file, beside what the linters look at."""

from __future__ import annotations

import ast
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "engine"
FOLDERS = ("engine", "tests", "benchmarks", "examples", "scripts", ".ci")

LINE_MAX = 100  # characters; in code: a table's row and a link cannot be broken
FUNCTION_MAX = 70  # lines: what is seen at once
FILE_MAX = 400  # lines; more only where a comment `# one file: …` says why

# Put together here, so that this file does not find itself.
UNFINISHED = re.compile(
    r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]) + ")\\b"
)
VAGUE = frozenset({"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"})


def _text_files() -> list[Path]:
    found = [ROOT / "README.md", ROOT / "pyproject.toml"]
    for folder in FOLDERS:
        found += (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return sorted(path for path in found if "__pycache__" not in path.parts)


def _modules() -> list[Path]:
    return sorted(ENGINE.rglob("*.py"))


@cache
def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""  # a sample of bytes that are no text


@contextmanager
def _no_collection() -> Iterator[None]:
    """What other tests left behind is not collected meanwhile: where a finalizer parses as well, if
    only to print a traceback, `ast.parse` counts its depth as its own, and raises a SystemError."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@cache
def _tree(path: Path) -> ast.Module:
    with _no_collection():
        return ast.parse(_text(path))


def _place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def _none(found: list[str]) -> None:
    if found:
        pytest.fail("\n".join(found), pytrace=False)


def test_lines_are_short() -> None:
    _none([
        f"{_place(path, number)}: {len(line)} characters"
        for path in _text_files()
        if path.suffix in (".py", ".sql", ".sh", "")
        for number, line in enumerate(_text(path).splitlines(), 1)
        if len(line) > LINE_MAX and "://" not in line and not {"samples", "found"} & set(path.parts)
    ])  # fmt: skip


def test_no_garbage_of_others_comes_into_a_tree(tmp_path: Path) -> None:
    class Parsing:
        def __init__(self) -> None:
            self.itself = self  # only the collector finds it

        def __del__(self) -> None:
            ast.parse("a + b(c)")

    path = tmp_path / "long.py"
    path.write_text("a = b(c, d)\n" * 1000)
    before = gc.get_threshold()
    gc.set_threshold(100)  # objects: a tree has more
    try:
        Parsing()
        assert len(_tree(path).body) == 1000
    finally:
        gc.set_threshold(*before)


def test_functions_are_seen_at_once() -> None:
    _none([
        f"{_place(path, node.lineno)}: {node.name} has {length} lines"
        for path in _modules()
        for node in ast.walk(_tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_MAX
    ])  # fmt: skip


def test_files_are_short_or_say_why_not() -> None:
    _none([
        f"{path.relative_to(ROOT)}: {length} lines"
        for path in _modules()
        if (length := len(_text(path).splitlines())) > FILE_MAX
        and not re.search(r"(?m)^# one file: \S", _text(path))
    ])  # fmt: skip


def test_nothing_is_left_unfinished() -> None:
    _none([
        f"{_place(path, number)}: {found[0]}"
        for path in _text_files()
        for number, line in enumerate(_text(path).splitlines(), 1)
        if (found := UNFINISHED.search(line))
    ])  # fmt: skip


def test_every_module_says_what_it_is() -> None:
    _none([
        f"{path.relative_to(ROOT)}: no docstring"
        for path in _modules()
        if not ast.get_docstring(_tree(path))
    ])  # fmt: skip


def test_only_the_command_line_prints() -> None:
    def prints(path: Path) -> bool:
        return path.parent == ENGINE / "cli" or path == ENGINE / "sim" / "command.py"

    _none([
        f"{_place(path, node.lineno)}: print"
        for path in _modules()
        if not prints(path)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ])  # fmt: skip


def test_no_bare_except() -> None:
    _none([
        f"{_place(path, node.lineno)}: except without a type"
        for path in _text_files()
        if path.suffix == ".py"
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ])  # fmt: skip


def test_no_file_is_named_for_everything() -> None:
    _none([
        str(path.relative_to(ROOT)) for path in _text_files() if path.stem.strip("_") in VAGUE
    ])  # fmt: skip
