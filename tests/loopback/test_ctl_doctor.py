"""``codexctl doctor``: each finding, and what to do about it."""

import re
from pathlib import Path

import pytest
import trio

from support.codexctl import Make, Setup

pytestmark = pytest.mark.loopback


async def test_a_healthy_daemon(shared: Setup) -> None:
    said = await shared.ctl("doctor", "--deep", "--url", f"{shared.daemon.base}/v1")
    assert said.code == 0
    found = dict(re.findall(r"^(.) (\S+(?: \w+)*)", said.out, re.MULTILINE))
    assert set(found) == {"✓"}, said.out
    for name in ("daemon", "configuration", "state directory", "file mode", "sign-in server", "backend", "clock", "sign-in", "account", "models", "request", "proxy"):  # fmt: skip
        assert f"✓ {name} " in said.out


async def test_findings_come_with_what_to_do(setup: Make, tmp_path: Path) -> None:
    async with setup() as it:
        it.tokens.chmod(0o644)
        (tmp_path / "config.json").write_text('{"x": {}}')
        said = await it.ctl("doctor", "--url", "http://127.0.0.1:9/v1")
        assert said.code == 5
        assert re.search(r"✗ configuration .*\[x\]: unknown section", said.out)
        assert re.search(rf"! file mode .*\n *→ Run `chmod 600 {it.tokens}`", said.out)
        assert "✗ proxy" in said.out


async def test_a_missing_sign_in_is_found(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        said = await it.ctl("doctor", "--json")
        assert [line["name"] for line in said.json if line.get("outcome") == "failed"] == ["sign-in"]


async def test_without_a_daemon_the_configuration_is_checked(shared: Setup, tmp_path: Path) -> None:
    gone = await shared.ctl("--socket", str(tmp_path / "nowhere"), "doctor")
    assert gone.code == 4
    assert "✗ daemon" in gone.out
    assert "configuration" in gone.out


async def test_a_backend_without_an_address_is_told_apart(setup: Make) -> None:
    async with setup(backend={"url": "http://nowhere.invalid/backend-api"}) as it:
        said = await it.ctl("doctor")
        assert said.code == 6
        assert re.search(
            r"✗ backend +the name nowhere.invalid cannot be resolved\n *→ Check the network, and the name servers",
            said.out,
        )
        assert "✓ sign-in server" in said.out


async def test_a_backend_that_refuses_connections_is_told_apart(setup: Make) -> None:
    refusing = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = refusing[0].socket.getsockname()[1]
    await refusing[0].aclose()
    async with setup(backend={"url": f"http://127.0.0.1:{port}"}) as it:
        said = await it.ctl("doctor")
        assert re.search(
            rf"✗ backend +no connection to 127.0.0.1:{port}: connection refused\n *→ Check the network and the firew",
            said.out,
        )
        assert (await it.ctl("usage")).code == 6
        assert (await it.ctl("status")).code == 0
