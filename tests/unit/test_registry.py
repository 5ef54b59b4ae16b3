"""Providers and sinks by name: lazily, with the built-in ones always there."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

import pytest

from engine import registry
from engine.core.errors import ConfigError
from engine.registry import PROVIDERS, SINKS, Registry


def made(what: str, **places: str) -> Registry[object]:
    return Registry(what, places)


def test_the_built_in_names_are_there_installed_or_not() -> None:
    assert {"bulksms", "infobip", "avaamo", "messangi"} <= set(registry.providers())
    assert {"jsonl", "stdout", "sqlite"} <= set(registry.sinks())


@pytest.mark.parametrize("group", [PROVIDERS, SINKS])
def test_every_built_in_name_leads_to_a_class_of_that_name(group: str) -> None:
    found = registry.providers() if group == PROVIDERS else registry.sinks()
    for name, place in registry._BUILT_IN[group].items():
        if find_spec(place.partition(":")[0]) is not None:
            assert found[name].name == name
            assert found.find(name) is found[name]


def test_an_entry_point_goes_before_the_table() -> None:
    points = [
        EntryPoint("stdout", "elsewhere:Sink [extra]", SINKS),
        EntryPoint("mine", "mine.sink:Mine", SINKS),
    ]
    places = registry._places(SINKS, points)
    assert places["stdout"] == "elsewhere:Sink"
    assert places["mine"] == "mine.sink:Mine"
    assert places["jsonl"] == "engine.sinks.jsonl:JsonlSink"


def test_classes_are_imported_when_asked_for_and_once() -> None:
    found = made("sink", good="pathlib:Path", bad="no_such_module:X")
    assert list(found) == ["good", "bad"]
    assert "bad" in found
    assert len(found) == 2
    assert found["good"] is Path
    assert found["good"] is found.find("good")
    with pytest.raises(KeyError):
        found["other"]


@pytest.mark.parametrize(
    ("what", "name", "place", "line"),
    [
        ("sink", "kafka", "no_such:X", "sink 'kafka' needs confluent-kafka: pip install dlr-eng"),
        ("sink", "mine", "no_such:X", "sink 'mine' cannot be loaded: there is no module 'no_such'"),
        ("provider", "p", "pathlib:Nope", "provider 'p' cannot be loaded: AttributeError"),
        ("provider", "p", "pathlib:sys", "provider 'p' cannot be loaded: pathlib:sys is no class"),
        ("provider", "p", "", "provider 'p' cannot be loaded: ValueError"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(what: str, name: str, place: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(what, **{name: place}).find(name)
    (found,) = caught.value.faults
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("sink", "package", "module"),
    [
        ("postgres", "asyncpg", "asyncpg"),
        ("parquet", "pyarrow", "pyarrow"),
        ("webhook", "aiolimiter", "aiolimiter"),
    ],
)
def test_an_extra_that_is_not_installed_is_named(sink: str, package: str, module: str) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "import engine\n"
        "account = {'name': 'a', 'provider': 'bulksms', 'base_url': 'https://h',"
        " 'username': 'u', 'password': 'p'}\n"
        f"sinks = [{{'name': 's', 'type': {sink!r}}}]\n"
        "try: engine.configure({'accounts': [account], 'sinks': sinks})\n"
        "except engine.ConfigError as error: print(*error.faults, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = f"sinks[0].type: sink '{sink}' needs {package}: pip install dlr-engine[{sink}]"
    assert done.stdout.strip().endswith(line)
    assert done.stdout.count("\n") == 1


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"unknown provider 'nope' \(this build has .*bulksms"):
        registry.find_provider("nope")
    with pytest.raises(ConfigError, match=r"unknown sink 'nope' \(this build has .*jsonl"):
        registry.find_sink("nope")


def test_importing_loads_no_plug_in() -> None:
    code = (
        "import sys, engine.registry, engine.config\n"
        "list(engine.registry.providers()), list(engine.registry.sinks())\n"
        "print([m for m in sys.modules if m.startswith(('engine.providers.', 'engine.sinks.',"
        " 'aiohttp', 'rich'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
