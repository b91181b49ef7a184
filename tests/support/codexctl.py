"""A daemon over a simulated ChatGPT, and ``codexctl`` for it: one for each test, or one for many."""

import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import trio

from codexd.auth import store
from support.control import Said, Terminal, codexctl
from support.daemon import PATIENCE, Daemon, hello, running
from support.simulated import Simulated, simulated

QUIET = {"level": "info", "enable_request_logging": False}
"""The section ``logging`` of a daemon that keeps no bodies of requests."""


class Setup:
    """A daemon over a simulated ChatGPT, and ``codexctl`` for it."""

    def __init__(self, daemon: Daemon, chatgpt: Simulated) -> None:
        self.daemon = daemon
        self.chatgpt = chatgpt
        self.issuer = chatgpt.issuer
        self.tokens = daemon.state / "tokens.json"

    async def ctl(self, *words: str, **options: Any) -> Said:
        return await codexctl(self.daemon, *words, **options)

    def client(self, **options: Any) -> httpx.AsyncClient:
        """A client of the API."""
        return httpx.AsyncClient(base_url=self.daemon.base, trust_env=False, timeout=PATIENCE, **options)

    async def ask(self, name: str, **fields: Any) -> httpx.Response:
        """Makes a streamed request whose id is the name, and reads its answer."""
        document = hello(**({"stream": True, "seed": 1} | fields))
        async with self.client() as http:
            return await http.post("/v1/chat/completions", json=document, headers={"x-request-id": name})

    @asynccontextmanager
    async def key(self, name: str, *terms: str) -> AsyncIterator[str]:
        """A client key, which is revoked at the end."""
        made = await self.ctl("keys", "add", name, *terms)
        try:
            yield made.out.strip()
        finally:
            with trio.CancelScope(deadline=trio.current_time() + PATIENCE, shield=True):
                revoked = await self.ctl("keys", "revoke", name)
        assert revoked.code == 0


Make = Callable[..., AbstractAsyncContextManager[Setup]]


@asynccontextmanager
async def over_simulated(
    folder: Path, logs: Path, *, signed_in: bool = True, oauth: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Setup]:
    """``options`` are sections of the configuration, and those of ``running``."""
    async with simulated() as chatgpt:
        state = folder / "state"
        state.mkdir(exist_ok=True)
        if signed_in:
            store.save(state / "tokens.json", chatgpt.issuer.sign_in())
        ports = {"local_server_port": 0} | (oauth or {})
        backend = {"transport": "auto"} | options.pop("backend", {})
        async with running(folder, logs, chatgpt, signed_in=False, oauth=ports, backend=backend, **options) as daemon:
            yield Setup(daemon, chatgpt)


@contextmanager
def in_thread(folder: Path, logs: Path, **options: Any) -> Iterator[Setup]:
    """As ``over_simulated``, in a thread of its own: fixtures that live longer than a test cannot be async."""
    started: Future[tuple[Setup, Callable[[], None]]] = Future()

    async def serve() -> None:
        ends = trio.Event()
        token = trio.lowlevel.current_trio_token()
        async with over_simulated(folder, logs, **options) as it:
            started.set_result((it, lambda: token.run_sync_soon(ends.set)))
            await ends.wait()

    def work() -> None:
        try:
            trio.run(serve)
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=work)
    thread.start()
    it, end = started.result(PATIENCE)
    try:
        yield it
    finally:
        end()
        thread.join()


async def device_code(terminal: Terminal) -> str:
    """The code of a device sign-in, once it is on the screen."""
    shown = re.compile(r" {3}([A-Z]{4}-[A-Z]{5})\r?\n")
    found = shown.search(await terminal.until(shown))
    assert found is not None, terminal.screen
    return found[1]


def address(screen: str) -> str:
    """The address on the screen at which a browser signs in."""
    found = re.search(r"(http://\S+/oauth/authorize\?\S+)", screen)
    assert found is not None, screen
    return found[1]


async def visit(url: str) -> httpx.Response:
    """A browser that goes where it is sent."""
    async with httpx.AsyncClient(follow_redirects=True, trust_env=False, timeout=PATIENCE) as browser:
        return await browser.get(url)
