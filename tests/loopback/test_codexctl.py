"""``codexctl`` and the daemon as processes, over a simulated ChatGPT that checks what the real one checks."""

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from codexd import __version__
from codexd.auth import store
from codexd.demo.issuer import EMAIL
from codexd.state.lock import try_lock
from support.control import Said, Terminal, codexctl, command, control, in_terminal, terminal
from support.daemon import PATIENCE, Daemon, environment, hello, running
from support.secrets import access_token
from support.simulated import Simulated, simulated
from support.upstream import Upstream

pytestmark = pytest.mark.loopback


class Setup:
    """A daemon over a simulated ChatGPT, and ``codexctl`` for it."""

    def __init__(self, daemon: Daemon, chatgpt: Simulated) -> None:
        self.daemon = daemon
        self.chatgpt = chatgpt
        self.issuer = chatgpt.issuer
        self.tokens = daemon.state / "tokens.json"

    async def ctl(self, *words: str, **options: Any) -> Said:
        return await codexctl(self.daemon, *words, **options)

    async def code(self, terminal: Terminal) -> str:
        """The code, once it is on the screen."""
        await terminal.until("administrator does it")
        found = re.search(r"\n    ([A-Z]{4}-[A-Z]{5})\r?\n", terminal.screen)
        assert found is not None, terminal.screen
        return found[1]


Make = Callable[..., Any]


@pytest.fixture
def setup(tmp_path: Path, logs: Path) -> Make:
    @asynccontextmanager
    async def make(
        *, signed_in: bool = True, oauth: dict[str, Any] | None = None, **options: Any
    ) -> AsyncIterator[Setup]:
        async with simulated() as chatgpt:
            state = tmp_path / "state"
            state.mkdir(exist_ok=True)
            if signed_in:
                store.save(state / "tokens.json", chatgpt.issuer.sign_in())
            ports = {"local_server_port": 0} | (oauth or {})
            async with running(tmp_path, logs, chatgpt, signed_in=False, oauth=ports, **options) as daemon:
                yield Setup(daemon, chatgpt)

    return make


async def test_what_a_person_asks(setup: Make) -> None:
    async with setup(models={"aliases": {"mine": "gpt-6-sol-high"}}) as it:
        status = await it.ctl("status")
        assert (status.code, status.err) == (0, "")
        for text in (
            EMAIL,
            "(plus)",
            "acct-simulated",
            it.daemon.base,
            f"codexd {__version__}",
            "5 h",
            "weekly",
            "34 %",
        ):
            assert text in status.out
        assert "\x1b" not in status.out
        usage = await it.ctl("usage")
        assert usage.code == 0
        assert re.search(r"5 h .*12 %  resets .*, in 1 h", usage.out)
        models = await it.ctl("models", "--refresh")
        assert re.search(r"gpt-6-sol +low medium high xhigh max ultra +medium +272k +lite +mine", models.out)
        before = it.tokens.read_bytes()
        refreshed = await it.ctl("refresh")
        assert (refreshed.code, EMAIL in refreshed.out) == (0, True)
        assert it.tokens.read_bytes() != before
        assert it.issuer.posts[-1][1]["refresh_reason"] == "scheduled"


async def test_every_verb_speaks_json(setup: Make) -> None:
    async with setup() as it:
        verbs = {
            "status": ["status"], "refresh": ["account"], "usage": ["usage"], "models": ["models"], "reload": ["reloaded"],
            "keys list": ["keys"], "keys add a": ["key_added"], "keys revoke a": ["key_revoked"], "doctor": ["check"],
            "health": ["health"], "health --ready": ["health"], "logout": ["signed_out"],
        }  # fmt: skip
        for verb, replies in verbs.items():
            words = [*verb.split(), "--json"]
            said = await it.ctl(*words)
            assert (said.code, said.err) == (0, ""), said
            lines = said.json
            assert [line["version"] for line in lines] == [1] * len(lines)
            assert sorted({line["reply"] for line in lines[:-1]}) == replies
            assert lines[-1] == {"reply": "done", "version": 1}
        refused = await it.ctl("--json", "refresh")
        assert (refused.code, refused.json[0]["reply"], refused.json[0]["kind"]) == (3, "refused", "signed_out")


async def test_exit_codes_and_hints(setup: Make, tmp_path: Path) -> None:
    async with setup(signed_in=False) as it:
        for words in ("status", "refresh", "usage", "logout"):
            said = await it.ctl(*words.split())
            assert (said.code, "codexctl login" in said.out + said.err) == (3, True), said
        for words in ("", "nonsense", "login --device --paste", "keys", "keys add", "status --socket="):
            assert (await it.ctl(*words.split())).code == 2
        assert "did you mean 'status'?" in (await it.ctl("stauts")).err
        assert "--deep" in (await it.ctl("help", "doctor")).out
        said = await it.ctl("keys", "revoke", "nobody")
        assert (said.code, "There is no key called 'nobody'" in said.err) == (5, True)
        nowhere = await it.ctl("--socket", str(tmp_path / "nowhere"), "status")
        assert (nowhere.code, nowhere.out) == (4, "")
        assert "systemctl status codexd" in nowhere.err
        assert str(tmp_path / "nowhere") in nowhere.err
        json = await it.ctl("status", "--json", "--socket", str(tmp_path / "nowhere"))
        assert (json.code, json.json[0]["kind"]) == (4, "unreachable")
    gone = await codexctl(it.daemon, "status")
    assert gone.code == 4


async def test_health_is_an_exit_code(setup: Make, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with setup(signed_in=False, server={"bind": [f"unix:{path}"]}) as it:
        said = await it.ctl("health")
        assert (said.code, said.err, said.out) == (
            0,
            "",
            f"codexd {__version__} answers; signed out: run codexctl login.\n",
        )
        ready = await it.ctl("health", "--ready")
        assert (ready.code, "codexctl login" in ready.err) == (3, True)
        store.save(it.tokens, it.issuer.sign_in())
        assert (await it.ctl("health", "--ready")).out == f"codexd {__version__} answers; signed in.\n"
        path.unlink()
        deaf = await it.ctl("health")
        assert (deaf.code, "did not answer" in deaf.err) == (5, True)
    assert (await codexctl(it.daemon, "health")).code == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
async def test_who_may_not_is_told_the_group(setup: Make) -> None:
    # Not below pytest's own directory: that is root's alone, and other runs see to it that it stays so.
    with tempfile.TemporaryDirectory(prefix="codexd-test-") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "control.sock"
        async with setup(control={"socket": str(path)}) as it:
            denied = await _as_nobody(it, path)
            assert denied.code == 4, denied.err
            assert "permission denied" in denied.err
            assert "usermod" not in denied.err
            assert "Use `sudo codexctl`" in denied.err
            # With the file's mode open, the daemon itself looks who it is.
            path.chmod(0o666)
            refused = await _as_nobody(it, path)
            assert refused.code == 5, refused.err
            assert "members of the group root may control codexd. Use `sudo codexctl`." in refused.err
            assert "uid=65534" in await it.daemon.logged("control request refused")


async def _as_nobody(it: Setup, path: Path) -> Said:
    # The interpreter and the checkout may be root's alone: only the identity of the caller changes, after imports.
    script = (
        "import contextlib, grp, io, locale, os, pwd, sys; from codexd.ctl.__main__ import main\n"
        "with contextlib.redirect_stderr(io.StringIO()): main(['--socket', '/nowhere', 'status'])\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.exit(main(['status']))"
    )
    environ = environment(it.daemon.state) | {"CODEXCTL_SOCKET": str(path)}
    done = await trio.run_process(
        [command()[0], "-c", script], capture_stdout=True, capture_stderr=True, check=False, env=environ
    )
    return Said(done.returncode, done.stdout.decode(), " ".join(done.stderr.decode().split()))


# --- device


async def test_a_login_in_a_terminal(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        assert "run codexctl login" in await it.daemon.logged("not signed in")
        async with in_terminal(it.daemon, "login") as terminal:
            code = await it.code(terminal)
            assert f"{it.chatgpt.url}/codex/device" in terminal.screen
            assert "█▀" in terminal.screen
            assert "Enable device code authorization for Codex" in " ".join(terminal.screen.split())
            await terminal.until("Waiting for the sign-in, 14:")
            assert it.issuer.decide(code, "granted")
            assert await terminal.end() == 0
            assert f"Signed in as \x1b[1m{EMAIL} (plus)" in terminal.screen
        assert (await it.ctl("status")).code == 0
        assert it.tokens.stat().st_mode & 0o777 == 0o600
        # Nothing that signs anybody in is in the log.
        log = it.daemon.log.read_text()
        stored = store.load(it.tokens)
        assert stored is not None
        for secret in (code, stored.access_token, stored.refresh_token, it.issuer.posts[-1][1]["code"], "ac_"):
            assert secret is not None
            assert secret not in log


async def test_a_narrow_terminal_and_no_colour(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        async with in_terminal(it.daemon, "login", "--device", env={"NO_COLOR": "1"}) as terminal:
            code = await it.code(terminal)
            assert "\x1b[97;40m" not in terminal.screen
            assert it.issuer.decide(code, "denied")
            assert await terminal.end() == 5
            assert "the request was denied" in terminal.screen
        piped = await it.ctl("status")
        assert piped.code == 3


async def test_closing_the_terminal_does_not_lose_a_device_login(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        async with in_terminal(it.daemon, "login") as terminal:
            code = await it.code(terminal)
            terminal.process.kill()
            await terminal.process.wait()
        status = await it.ctl("status")
        assert "under way (device)" in status.out
        async with in_terminal(it.daemon, "login") as terminal:
            assert await it.code(terminal) == code
            assert "under way already" in terminal.screen
            await terminal.until("Waiting for the sign-in")
            terminal.process.send_signal(signal.SIGINT)
            assert await terminal.end() == 130
            assert "The code stays good" in terminal.screen
        assert it.issuer.decide(code, "granted")
        await it.daemon.logged("signed in account_id")
        assert (await it.ctl("status")).code == 0


async def test_a_login_as_json(setup: Make) -> None:
    async with setup(signed_in=False) as it, trio.open_nursery() as nursery:
        found: list[Said] = []

        async def login() -> None:
            found.append(await it.ctl("login", "--device", "--json"))

        nursery.start_soon(login)
        await it.daemon.logged("device sign-in started")
        it.issuer.approves_after = 0
        with trio.fail_after(PATIENCE):
            while not found:
                await trio.sleep(0.01)
        lines = found[0].json
        assert [line["reply"] for line in lines] == ["device_code", "account", "done"]
        assert re.fullmatch("[A-Z]{4}-[A-Z]{5}", lines[0]["user_code"])
        assert (lines[1]["email"], lines[1]["signed_in"]) == (EMAIL, True)


async def test_device_codes_that_are_switched_off(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        it.issuer.device_codes = False
        said = await it.ctl("login")
        assert said.code == 5
        assert "Enable device code authorization for Codex" in said.err


# --- browser and paste


async def visit(url: str) -> httpx.Response:
    """A browser that goes where it is sent."""
    async with httpx.AsyncClient(follow_redirects=True, trust_env=False, timeout=PATIENCE) as browser:
        return await browser.get(url)


def address(screen: str) -> str:
    found = re.search(r"(http://\S+/oauth/authorize\?\S+)", screen)
    assert found is not None, screen
    return found[1]


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
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho noise >&2\nprintf %s "$1" > {opened}.part && mv {opened}.part {opened}\n')
    browser.chmod(0o755)
    async with setup(signed_in=False) as it:
        it.issuer.asks = False
        env = {"DISPLAY": ":77", "BROWSER": f"{browser} %s"}
        async with in_terminal(it.daemon, "login", env=env) as terminal:
            await terminal.until("Waiting")
            with trio.fail_after(PATIENCE):
                while not opened.exists():
                    await trio.sleep(0.01)
            assert opened.read_text() == address(terminal.screen)
            await visit(opened.read_text())
            assert await terminal.end() == 0
            assert "noise" not in terminal.screen


async def test_control_c_ends_a_browser_login(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        async with in_terminal(it.daemon, "login", "--browser", "--no-open") as terminal:
            await terminal.until("Waiting")
            terminal.process.send_signal(signal.SIGINT)
            assert await terminal.end() == 130
        assert "codexctl was stopped" in await it.daemon.logged("sign-in failed")
        assert "under way" not in (await it.ctl("status")).out


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


# --- import and logout


def auth_json(chatgpt: Simulated) -> bytes:
    made = chatgpt.issuer.sign_in()
    tokens = {key: getattr(made, key) for key in ("id_token", "access_token", "refresh_token", "account_id")}
    document = {"auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": "2026-11-22T05:14:39.912036035Z"}  # fmt: skip
    return msgspec.json.format(msgspec.json.encode(document))


async def test_the_login_of_the_official_client_is_taken_over(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        folder = it.daemon.state.parent / ".codex"
        folder.mkdir()
        path = folder / "auth.json"
        missing = await it.ctl("login", "--import", "--yes")
        assert (missing.code, f"There is no {path}" in missing.err, "keyring" in missing.err) == (2, True, True)
        path.write_bytes(auth_json(it.chatgpt))
        unasked = await it.ctl("login", "--import")
        assert (unasked.code, "--yes" in unasked.err, "single-use" in unasked.err) == (2, True, True)
        async with in_terminal(it.daemon, "login", "--import") as terminal:
            await terminal.until("[y/N]")
            await terminal.type("n\n")
            assert await terminal.end() == 5
        assert not it.tokens.exists()
        async with in_terminal(it.daemon, "login", "--import", str(path)) as terminal:
            await terminal.until("[y/N]")
            await terminal.type("y\n")
            assert await terminal.end() == 0
            assert "must sign in anew" in terminal.screen
        assert (await it.ctl("refresh")).code == 0
        for text, code, said in (
            ("garbage", 2, "it holds no JSON"),
            ('{"tokens": {"access_token": "x"}}', 5, "no token that ChatGPT gave out"),
            (f'{{"tokens": {{"access_token": "{access_token(1)}"}}}}', 5, "has expired"),
        ):
            path.write_text(text)
            refused = await it.ctl("login", "--import", "--yes")
            assert (refused.code, said in refused.err) == (code, True), refused
        async with in_terminal(it.daemon, "login", "--import", str(path)) as terminal:
            await terminal.until("[y/N]")
            assert f"in place of the sign-in as {EMAIL}" in " ".join(terminal.screen.split())
            await terminal.type("\x04")
            assert await terminal.end() == 5
            assert "Traceback" not in terminal.screen
        path.write_text('{"OPENAI_API_KEY": "sk-x"}')
        useless = await it.ctl("login", "--import", "--yes")
        assert (useless.code, "no ChatGPT login" in useless.err) == (5, True)
        assert (await it.ctl("status")).code == 0


async def test_logging_out(setup: Make) -> None:
    async with setup() as it:
        stored = store.load(it.tokens)
        assert stored is not None
        said = await it.ctl("logout")
        assert (said.code, "was revoked" in said.out) == (0, True)
        assert it.issuer.revoked == [stored.refresh_token]
        assert not it.tokens.exists()
        store.save(it.tokens, it.issuer.sign_in())
        it.issuer.revokes = False
        said = await it.ctl("logout")
        assert (said.code, "Internal error" in said.err, "end its session in ChatGPT" in said.err) == (0, True, True)
        assert not it.tokens.exists()
        assert (await it.ctl("logout")).code == 3


# --- keys


async def test_client_keys(setup: Make) -> None:
    async with setup() as it, httpx.AsyncClient(base_url=it.daemon.base, trust_env=False, timeout=PATIENCE) as client:
        assert (await client.get("/v1/models")).status_code == 200
        made = await it.ctl("keys", "add", "laptop")
        key = made.out.strip()
        assert key.startswith("sk-codexd-")
        assert key not in made.err
        for headers, status in (
            ({}, 401),
            ({"authorization": f"Bearer {key}x"}, 401),
            ({"authorization": f"Bearer {key}"}, 200),
            ({"x-api-key": key}, 200),
        ):
            assert (await client.get("/v1/models", headers=headers)).status_code == status
        assert await it.daemon.logged("request finished.*key=laptop")
        assert key not in it.daemon.log.read_text()
        assert "codexctl keys add" in (await client.get("/v1/models")).json()["error"]["message"]
        assert re.search(r"laptop .*just now +codexctl", (await it.ctl("keys", "list")).out)
        unseen = await trio.run_process(
            ["bash", "-c", f"{' '.join(command('keys', 'add', 'unseen'))} > /dev/full"],
            check=False, capture_stderr=True, env=environment(it.daemon.state.parent) | {"CODEXCTL_SOCKET": str(it.daemon.control)},
        )  # fmt: skip
        assert (unseen.returncode, b"so it was revoked" in unseen.stderr, b"No space left" in unseen.stderr) == (
            5,
            True,
            True,
        )
        assert "unseen" not in (await it.ctl("keys", "list")).out
        odd = await it.ctl("keys", "add", "\udcff")
        assert (odd.code, "UTF-8" in odd.err) == (2, True)
        strict = (await it.ctl("keys", "add", "picky", "--strict")).out.strip()
        body = {"model": "gpt-5.5", "temperature": 1, "messages": [{"role": "user", "content": "hi"}]}
        refused = await client.post("/v1/chat/completions", json=body, headers={"x-api-key": strict})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "temperature")
        assert re.search(r"picky .*codexctl +strict", (await it.ctl("keys", "list")).out)
        assert (await it.ctl("keys", "revoke", "picky")).code == 0
        terms = ("--models", "gpt-5.5, gpt-6-*", "--rpm", "30", "--concurrent", "2", "--expires", "30d")
        limited = (await it.ctl("keys", "add", "phone", *terms)).out.strip()
        refused = await client.post(
            "/v1/chat/completions", json=body | {"model": "gpt-5.1"}, headers={"x-api-key": limited}
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
        assert re.search(
            r"phone .*gpt-5.5 gpt-6-\*, 30 a minute, 2 at once, until ", (await it.ctl("keys", "list")).out
        )
        for word, value in (("--rpm", "0"), ("--expires", "soon"), ("--expires", "2020-01-01"), ("--concurrent", "-1")):
            wrong = await it.ctl("keys", "add", "x", word, value)
            assert (wrong.code, value in wrong.err) == (2, True)
        assert (await it.ctl("keys", "revoke", "phone")).code == 0
        last = await it.ctl("keys", "revoke", "laptop")
        assert (last.code, "last key" in last.err) == (0, True)
        assert (await client.get("/v1/models")).status_code == 200


# --- reload


async def test_a_reload_changes_what_it_can_and_keeps_streams(setup: Make, tmp_path: Path) -> None:
    async with setup() as it, httpx.AsyncClient(base_url=it.daemon.base, trust_env=False, timeout=PATIENCE) as client:
        path = tmp_path / "config.json"
        config = msgspec.json.decode(path.read_bytes())
        it.chatgpt.chatgpt.pace = 0.2
        body = {"model": "gpt-5.5", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.aiter_lines()
            assert await anext(lines)
            config["models"] = {"aliases": {"mine": "gpt-6-sol"}}
            config["server"] |= {"bind": ["127.0.0.1:1"], "max_body_bytes": 1024}
            config["logging"] = {"level": "info"}
            path.write_bytes(msgspec.json.encode(config))
            said = await it.ctl("reload")
            assert said.code == 0
            for key in ("models.aliases", "server.max_body_bytes", "logging.level"):
                assert key in said.out
            assert "server.bind" in said.err
            assert [line async for line in lines][-2:] == ["data: [DONE]", ""]
        assert (await client.get("/v1/models/mine")).status_code == 200
        assert (await client.post("/v1/chat/completions", content=b"x" * 2000)).status_code == 413
        assert (await it.ctl("doctor")).out.count("changed since the start") == 1

        path.write_text('{"server": {"prot": 1}}')
        refused = await it.ctl("reload")
        assert refused.code == 5
        assert "server.prot: unknown key; did you mean port?" in refused.err
        assert (await client.get("/v1/models/mine")).status_code == 200

        # The same by signal.
        config["models"] = {"aliases": {"other": "gpt-6-sol"}}
        path.write_bytes(msgspec.json.encode(config))
        it.daemon.signal(signal.SIGHUP)
        await it.daemon.logged("configuration reloaded changed=models.aliases")
        assert (await client.get("/v1/models/other")).status_code == 200
        for text, said in (("{", "not valid JSON"), ('{"backend": {"url": "http://x:abc"}}', "backend.url")):
            path.write_text(text)
            it.daemon.signal(signal.SIGHUP)
            await it.daemon.logged(f"the one in force stays.*{said}")
        assert (await client.get("/v1/models/other")).status_code == 200


async def test_keys_of_the_configuration_come_and_go_with_a_reload(setup: Make, tmp_path: Path) -> None:
    async with setup() as it, httpx.AsyncClient(base_url=it.daemon.base, trust_env=False, timeout=PATIENCE) as client:
        path = tmp_path / "config.json"
        config = msgspec.json.decode(path.read_bytes())
        config["server"]["clientKeys"] = {"fixed": "0123456789abcdef"}
        path.write_bytes(msgspec.json.encode(config))
        assert (await it.ctl("reload")).code == 0
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/v1/models", headers={"x-api-key": "0123456789abcdef"})).status_code == 200
        assert "configuration" in (await it.ctl("keys", "list")).out


# --- doctor


async def test_a_healthy_daemon(setup: Make) -> None:
    async with setup() as it:
        said = await it.ctl("doctor", "--deep", "--url", f"{it.daemon.base}/v1")
        assert said.code == 0
        found = dict(re.findall(r"^(.) (\S+(?: \w+)*)", said.out, re.MULTILINE))
        assert set(found) == {"✓"}, said.out
        for name in ("daemon", "configuration", "state directory", "file mode", "sign-in server", "backend", "clock", "sign-in", "account", "models", "request", "proxy"):  # fmt: skip
            assert f"✓ {name} " in said.out


async def test_what_is_wrong_is_said_with_what_to_do(setup: Make, tmp_path: Path) -> None:
    async with setup() as it:
        it.tokens.chmod(0o644)
        (tmp_path / "config.json").write_text('{"x": {}}')
        assert (await it.ctl("doctor", "--url", "ftp://x")).code == 2
        said = await it.ctl("doctor", "--url", "http://127.0.0.1:9/v1")
        assert said.code == 5
        assert re.search(r"✗ configuration .*\[x\]: unknown section", said.out)
        assert re.search(rf"! file mode .*\n *→ Run `chmod 600 {it.tokens}`", said.out)
        assert "✗ proxy" in said.out
        await it.ctl("logout")
        signed_out = await it.ctl("doctor", "--json")
        assert [line["name"] for line in signed_out.json if line.get("outcome") == "failed"] == [
            "configuration",
            "sign-in",
        ]
    gone = await codexctl(it.daemon, "doctor")
    assert gone.code == 4
    assert "✗ daemon" in gone.out
    assert "configuration" in gone.out


async def test_an_unreachable_chatgpt_is_told_apart(setup: Make, tmp_path: Path) -> None:
    async with setup(backend={"url": "http://nowhere.invalid/backend-api"}) as it:
        said = await it.ctl("doctor")
        assert said.code == 6
        assert re.search(
            r"✗ backend +the name nowhere.invalid cannot be resolved\n *→ Check the network, and the name servers",
            said.out,
        )
        assert "✓ sign-in server" in said.out
    refusing = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = refusing[0].socket.getsockname()[1]
    await refusing[0].aclose()
    async with setup(backend={"url": f"http://127.0.0.1:{port}"}) as it:
        said = await it.ctl("doctor")
        assert re.search(
            rf"✗ backend +no connection to 127.0.0.1:{port}: connection refused\n *→ Check the network and the firew",
            said.out,
        )
        usage = await it.ctl("usage")
        assert usage.code == 6
        assert (await it.ctl("status")).code == 0


# --- POST /auth/login


async def test_a_login_over_http(setup: Make) -> None:
    async with (
        setup(signed_in=False) as it,
        httpx.AsyncClient(base_url=it.daemon.base, trust_env=False, timeout=PATIENCE) as client,
    ):
        assert (await client.get("/auth/login")).json() == {"state": "none", "signed_in": False}
        started = (await client.post("/auth/login")).json()
        assert started["state"] == "pending"
        assert started["verification_url"] == f"{it.chatgpt.url}/codex/device"
        assert "Enable device code" in started["instructions"]
        assert started["expires_at"] > 1_700_000_000
        again = (await client.post("/auth/login", json={"method": "device"})).json()
        assert again["user_code"] == started["user_code"]
        browser = (await client.post("/auth/login", json={"method": "browser"})).json()
        assert browser["authorization_url"].startswith(f"{it.chatgpt.url}/oauth/authorize?")
        assert "user_code" not in browser
        it.issuer.asks = False
        assert (await visit(browser["authorization_url"])).status_code == 200
        done = (await client.get("/auth/login")).json()
        assert (done["state"], done["email"], done["signed_in"]) == ("succeeded", EMAIL, True)
        for headers in (
            {"x-forwarded-for": "192.0.2.1"},
            {"sec-fetch-site": "cross-site"},
            {"host": f"evil.example:{it.daemon.port}"},
            {"origin": "http://127.0.0.1"},
        ):
            assert (await client.post("/auth/login", headers=headers)).status_code == 403
        wrong = await client.post("/auth/login", json={"method": "magic"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "method")
        key = (await it.ctl("keys", "add", "a")).out.strip()
        assert (await client.get("/auth/login")).status_code == 401
        assert (await client.get("/auth/login", headers={"x-api-key": key})).status_code == 200


# --- the socket itself


async def test_it_answers_while_the_api_drains(setup: Make) -> None:
    async with (
        setup(server={"drain_seconds": 600}) as it,
        httpx.AsyncClient(base_url=it.daemon.base, timeout=PATIENCE) as client,
    ):
        it.chatgpt.chatgpt.pace = 3600
        body = {"model": "gpt-5.5", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.post("/v1/chat/completions", json=body, timeout=None))
            await it.daemon.logged("request started")
            with trio.fail_after(PATIENCE):
                while (await it.ctl("status", "--json")).json[0]["streams_open"] == 0:
                    pass
            it.daemon.signal()
            await it.daemon.logged("stopping")
            status = await it.ctl("status")
            assert (status.code, "stopping: open streams may finish" in status.out) == (0, True)
            assert [(await it.ctl("health", *words)).code for words in ([], ["--ready"])] == [0, 5]
            nursery.cancel_scope.cancel()


async def test_lines_that_are_no_requests(setup: Make) -> None:
    async with setup() as it:
        for line, said in (
            (b"\n", "not understood"),
            (b"{}\n", "names no version"),
            (b'{"version": 2, "verb": "status"}\n', "speaks version 2"),
            (b'{"version": 1, "verb": "dance"}\n', "dance"),
            (b'{"version": 1, "verb": "keys_add"}\n', "name"),
            (b"\xff\xfe\n", "not understood"),
            (b"[" * 60_000 + b"\n", "not understood"),
            (b"x" * 70_000 + b"\n", "not understood"),
        ):
            replies = await control(it.daemon.control, line)
            assert [(reply["reply"], reply["kind"]) for reply in replies] == [("refused", "usage")]
            assert said in replies[0]["message"]
        assert (await it.ctl("status")).code == 0


async def test_the_socket_is_for_its_group_and_goes_with_the_daemon(setup: Make) -> None:
    async with setup() as it:
        assert it.daemon.control.stat().st_mode & 0o777 == 0o660
        it.daemon.signal()
        assert await it.daemon.process.wait() == 0
        assert not it.daemon.control.exists()


async def test_a_second_daemon_leaves_the_socket_of_the_first_alone(setup: Make, tmp_path: Path, logs: Path) -> None:
    async with setup() as it:
        with pytest.raises(AssertionError, match="another codexd of this user"):
            async with running(tmp_path, logs, it.chatgpt):
                pass
        assert (await it.ctl("status")).code == 0


async def test_a_second_daemon_on_a_state_directory_is_told_who_has_it(setup: Make, tmp_path: Path, logs: Path) -> None:
    async with setup() as it:
        options: Any = {"oauth": {"local_server_port": 0}, "control": {"socket": "two.sock"}}
        with pytest.raises(AssertionError, match=f"is in use by process {it.daemon.process.pid}, another codexd"):
            async with running(tmp_path, logs, it.chatgpt, **options):
                pass
        assert not (it.daemon.state / "two.sock").exists()
        it.daemon.signal(signal.SIGKILL)
        await it.daemon.process.wait()
        async with running(tmp_path, logs, it.chatgpt, **options):
            pass


# --- two processes, one refresh token


@asynccontextmanager
async def second_of(it: Setup, folder: Path, logs: Path) -> AsyncIterator[Daemon]:
    """Another daemon on the same state directory, as while the first drains."""
    (it.daemon.state / "daemon.lock").unlink()
    options: Any = {"oauth": {"local_server_port": 0}, "control": {"socket": "two.sock"}}
    async with running(folder, logs, it.chatgpt, **options) as second:
        yield second


async def test_two_processes_refresh_once(setup: Make, tmp_path: Path, logs: Path) -> None:
    async with setup() as it, second_of(it, tmp_path, logs) as second:
        codes: list[int] = []

        async def refresh(daemon: Daemon, socket: Path) -> None:
            said = await codexctl(daemon, "--socket", str(socket), "refresh")
            codes.append(said.code)

        # Both have read the same file before either asks.
        for path in (it.daemon.control, second.state / "two.sock"):
            assert (await codexctl(second, "--socket", str(path), "status")).code == 0
        lock = try_lock(it.tokens)
        assert lock is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refresh, it.daemon, it.daemon.control)
            nursery.start_soon(refresh, second, second.state / "two.sock")
            for daemon in (it.daemon, second):
                await daemon.logged("verb=refresh")
            os.close(lock)
        assert codes == [0, 0]
        assert [fields["grant_type"] for _, fields in it.issuer.posts] == ["refresh_token"]


async def test_usage_comes_from_the_last_answer_when_its_page_does_not(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    async with (
        running(tmp_path, logs, upstream) as daemon,
        httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as client,
    ):
        assert (await client.post("/v1/chat/completions", json=hello())).status_code == 200
        said = await codexctl(daemon, "usage", "--json")
        assert said.code == 0
        report = said.json[0]
        assert (report["source"], "usage answer cannot be read" in report["why"]) == ("headers", True)
        assert [window["used_percent"] for window in report["windows"]] == [12.5, 60]
        shown = await codexctl(daemon, "usage")
        assert "From the headers of the last answer" in shown.err


# --- what it does


async def ask(it: Any, name: str, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(timeout=PATIENCE) as http:
        document = hello(**({"stream": True, "seed": 1} | options))
        return await http.post(f"{it.daemon.base}/v1/chat/completions", json=document, headers={"x-request-id": name})


QUIET = {"level": "info", "enable_request_logging": False}


async def test_a_request_is_explained(setup: Make) -> None:
    async with setup(logging=QUIET) as it:
        assert (await ask(it, "mine-1")).status_code == 200
        assert (await ask(it, "mine-2", model="gpt-nix")).status_code == 404
        said = await it.ctl("explain", "mine-1")
        assert (said.code, said.err) == (0, "")
        for line in (
            r"request +mine-1\n", r"came .*POST /chat/completions", r"ended +200", r"tokens +\d+ in \(0 cached\), \d+ out",
            r"adjusted +seed was left out: the backend does not take it", r"backend +HTTP 200",
            r"read, checked, converted +\d+ ms", r"a connection \(one was ready\) +\d+ ms", r"the last byte +\d+ ms +at",
            r"Bodies are kept only with logging.enable_request_logging",
        ):  # fmt: skip
            assert re.search(line, said.out), (line, said.out)
        failed = await it.ctl("explain", "mine-2")
        assert "ended" in failed.out and "model_not_found: The model 'gpt-nix' does not exist" in failed.out
        (found, _) = (await it.ctl("explain", "mine-1", "--json")).json
        trace = found["request"]
        spans = list(trace["spans"].values())
        assert spans == sorted(spans) and len(spans) == 6
        assert "body" not in {name for name, value in trace.items() if value is not None}
        nobody = await it.ctl("explain", "nobody")
        assert (nobody.code, "No request whose id begins with 'nobody'" in nobody.err) == (5, True)


async def test_bodies_are_shown_where_they_are_wanted_and_without_secrets(setup: Make) -> None:
    async with setup(logging={"enable_request_logging": True}) as it:
        secret = "sk-" + "a1B2" * 8
        await ask(it, "mine", messages=[{"role": "user", "content": f"My key is {secret}."}])
        said = await it.ctl("explain", "mine")
        assert "My key is" in said.out
        assert "input_text" in said.out
        assert secret not in said.out
        assert "[redacted]" in said.out


async def test_the_log_is_shown_filtered_and_followed(setup: Make) -> None:
    async with setup(logging=QUIET) as it:
        await ask(it, "first")
        said = await it.ctl("log", "--request", "first")
        assert [line.count("[first]") for line in said.out.splitlines()] == [1]
        assert (await it.ctl("log", "--level", "error")).out == ""
        assert len((await it.ctl("log", "-n", "2", "--json")).json) == 3
        async with trio.open_nursery() as nursery:
            run = partial(trio.run_process, command("log", "-f", "-n", "1", "--request", "sec"), stdout=subprocess.PIPE,
                          check=False, env=environment(it.daemon.state.parent) | {"CODEXCTL_SOCKET": str(it.daemon.control)})  # fmt: skip
            process = await nursery.start(run)
            await it.daemon.logged("verb=log .*")
            await ask(it, "second")
            with trio.fail_after(PATIENCE):
                assert b"[second] request finished" in await process.stdout.receive_some()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130


async def test_the_level_changes_for_a_while(setup: Make) -> None:
    async with setup(logging=QUIET) as it:
        await ask(it, "quiet")
        assert "logs from info on." in (await it.ctl("level")).out
        said = await it.ctl("level", "debug", "--for", "5")
        assert re.search(r"logs from debug on, until \d\d:\d\d; then info again", said.out)
        await ask(it, "loud")
        text = it.daemon.log.read_text()
        assert "[loud] request started" in text
        assert "[quiet] request started" not in text
        # A reload is no reason to forget what somebody asked for.
        await it.ctl("reload")
        assert "logs from debug on, until" in (await it.ctl("level")).out
        assert "logs from info on." in (await it.ctl("level", "reset")).out
        await ask(it, "calm")
        assert "[calm] request started" not in it.daemon.log.read_text()
        (level, _) = (await it.ctl("level", "warn", "--json")).json
        assert (level["level"], level["configured"]) == ("warn", "info")
        assert (await it.ctl("level", "loud")).code == 2


async def test_top_shows_what_is_under_way(setup: Make) -> None:
    async with setup() as it:
        await ask(it, "failed", model="gpt-nix")
        once = await it.ctl("top")
        assert "Nothing is under way." in once.out
        assert re.search(r"just now +failed +404 +model_not_found: The model", once.out)
        async with in_terminal(it.daemon, "top") as terminal:
            await terminal.until("Nothing is under way")
            it.chatgpt.chatgpt.pace = 0.2
            async with httpx.AsyncClient(timeout=PATIENCE) as http:
                document = hello(stream=True, messages=[{"role": "user", "content": "Write me a long story, please."}])
                url, name = f"{it.daemon.base}/v1/chat/completions", {"x-request-id": "running"}
                async with http.stream("POST", url, json=document, headers=name) as answer:
                    assert answer.status_code == 200
                    (report, _) = (await it.ctl("top", "--json")).json
                    assert [trace["id"] for trace in report["requests"]] == ["running"]
                    assert report["requests"][0]["status"] is None
            terminal.process.send_signal(signal.SIGINT)
            assert await terminal.process.wait() == 130
        (report, _) = (await it.ctl("top", "--json")).json
        assert report["requests"] == []


async def test_what_was_used_by_whom(setup: Make) -> None:
    async with setup() as it:
        nothing = await it.ctl("usage", "--by", "model")
        assert nothing.out == "Nothing was asked for yet.\n"
        for number in range(3):
            await ask(it, f"r{number}")
        said = await it.ctl("usage", "--by", "model,key", "--since", "7d")
        assert re.search(r"gpt-5\.5 +\(no key\) +3 +0 +\d+ +0 +\d+ +0", said.out), said.out
        rows = (await it.ctl("usage", "--csv", "--by", "day,model")).out.splitlines()
        assert rows[0] == "day,model,requests,failed,input,cached,output,reasoning"
        assert re.fullmatch(r"\d{4}-\d\d-\d\d,gpt-5\.5,3,0,\d+,0,\d+,0", rows[1])
        (report, _) = (await it.ctl("usage", "--since", "2030-12-31", "--json")).json
        assert (report["reply"], report["rows"]) == ("history", [])
        for wrong in (["--by", "moon"], ["--since", "yesterday"], ["--since", "0d"]):
            assert (await it.ctl("usage", *wrong)).code == 2


async def test_the_metrics_without_the_listener(setup: Make) -> None:
    async with setup() as it:
        await ask(it, "one")
        said = await it.ctl("metrics")
        assert said.code == 0
        assert re.search(r'codexd_requests_total\{endpoint="/chat/completions",.*status="200"\} 1', said.out)
        assert (await it.ctl("metrics", "--json")).json[0]["text"] == said.out or "codexd_" in said.out


# --- instruction texts


async def instructions(it: Any, model: str = "gpt-5.5") -> str:
    """Those that the next request goes up with."""
    assert (await ask(it, "asked", model=model)).status_code == 200
    (found, _) = (await it.ctl("explain", "asked", "--json")).json
    return str(msgspec.json.decode(found["request"]["sent"])["instructions"])


async def test_instruction_texts_are_set_and_reset(setup: Make, tmp_path: Path, logs: Path) -> None:
    async with setup() as it:
        listed = await it.ctl("prompts", "list")
        assert re.search(r"gpt-5-2 +\d+ +built in", listed.out), listed.out
        built_in = (await it.ctl("prompts", "show", "gpt-5-2")).out
        assert await instructions(it) == built_in.strip()
        file = tmp_path / "mine.md"
        file.write_text("Answer in rhymes.\n")
        said = await it.ctl("prompts", "set", "gpt-5-2", str(file))
        assert said.out.startswith("Set for gpt-5-2, from the next request on")
        assert await instructions(it) == "Answer in rhymes."
        assert (await it.ctl("prompts", "set", "gpt-5.5", "-", stdin=b"Answer in prose.")).code == 0
        assert await instructions(it) == "Answer in prose."
        shown = await it.ctl("prompts", "show", "gpt-5.5")
        assert shown.out == "Answer in prose.\n"
        assert "the standard input" in shown.err
        listed = await it.ctl("prompts", "list")
        assert str(file) in listed.out and re.search(r"gpt-5\.5 +16 +the standard input", listed.out)
        for words, code, why in (
            (["set", "gpt-5-2", "/nowhere"], 2, "cannot be read: No such file"),
            (["set", "gpt-9", str(file)], 5, "neither a family of instruction texts"),
            (["show", "gpt-9"], 5, "neither a family of instruction texts"),
        ):
            refused = await it.ctl("prompts", *words)
            assert (refused.code, why in refused.err) == (code, True), refused
        empty = await it.ctl("prompts", "set", "gpt-5-2", "-", stdin=b" \n")
        assert "The text is empty" in empty.err
        bytes_ = await it.ctl("prompts", "set", "gpt-5-2", "-", stdin=b"\xff")
        assert "no text in UTF-8" in bytes_.err
        assert (await it.ctl("prompts", "reset", "gpt-5.5")).out == "Built in again: gpt-5.5.\n"
        assert await instructions(it) == "Answer in rhymes."
        it.daemon.signal()
        await it.daemon.process.wait()
        async with running(tmp_path, logs, it.chatgpt, signed_in=False) as again:
            assert "Answer in rhymes." in (await codexctl(again, "prompts", "show", "gpt-5-2")).out
            assert (await codexctl(again, "prompts", "reset")).out == "Built in again: gpt-5-2.\n"
            assert (await codexctl(again, "prompts", "reset")).out == "None was set.\n"
            assert (await codexctl(again, "prompts", "show", "gpt-5-2")).out == built_in


async def test_official_texts_are_looked_at_before_they_are_used(setup: Make) -> None:
    async with setup() as it:
        before = await instructions(it)
        looked = await it.ctl("prompts", "update")
        assert looked.code == 0
        assert "--- gpt-5.5 in force" in looked.out and "+You are a simulated model." in looked.out
        assert "Nothing is changed" in looked.err
        assert await instructions(it) == before
        async with in_terminal(it.daemon, "prompts", "update") as terminal:
            await terminal.until("[y/N]")
            await terminal.type("n\r")
            assert await terminal.process.wait() == 0
        assert await instructions(it) == before
        assert (
            "Set for gpt-5.5; `codexctl prompts reset gpt-5.5` undoes it."
            in (await it.ctl("prompts", "update", "--yes")).err
        )
        assert await instructions(it) == "You are a simulated model."
        (listed, _) = (await it.ctl("prompts", "list", "--json")).json
        (entry,) = [entry for entry in listed["prompts"] if entry["name"] == "gpt-5.5"]
        assert entry["source"].endswith("/codex/models") and entry["set_at"] and len(entry["sha256"]) == 64
        assert "The official texts are those in force." in (await it.ctl("prompts", "update")).err


@pytest.mark.parametrize(
    "spoiled", [b"", b'{"version": 2}', b'{"texts": [{"name": "gpt-5-2", "text": "x", "sha256": "y"}]}']
)
async def test_texts_that_cannot_be_read_are_kept_aside(setup: Make, tmp_path: Path, spoiled: bytes) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "prompts.json").write_bytes(spoiled)
    async with setup() as it:
        assert await instructions(it) == (await it.ctl("prompts", "show", "gpt-5-2")).out.strip()
        assert "the instruction texts that were set cannot be used" in it.daemon.log.read_text()
    assert spoiled in [path.read_bytes() for path in state.iterdir() if path.is_file()]


# --- trying it


async def test_a_question_is_answered_in_the_terminal(setup: Make, tmp_path: Path) -> None:
    async with setup(logging=QUIET) as it:
        said = await it.ctl("try", "why", "is the sky blue?")
        assert said.code == 0
        assert "You wrote: why is the sky blue?" in said.out
        assert re.search(r"\d+ tokens in, \d+ out, first word after \d\.\d s, \d\.\d s in all", said.err)
        piped = await it.ctl("try", "-m", "gpt-5.5", "--effort", "high", "sum up:", "-", stdin=b"a long text")
        assert "sum up:\n\na long text" in piped.out and "gpt-5.5:" in piped.err
        assert "only this" in (await it.ctl("try", stdin=b"only this")).out
        image = tmp_path / "dot.png"
        image.write_bytes(b"\x89PNG" + bytes(300_000))
        looked = await it.ctl("try", "what is this?", "--image", str(image), "--json")
        assert looked.code == 0
        replies = looked.json
        assert "".join(reply["text"] for reply in replies if reply["reply"] == "text" and not reply.get("thinking"))
        assert [reply["reply"] for reply in replies[-2:]] == ["try_ended", "done"]
        for words, code, why in (
            (["try", "x", "-m", "gpt-nix"], 5, "The model 'gpt-nix' does not exist"),
            (["try", "x", "--image", "/nowhere.png"], 2, "cannot be read"),
            (["try", "x", "--image", "/etc/passwd"], 2, "no name of an image"),
            (["try"], 2, "Ask something"),
            (["try", " "], 2, "Ask something"),
        ):
            refused = await it.ctl(*words)
            assert (refused.code, why in refused.err) == (code, True), refused
        # It is a request like others: counted, and to be explained.
        counted = 'codexd_requests_total{endpoint="/chat/completions",key="",model="gpt-5.5",status="200"} 1.0'
        assert counted in (await it.ctl("metrics")).out
        await it.ctl("logout")
        assert (await it.ctl("try", "x")).code == 3


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL])
async def test_a_self_test_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    """However it ends: its daemon ends too and, where there is time for it, its folder goes."""
    environ = environment(tmp_path) | {"TMPDIR": str(tmp_path)}
    async with terminal(command("selftest"), environ) as screen:
        with trio.fail_after(PATIENCE):
            while not (found := list(tmp_path.glob("codexd-selftest-*/api.sock"))):
                await trio.sleep(0.01)
            children = Path(f"/proc/{screen.process.pid}/task/{screen.process.pid}/children").read_text().split()
            assert children
            screen.process.send_signal(number)
            await screen.process.wait()
            while any(Path(f"/proc/{child}").exists() for child in children):
                await trio.sleep(0.01)
        assert number == signal.SIGKILL or not found[0].parent.exists()


async def test_it_tests_itself(setup: Make) -> None:
    async with setup(logging=QUIET) as it:
        said = await it.ctl("selftest")
        assert (said.code, said.err) == (0, "All 9 checks passed, on a simulated backend.\n"), said
        assert len(it.daemon.log.read_text().split("request finished")) == 1, "the running one was asked"
        real = await it.ctl("selftest", "--real", "-m", "gpt-5.5", "--json")
        assert real.code == 0
        assert [line["outcome"] for line in real.json[:-1]] == ["ok"] * 5
        key = (await it.ctl("keys", "add", "mine")).out.strip()
        assert "asks for a client key" in (await it.ctl("selftest", "--real")).err
        assert (await it.ctl("selftest", "--real", "--key", key)).code == 0
        assert (await it.ctl("selftest", "--real", env={"CODEXD_API_KEY": key})).code == 0
        wrong = await it.ctl("selftest", "--real", "--key", "wrong")
        assert (wrong.code, "1 of 1 failed" in wrong.err) == (5, True)
