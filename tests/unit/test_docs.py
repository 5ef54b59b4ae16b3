"""README says all there is and nothing else: names are compared, its examples are run."""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import msgspec
import pytest

import engine
from engine import registry
from engine.cli.parser import build
from engine.config import parse
from engine.core.report import FIELDS
from engine.core.state import State

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TIMEOUT_S = 60

# What code spans and blocks hold: a name that only occurs in prose is not documented by it.
CODE = "\n".join(re.findall(r"(?s)```.*?```|`[^`\n]+`", README))


def _missing(names: Iterator[str]) -> list[str]:
    return [name for name in sorted(set(names)) if not re.search(rf"(?<![\w-]){name}\b", CODE)]


def _trees(folder: str) -> Iterator[ast.Module]:
    for path in (ROOT / "engine" / folder).rglob("*.py"):
        yield ast.parse(path.read_text(encoding="utf-8"))


def _first_words(trees: Iterator[ast.Module], methods: set[str], least: int = 1) -> Iterator[str]:
    """The constant first argument of calls to these methods."""
    for tree in trees:
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in methods
                and len(node.args) >= least
                and isinstance(node.args[0], ast.Constant)
                and isinstance(node.args[0].value, str)
            ):
                yield node.args[0].value


# Names


def test_every_configuration_key_is_described() -> None:
    """The reader's own calls are the list of the keys that it knows."""
    keys = set(_first_words(_trees("config"), {"take", "need", "many", "table", "tables"}))
    assert {"shutdown_grace", "url", "ladder", "also", "batch"} <= keys
    for plugins in (registry.providers(), registry.sinks()):
        for name in plugins:
            options = plugins[name].Options
            keys.update(field.encode_name for field in msgspec.structs.fields(options))
    assert _missing(iter(keys)) == []


def test_every_plugin_is_described() -> None:
    assert _missing(iter([*registry.providers(), *registry.sinks()])) == []


def test_every_command_and_option_is_described() -> None:
    def names(parser: argparse.ArgumentParser) -> Iterator[str]:
        for action in parser._actions:
            yield from (word for word in action.option_strings if word.startswith("--"))
            if isinstance(action, argparse._SubParsersAction):
                for command, inner in action.choices.items():
                    yield f"dlr-engine {command}"
                    yield from names(inner)

    found = set(names(build()))
    assert {"dlr-engine run", "--until-idle"} <= found
    assert _missing(iter(found)) == []


def test_every_field_and_state_of_the_record_is_described() -> None:
    assert _missing(iter(FIELDS)) == []
    assert _missing(state.value for state in State) == []
    assert _missing(iter(["never_reported", "last_known"])) == []


def test_every_counter_is_described() -> None:
    counters = set(_first_words(_trees("."), {"count"}, least=2))
    asking = ast.parse((ROOT / "engine" / "books" / "committing.py").read_text(encoding="utf-8"))
    for node in ast.walk(asking):  # `for counter, n in ((name, number), …)`
        if isinstance(node, ast.FunctionDef) and node.name == "_count":
            counters.update(
                pair.elts[0].value
                for pair in ast.walk(node)
                if isinstance(pair, ast.Tuple) and isinstance(pair.elts[0], ast.Constant)
            )
    assert {"requests", "records", "written"} <= counters
    assert _missing(iter(counters)) == []


def test_every_part_and_its_layer_are_named() -> None:
    parts = {
        path.stem for path in (ROOT / "engine").iterdir() if path.suffix == ".py" or path.is_dir()
    } - {"__init__", "__pycache__"}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    picture = _block("", "   __main__")
    drawn = [re.split(r" {3,}", line.strip())[0] for line in picture.splitlines()]
    assert [row.replace("│", "|") for row in drawn if row] == layers
    assert parts == {part for layer in layers for part in layer.split(" | ")}


def test_every_path_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:engine|tests|scripts|examples|benchmarks)/[\w./-]*)", README))
    named |= {link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link}
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


# Examples


def _block(language: str, head: str = "") -> str:
    found = [
        block
        for block in re.findall(rf"(?s)```{language}\n(.*?)```", README)
        if block.startswith(head)
    ]
    assert len(found) == 1, f"{len(found)} blocks of {language} that begin with {head!r}"
    return str(found[0])


def test_the_configuration_is_one() -> None:
    config = parse(
        tomllib.loads(_block("toml", "shutdown_grace")),
        providers=registry.providers(),
        sinks=registry.sinks(),
    )
    assert {account.provider_name for account in config.accounts} == set(registry.providers())
    assert [sink.type for sink in config.sinks] == ["jsonl", "sqlite"]


def _run(*args: str, path: Path | None = None) -> str:
    paths = [str(ROOT), *([str(path)] if path is not None else [])]
    done = subprocess.run(
        [sys.executable, "-W", "error", *args],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=path or ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode or done.stderr:
        pytest.fail(f"exit status {done.returncode}\n{done.stderr}", pytrace=False)
    return done.stdout


def test_the_embedding_example_runs() -> None:
    *lines, summary = _run("examples/embed.py").splitlines()
    assert any(line.endswith("delivered") for line in lines)
    assert sum(int(part.split()[0]) for part in summary.split(", ")) == 20


PLUGIN_RUN = """
import asyncio
import engine
from aiohttp import web

REPORTS = [
    {"id": "m1", "to": "+44 7700 900001", "status": "delivered", "carrier": "X"},
    {"id": "m2", "to": "447700900002", "status": "bounced"},
    {"id": 3},
]

async def reports(request):
    assert request.headers["X-Api-Key"] == "key"
    if request.match_info["batch"] != "4711":
        raise web.HTTPNotFound
    return web.json_response({"reports": REPORTS})

async def main():
    app = web.Application()
    app.router.add_get("/v1/batches/{batch}/reports", reports)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    config = engine.configure({
        "store": {"url": "memory://"},
        "accounts": [{
            "name": "a",
            "provider": "acme",
            "base_url": f"http://127.0.0.1:{runner.addresses[0][1]}",
            "api_key": "key",
            "schedule": {"ladder": ["0s", "0.2s"]},
        }],
        "sinks": [{"name": "ends", "type": "csv", "path": "ends.csv"}],
    })
    async with engine.open(config) as poller:
        await poller.track("a", batch_id="4711", reference="order-17")
        await poller.track("a", batch_id="4712")
        seen = []
        async for report in poller.reports():
            seen.append(report)
            if sum(report.final for report in seen) == 3:
                break
        assert poller.telemetry.of("set_aside", "a") == 2
    await runner.cleanup()
    for report in seen:
        print(report.message_id, report.state, report.verdict, report.error_code, report.extra)

asyncio.run(main())
"""


def test_the_plugins_run(tmp_path: Path) -> None:
    """The provider and the sink of README, installed as a distribution of their own."""
    (tmp_path / "acme.py").write_text(_block("python", '"""Acme'), encoding="utf-8")
    (tmp_path / "csv_sink.py").write_text(_block("python", '"""Ended'), encoding="utf-8")
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dlr_engine.providers]\nacme = acme:Acme\n[dlr_engine.sinks]\ncsv = csv_sink:CsvSink\n"
    )
    lines = _run("-c", PLUGIN_RUN, path=tmp_path).splitlines()
    assert sorted(lines) == [
        "4712 unknown never_reported 404 {}",
        "m1 delivered None None {'carrier': 'X'}",
        "m2 unknown None None {}",
        "m2 unknown last_known None {}",
    ]
    rows = (tmp_path / "ends.csv").read_text().splitlines()
    assert sorted(row.split(",", 1)[1] for row in rows) == [
        "4712,never_reported",
        "m1,delivered",
        "m2,last_known",
    ]


def test_the_plugins_pass_the_suites(tmp_path: Path) -> None:
    for name, head in (
        ("acme.py", '"""Acme'),
        ("csv_sink.py", '"""Ended'),
        ("test_acme.py", "import pytest\nfrom acme"),
        ("test_csv_sink.py", "import csv\nimport tempfile"),
    ):
        (tmp_path / name).write_text(_block("python", head), encoding="utf-8")
    said = _run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", path=tmp_path)
    (passed,) = re.findall(r"(\d+) passed", said)
    assert int(passed) == 11 + 10


# The public names


def test_all_is_exact() -> None:
    assert len(engine.__all__) == len(set(engine.__all__))
    assert set(engine.__all__) == set(engine._HOMES) | {"configure", "open"}
    for name, home in engine._HOMES.items():
        assert getattr(engine, name) is getattr(import_module(home), name)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = engine.Nothing


def test_importing_loads_nothing_heavy() -> None:
    heavy = ("aiohttp", "anyio", "rich", "sqlite3", "msgspec")
    code = f"import engine, sys; print([name for name in {heavy} if name in sys.modules])"
    assert _run("-c", code) == "[]\n"
