"""What must not be kept of a push: the secret in its URL, and a number that is to be redacted."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from engine.core.secret import Secret
from tests.integration.canary import MARK, leaks
from tests.integration.harness import lines, tallies, until
from tests.integration.pushes import INFO, ONE, TWO, bulk, info, pushed, written
from tests.integration.standin import json_of
from tests.integration.test_infobip import page, report
from tests.integration.webbing import served


async def test_the_secret_of_the_url_is_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through good and bad pushes, one that says it back, and faults in the program."""
    caplog.set_level(logging.DEBUG)
    secret = f"{MARK}-push/+&=ü %'\"<z9"
    secrets = {"push": secret}
    path = quote(secret, safe="")
    outputs: list[bytes] = []
    async with served(
        tmp_path, bulk(push_secret=secret), info(push_secret=secret)
    ) as (poller, web):  # fmt: skip
        back = urlencode({"msisdn": ONE, "batch_id": "1", "status": "11", "source_id": secret,
                          "more": f"http://h/push/bulk/{path}"})  # fmt: skip
        for query in (back, back.replace("status=11", "status=x"), f"x={path}"):
            status, said, head = await web.ask(f"/push/bulk/{path}?{query}")
            assert status == 200
            outputs.append(f"{said}{head}".encode())
        said_back = json_of({"results": [report("m1", callbackData=secret, note=[path]), secret]})
        assert (await web.ask(f"/push/info/{path}", "POST", data=said_back))[0] == 200
        assert (await web.ask(f"/push/info/{path}", "POST", data=f"<{secret}>"))[0] == 200
        for wrong in (f"/push/bulk/{path}x", f"/push/none/{path}", f"/x/{path}", f"/{path}"):
            status, said, head = await web.ask(wrong)
            assert status == 404
            outputs.append(f"{said}{head}".encode())
        outputs.append(str(await web.ask(f"/push/bulk/{path}", "PUT")).encode())
        outputs.append(str(await web.ask("/metrics")).encode())
        poller.surface._pushes._pushers.clear()  # type: ignore[union-attr]

        def broken(self: Secret) -> str:
            raise RuntimeError(secret)

        with monkeypatch.context() as patch:
            patch.setattr(Secret, "reveal", broken)
            status, said, _ = await web.ask(f"/push/bulk/{path}")
        assert status == 500
        outputs.append(str(said).encode())
        await until(lambda: len(lines(tmp_path)) == 2)
        troubles = await poller.store.read(lambda tx: tx.troubles(None, 100))
        assert len(troubles) == 4
        outputs.append(repr((troubles, poller.telemetry.counts, poller.telemetry.events)).encode())
    outputs += [caplog.text.encode(), *written(tmp_path)]
    for output in outputs:
        assert not leaks(output, secrets)
    assert all("***" in json.dumps(line) for line in lines(tmp_path))


async def test_a_redacted_number_that_is_pushed_is_nowhere(tmp_path: Path) -> None:
    redact = {"redact": ["recipient"]}
    async with served(tmp_path, bulk(**redact), info(**redact)) as (poller, web):
        await poller.track("bulk", batch_id="4711", recipients=[ONE, TWO])
        assert await pushed(web, source_id=f"for {ONE}") == 200
        assert await pushed(web, to=TWO, status="x") == 200
        sent = page(report("m1", to=ONE), report("m2", to=f"+{ONE}"))
        assert (await web.ask(INFO, "POST", data=sent))[0] == 200
        assert (await tallies(poller))["bulk"]["state:delivered"] == 1
        await until(lambda: len(lines(tmp_path)) == 3)
        troubles = repr(await poller.store.read(lambda tx: tx.troubles(None, 10))).encode()
    (hashed,) = {line["recipient"] for line in lines(tmp_path)}
    assert hashed.startswith("tel_")
    for output in (troubles, *written(tmp_path)):
        assert ONE.encode() not in output
        assert TWO.encode() not in output
