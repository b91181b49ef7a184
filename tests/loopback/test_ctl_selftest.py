"""``codexctl selftest``: on a daemon of its own, and on the running one."""

import os
import signal
from pathlib import Path

import pytest
import trio

from codexd.control import wire
from codexd.control.client import ControlConnection
from support.codexctl import Setup
from support.control import command, terminal
from support.daemon import PATIENCE, environment

pytestmark = pytest.mark.loopback


async def test_it_passes_on_a_simulated_backend(shared: Setup) -> None:
    before = shared.daemon.log.read_text().count("request finished")
    said = await shared.ctl("selftest")
    assert (said.code, said.err) == (0, "All 12 checks passed, on a simulated backend.\n"), said
    assert shared.daemon.log.read_text().count("request finished") == before, "the running one was asked"


async def test_it_passes_on_the_running_daemon(shared: Setup) -> None:
    real = await shared.ctl("selftest", "--real", "-m", "gpt-5.5", "--json")
    assert real.code == 0, real.out
    assert [line["outcome"] for line in real.json[:-1]] == ["ok"] * 6
    # Its wrong requests are no failures to look at.
    assert "selftest-" not in (await shared.ctl("top")).out
    assert await shared.daemon.logged("selftest-[0-9a-f]+. request finished")


async def test_where_clients_need_a_key_it_borrows_one_from_the_daemon(shared: Setup) -> None:
    async with shared.client() as client, shared.key("selftest") as key:
        assert (await shared.ctl("selftest", "--real")).code == 0
        assert await shared.daemon.logged("request finished.*key=codexctl")
        assert "codexctl" not in {line["name"] for line in (await shared.ctl("keys", "list", "--json")).json[0]["keys"]}
        with ControlConnection(shared.daemon.control, wire.KeysLend()) as connection:
            lent = next(iter(connection))
            assert isinstance(lent, wire.KeyAdded)
            assert (await client.get("/v1/models", headers={"x-api-key": lent.key})).status_code == 200
        with trio.fail_after(PATIENCE):
            while (await client.get("/v1/models", headers={"x-api-key": lent.key})).status_code != 401:
                await trio.lowlevel.checkpoint()
        assert (await shared.ctl("selftest", "--real", "--key", key)).code == 0
        wrong = await shared.ctl("selftest", "--real", "--key", "wrong")
        assert (wrong.code, "1 of 1 failed" in wrong.err) == (5, True)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL])
async def test_a_self_test_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    """However it ends, its daemon ends too; where there is time for it, its folder is removed."""
    environ = environment(tmp_path) | {"TMPDIR": str(tmp_path)}
    async with terminal(command("selftest"), environ) as screen:
        await screen.until("models")
        (folder,) = tmp_path.glob("codexd-selftest-*")
        children = Path(f"/proc/{screen.process.pid}/task/{screen.process.pid}/children").read_text().split()
        assert children
        ends = [os.pidfd_open(int(child)) for child in children]
        screen.process.send_signal(number)
        with trio.fail_after(PATIENCE):
            await screen.process.wait()
            for end in ends:
                await trio.lowlevel.wait_readable(end)
                os.close(end)
        assert number == signal.SIGKILL or not folder.exists()
