"""The official client at work: each scenario runs it in a home of its own, against a recorder."""

import itertools
import os
import re
import socket
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import trio
import trustme

from support.proxy import proxying
from support.secrets import ACCOUNT
from upstream.backend import LIFE, PNG, REASONING, Backend, call, tokens
from upstream.recorder import Json, Recorded, Recorder

SECONDS = 90.0
"""That one run of the client may take; it takes one to three."""

INSTALLATION = "818cb451-1940-4dc2-be0b-20df6c71e974"

CONFIG = '[analytics]\nenabled = false\n[otel]\nexporter = "none"\n'

SIGN_IN_PORT = 1455
"""Where the client waits for a browser: the issuer lets it redirect only there, and to 1457."""

Scenario = Callable[[], Awaitable[list[Recorded]]]


class NotHere(Exception):
    """A scenario cannot be run on this machine; the message says why."""


class Ended(Exception):
    """The client ended, or refused, before the scenario was over. What it sent until then counts: the rest is missed."""


class Lab:
    """``binary`` is the client, ``models`` its bundled catalogue, ``work`` an empty folder."""

    def __init__(self, binary: Path, models: Json, work: Path) -> None:
        self._binary, self._models, self.work = binary, models, work
        self._ca = trustme.CA()
        self._trusted = work / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self._trusted))

    @asynccontextmanager
    async def recording(self, backend: Backend) -> AsyncIterator[Recorder]:
        async with proxying(Recorder(self._ca, backend.answer, backend.websocket)) as recorder:
            yield recorder

    def home(self, name: str, *, signed_in: bool = True, life: int = LIFE) -> Path:
        """A CODEX_HOME with a working directory in it; ``life`` is for how long the access token holds."""
        home = self.work / name
        (home / "cwd").mkdir(parents=True)
        (home / "installation_id").write_text(INSTALLATION)
        (home / "config.toml").write_text(CONFIG)
        if signed_in:
            document = {
                "auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": tokens(life=life) | {"account_id": ACCOUNT},
                "last_refresh": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }  # fmt: skip
            (home / "auth.json").write_bytes(msgspec.json.encode(document))
            (home / "auth.json").chmod(0o600)
        return home

    def command(self, home: Path, recorder: Recorder, *arguments: str) -> dict[str, Any]:
        """What trio needs to start the client, which knows no way to the world but the recorder."""
        proxy = {name: recorder.url() for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")}
        trust = {name: str(self._trusted) for name in ("CODEX_CA_CERTIFICATE", "SSL_CERT_FILE")}
        environ = {
            "HOME": str(home), "CODEX_HOME": str(home), "PATH": os.defpath, "SHELL": "/bin/sh", "LANG": "C.UTF-8",
            "TZ": "UTC", "TERM": "xterm", "NO_COLOR": "1", "NO_PROXY": "127.0.0.1,localhost", **proxy, **trust,
        }  # fmt: skip
        return {"command": [str(self._binary), *arguments], "cwd": home / "cwd", "env": environ}

    async def run(self, home: Path, recorder: Recorder, *arguments: str) -> None:
        """The client to its end. How it ended does not matter: what it sent shows whether it worked."""
        with trio.move_on_after(SECONDS):
            await trio.run_process(
                **self.command(home, recorder, *arguments), stdin=b"", capture_stdout=True, capture_stderr=True,
                check=False,
            )  # fmt: skip

    async def exec(
        self, name: str, *options: str, then: Sequence[str] = (), life: int = LIFE, **backend: Any
    ) -> list[Recorded]:
        """``codex exec`` with a prompt, and further turns of the same session with what ``then`` says."""
        home = self.home(name, life=life)
        begin = ("exec", "--skip-git-repo-check")
        async with self.recording(Backend(self._models, **backend)) as recorder:
            await self.run(home, recorder, *begin, *options, "--", "say hello")
            for prompt in then:
                await self.run(home, recorder, *begin, "resume", "--last", prompt)
            return recorder.log

    async def app_server(self, name: str, talk: Callable[["AppServer"], Awaitable[None]]) -> list[Recorded]:
        """``codex app-server``, which an editor's extension talks to."""
        async with self.recording(Backend(self._models)) as recorder:
            start = self.command(self.home(name), recorder, "app-server")
            async with _started(**start, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                server = AppServer(process)
                await server.ask("initialize", _CLIENT)
                await server.send({"method": "initialized"})
                await talk(server)
            return recorder.log

    async def sign_in_by_device(self) -> list[Recorded]:
        home = self.home("login_device_logout", signed_in=False)
        async with self.recording(Backend(self._models)) as recorder:
            await self.run(home, recorder, "login", "--device-auth")
            await self.run(home, recorder, "logout")
            return recorder.log

    async def sign_in_by_browser(self) -> list[Recorded]:
        """The test is the browser: it calls back at once, with a code. Its own request is recorded as ``BROWSER``."""
        if not _is_free(SIGN_IN_PORT):  # the client would tell the program that has it to stop
            raise NotHere(f"port {SIGN_IN_PORT} is taken")
        home = self.home("login_browser", signed_in=False)
        async with self.recording(Backend(self._models)) as recorder:
            start = self.command(home, recorder, "login")
            start["env"] |= {"BROWSER": "true", "PATH": "/nonexistent"}
            async with _started(**start, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process:
                url = urllib.parse.urlsplit(await _address_in(process))
                asked = Recorded("BROWSER", url.path, [("Host", url.netloc), _FORM], url.query.encode())
                recorder.log.append(asked)
                query = dict(urllib.parse.parse_qsl(url.query))
                async with httpx.AsyncClient(trust_env=False, timeout=SECONDS, follow_redirects=True) as browser:
                    await browser.get(query["redirect_uri"], params={"code": "ac-1", "state": query["state"]})
                await process.wait()
            return recorder.log


_FORM = ("content-type", "application/x-www-form-urlencoded")
_CLIENT = {
    "clientInfo": {"name": "wirediff", "title": "wirediff", "version": "0.0.1"},
    "capabilities": {"experimentalApi": True},
}


class AppServer:
    """JSON-RPC, a line a message, over the process' standard streams."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        self._numbers = itertools.count()
        self._rest = b""
        self._earlier: list[Json] = []

    async def send(self, message: Json) -> None:
        await self._in.send_all(msgspec.json.encode(message) + b"\n")

    async def ask(self, method: str, params: Any = None, *, until: str | None = None) -> Any:
        """The result of a call; with ``until``, once that notification has come too."""
        number = next(self._numbers)
        await self.send({"id": number, "method": method, "params": params})
        answer = await self._await(lambda message: message.get("id") == number and "method" not in message)
        if "result" not in answer:
            raise Ended(f"{method}: {answer.get('error')}")
        if until is not None:
            await self._await(lambda message: message.get("method") == until)
        return answer["result"]

    async def _await(self, wanted: Callable[[Json], bool]) -> Json:
        """The first message that is wanted, and was not had before."""
        for message in self._earlier:
            if wanted(message):
                self._earlier.remove(message)
                return message
        while True:
            line, found, rest = self._rest.partition(b"\n")
            if not found:
                data = await self._out.receive_some(65536)
                if not data:
                    raise Ended("the app server has ended")
                self._rest += data
                continue
            self._rest = rest
            message = msgspec.json.decode(line, type=dict[str, Any])
            if wanted(message):
                return message
            self._earlier.append(message)


@asynccontextmanager
async def _started(**start: Any) -> AsyncIterator[trio.Process]:
    """The client as a process that is talked to; it is ended at the end, or when it takes too long."""
    process = await trio.lowlevel.open_process(**start, stdout=subprocess.PIPE)
    try:
        with trio.move_on_after(SECONDS), suppress(Ended, trio.BrokenResourceError, httpx.HTTPError):
            await trio.lowlevel.checkpoint()
            yield process
    finally:
        process.kill()
        with trio.move_on_after(SECONDS, shield=True):
            await process.wait()


async def _address_in(process: trio.Process) -> str:
    """The address that a browser is to open, from what the client prints."""
    assert process.stdout is not None
    text = b""
    while (found := re.search(rb"https://auth\.openai\.com/oauth/authorize\?\S+(?=\s)", text)) is None:
        data = await process.stdout.receive_some(65536)
        if not data:
            raise Ended(f"the sign-in ended: {text.decode(errors='replace')}")
        text += data
    return found[0].decode()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


async def _compact(server: AppServer) -> None:
    """A turn, the compaction of its session, and a turn after that."""
    thread = (await server.ask("thread/start", {"model": "gpt-6-sol"}))["thread"]["id"]

    async def turn(text: str) -> None:
        given = {"threadId": thread, "input": [{"type": "text", "text": text}]}
        await server.ask("turn/start", given, until="turn/completed")

    await turn("say hello")
    await server.ask("thread/compact/start", {"threadId": thread}, until="turn/completed")
    await turn("after")


async def _usage(server: AppServer) -> None:
    await server.ask("account/rateLimits/read")
    await server.ask("model/list", {})


def scenarios(lab: Lab) -> Mapping[str, Scenario]:
    """By name: what the snapshot's files, and the homes that the client has, are called."""
    picture, schema = lab.work / "p.png", lab.work / "s.json"
    picture.write_bytes(PNG)
    schema.write_text(
        '{"type":"object","properties":{"a":{"type":"string"}},"required":["a"],"additionalProperties":false}'
    )
    classic, lite = ("-m", "gpt-5.5"), ("-m", "gpt-6-sol")
    image, form = ("-i", str(picture)), ("--output-schema", str(schema))
    fast = ("-c", "service_tier=fast", "-c", "model_reasoning_summary=auto")

    def tool(name: str, arguments: Json, namespace: str | None = None) -> list[Any]:
        return [[REASONING, call(name, arguments, namespace)], "Done."]

    draw, edit = {"prompt": "a red dot"}, {"prompt": "make it blue", "num_last_images_to_include": 1}
    runs: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
        "exec_default_model": ((), {}),
        "exec_classic": (classic, {}),
        "exec_classic_schema_fast_summary": ((*classic, *form, *fast), {}),
        "exec_classic_image": ((*classic, *image), {}),
        "exec_classic_tool_loop": (classic, {"steps": tool("exec_command", {"cmd": "true"})}),
        "exec_classic_imagegen": (classic, {"steps": tool("imagegen", draw, "image_gen")}),
        "exec_classic_imageedit": ((*classic, *image), {"steps": tool("imagegen", edit, "image_gen")}),
        "exec_lite_sol": (lite, {}),
        "exec_lite_ultra": ((*lite, "-c", "model_reasoning_effort=ultra"), {}),
        "exec_lite_image_schema": ((*lite, *image, *form), {}),
        "exec_lite_tool_loop": (lite, {"steps": tool("exec_command", {"cmd": "true"}, "functions")}),
        "exec_unknown_model": (("-m", "gpt-5.2-codex"), {}),
        "exec_three_turns": (lite, {"then": ("and again", "third")}),
        "exec_refresh": (classic, {"life": -100}),
        "ws_classic": (classic, {"websocket": True}),
        "ws_lite": (lite, {"websocket": True}),
    }
    found: dict[str, Scenario] = {
        name: partial(lab.exec, name, *options, **more) for name, (options, more) in runs.items()
    }
    return found | {
        "compaction": partial(lab.app_server, "compaction", _compact),
        "usage": partial(lab.app_server, "usage", _usage),
        "login_device_logout": lab.sign_in_by_device,
        "login_browser": lab.sign_in_by_browser,
    }


@contextmanager
def laboratory(binary: Path, models: Json) -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="wirediff-") as work:
        yield Lab(binary, models, Path(work))
