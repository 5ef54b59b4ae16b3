"""Certificates are verified, whatever is configured, against a real TLS server."""

from __future__ import annotations

import datetime
import logging
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from anyio import to_thread

import engine
from engine.cli import main
from tests.integration.harness import bulksms, configured, hasty, lines, messangi, until

ANSWER = b"0|Returns to follow\n\n447700900001|11\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(ANSWER)

Serve = Callable[[trustme.LeafCert], AbstractAsyncContextManager[str]]


@asynccontextmanager
async def serving(certificate: trustme.LeafCert) -> AsyncIterator[str]:
    """A server with that certificate that answers everything; its URL."""
    import asyncio

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HEAD + ANSWER)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


async def asked(folder: Path, url: str, **keys: Any) -> str | None:
    """Why no answer came; None: one came."""
    config = configured(folder, bulksms(url, **keys))
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="1", recipients=["447700900001"])
        health = poller.pollers["bulk"].health
        await until(lambda: health.failing or lines(folder), 20)
        return health.failing


async def test_a_private_authority_is_trusted_where_it_is_named(
    authority: trustme.CA, ca_file: Path, tmp_path: Path
) -> None:
    async with serving(authority.issue_cert("127.0.0.1")) as url:
        assert await asked(tmp_path, url, ca_file="ca.pem") is None
    assert [record["state"] for record in lines(tmp_path)] == ["delivered"]


async def test_it_is_refused_where_it_is_not(authority: trustme.CA, tmp_path: Path) -> None:
    async with serving(authority.issue_cert("127.0.0.1")) as url:
        cause = await asked(tmp_path, url)
    assert cause is not None
    assert cause.startswith("TLS: certificate verify failed: unable to get local issuer")


def expired(authority: trustme.CA) -> trustme.LeafCert:
    now = datetime.datetime.now(datetime.UTC)
    return authority.issue_cert(
        "127.0.0.1",
        not_before=now - datetime.timedelta(days=9),
        not_after=now - datetime.timedelta(days=1),
    )


def self_signed(authority: trustme.CA) -> trustme.LeafCert:
    """Its authority is nobody that is named."""
    return trustme.CA().issue_cert("127.0.0.1")


def of_another_host(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("other.example")


@pytest.mark.parametrize(
    ("made", "cause"),
    [
        (expired, "certificate has expired"),
        (self_signed, "unable to get local issuer certificate"),
        (of_another_host, "ip address mismatch"),
    ],
)
async def test_a_certificate_that_is_wrong_is_refused(
    authority: trustme.CA, ca_file: Path, tmp_path: Path, made: Any, cause: str
) -> None:
    async with serving(made(authority)) as url:
        said = await asked(tmp_path, url, ca_file="ca.pem")
    assert said == f"TLS: certificate verify failed: {cause}"
    assert lines(tmp_path) == []


async def test_a_named_authority_is_trusted_instead_of_the_systems(
    authority: trustme.CA, ca_file: Path, tmp_path: Path
) -> None:
    """`ca_file` stands in the place of the system's certificates, SSL_CERT_FILE's included."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    async with serving(authority.issue_cert("127.0.0.1")) as url:
        ways: list[tuple[Path | None, str | None]] = [
            (ca_file, None), (None, None), (ca_file, str(other)),
        ]  # fmt: skip
        said = [await to_thread.run_sync(_in_a_process, tmp_path, url, *way) for way in ways]
    assert said[0] == "None"
    assert "verify failed" in said[1]
    assert "verify failed" in said[2]


def _in_a_process(folder: Path, url: str, trusted: Path | None, named: str | None) -> str:
    """What a process says whose SSL_CERT_FILE is `trusted` of an account with that `ca_file`."""
    code = (
        "import asyncio, sys, tempfile\n"
        "from pathlib import Path\n"
        "from tests.integration.test_tls import asked\n"
        "keys = {'ca_file': sys.argv[2]} if sys.argv[2:] else {}\n"
        "print(asyncio.run(asked(Path(tempfile.mkdtemp(dir=sys.argv[1])), URL, **keys)))\n"
    ).replace("URL", repr(url))
    env = {**os.environ, "SSL_CERT_FILE": str(trusted or folder / "none.pem")}
    command = [sys.executable, "-c", code, str(folder), *([named] if named else [])]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "key",
    ["verify", "ssl", "insecure", "verify_ssl", "tls_verify", "check_hostname", "skip_tls", "cert"],
)
@pytest.mark.parametrize("table", ["account", "request"])
def test_no_key_switches_verification_off(tmp_path: Path, key: str, table: str) -> None:
    keys: dict[str, Any] = {key: False} if table == "account" else {"request": {key: False}}
    with pytest.raises(engine.ConfigError) as caught:
        configured(tmp_path, bulksms("https://provider.example", **keys))
    place = f"accounts[0].{key}" if table == "account" else f"accounts[0].request.{key}"
    assert f"{place}: unknown key; a server's certificate and name are always" in str(caught.value)
    assert '"ca_file"' in str(caught.value)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "there is no such file"),
        (b"", "expected certificates as PEM has them, found none"),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "expected certificates",
        ),
        (b"\x30\x82\x00", "expected certificates"),
    ],
)
def test_a_bad_ca_file_is_a_fault_of_the_configuration(
    tmp_path: Path, content: bytes | None, fault: str
) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    with pytest.raises(engine.ConfigError) as caught:
        configured(tmp_path, bulksms("https://provider.example", ca_file="ca.pem"))
    assert f"accounts[0].ca_file: {fault}" in str(caught.value)


CONFIG = """
[[accounts]]
name = "bulk"
provider = "bulksms"
base_url = "{url}"
username = "john"
password = "pass-word"
{more}
"""


@pytest.mark.parametrize(
    ("url", "clear"),
    [
        ("http://provider.example/eapi", True),
        ("http://10.0.0.1", True),
        ("https://provider.example/eapi", False),
        ("http://127.0.0.1:8025/bulksms", False),
        ("http://[::1]:8025", False),
        ("http://localhost:8025", False),
    ],
)
def test_check_says_what_is_trusted_and_warns_of_plain_http(
    tmp_path: Path, ca_file: Path, url: str, clear: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "engine.toml"
    for more, trusted in (
        ("", "the system's certificates"),
        (f'ca_file = "{ca_file}"', f"the certificates in {ca_file}"),
    ):
        file.write_text(CONFIG.format(url=url, more=more))
        assert main(["check", "--config", str(file)]) == 0
        out = capsys.readouterr().out
        assert f"tls: verified by {trusted}" in out
        assert ("WARNING: base_url is http://" in out) is clear


async def test_a_worker_warns_of_plain_http(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    account = messangi(
        "https://provider.example", login_url="http://provider.example/login", username="u",
        password="pass-word", headers={}, schedule={"interval": "1h"},
    )  # fmt: skip
    async with hasty(configured(tmp_path, account)):
        pass
    assert "omni: login_url is http://: credentials and reports can be read" in caplog.text
