"""``codexctl login`` with a browser: on this machine, or anywhere with the address pasted."""

import os
import signal
from pathlib import Path

import httpx
import pytest
import trio

from codexd.demo.issuer import EMAIL
from support.codexctl import Make, address, visit
from support.control import in_terminal
from support.daemon import PATIENCE

pytestmark = pytest.mark.loopback


async def test_a_login_by_the_browser(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        it.issuer.asks = False
        async with in_terminal(it.daemon, "login", "--browser", "--no-open") as terminal:
            await terminal.until("Waiting")
            page = await visit(address(terminal.screen))
            assert (page.status_code, EMAIL in page.text) == (200, True)
            assert await terminal.end() == 0
            assert "Signed in as" in terminal.screen
        assert (await it.ctl("status")).code == 0


async def test_a_desktop_opens_its_browser(setup: Make, tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    os.mkfifo(opened)
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho noise >&2\nprintf %s "$1" > {opened}\n')
    browser.chmod(0o755)
    async with setup(signed_in=False) as it:
        it.issuer.asks = False
        env = {"DISPLAY": ":77", "BROWSER": f"{browser} %s"}
        async with in_terminal(it.daemon, "login", env=env) as terminal:
            with trio.fail_after(PATIENCE):
                url = await trio.to_thread.run_sync(opened.read_text, abandon_on_cancel=True)
            await terminal.until("Waiting")
            assert url == address(terminal.screen)
            await visit(url)
            assert await terminal.end() == 0
            assert "noise" not in terminal.screen


async def test_control_c_ends_a_browser_login(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        async with in_terminal(it.daemon, "login", "--browser", "--no-open") as terminal:
            await terminal.until("Waiting")
            terminal.process.send_signal(signal.SIGINT)
            assert await terminal.end() == 130
        assert "codexctl was stopped" in await it.daemon.logged("sign-in failed")
        assert "to join it" not in (await it.ctl("status")).out


async def test_a_login_by_pasting(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        it.issuer.asks = False
        async with in_terminal(it.daemon, "login", "--paste") as terminal:
            await terminal.until("Address: ")
            async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as browser:
                answer = await browser.get(address(terminal.screen))
            location = answer.headers["location"]
            assert location.startswith("http://127.0.0.1:1455/auth/callback?")
            await terminal.type("http://127.0.0.1:1455/auth/callback?code=x&state=y\n")
            await terminal.until("does not belong to this sign-in")
            await terminal.type(f"{location}\n")
            assert await terminal.end() == 0
            assert f"{EMAIL} (plus)" in terminal.screen


async def test_pasting_nothing_ends_it(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        said = await it.ctl("login", "--paste")
        assert (said.code, "No address was pasted" in said.err) == (2, True)


async def test_the_callback_port_in_use(setup: Make) -> None:
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener[0].socket.getsockname()[1]
    async with listener[0], setup(signed_in=False, oauth={"local_server_port": port}) as it:
        said = await it.ctl("login", "--browser", "--no-open")
        assert said.code == 5
        assert f"port {port} is used by" in said.err
        assert f"(process {os.getpid()})" in said.err
