"""The daemon: sockets, parts, nurseries, readiness, drain.

Two nurseries. The keepers (token, catalogue, signals) live until the web nursery has drained: streams that are still
open may need a token. A crash in either ends the process, and systemd starts it anew.
"""

import gc
import os
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import structlog
import trio

from codexd import __version__, observe, server
from codexd.api import Api
from codexd.auth import store
from codexd.auth.session import Session
from codexd.catalog import Catalog
from codexd.config import Config, split_bind, state_dir
from codexd.systemd import Notifier
from codexd.upstream import USER_AGENT, Upstream, make_client

log = structlog.get_logger()

_clock: Callable[[], float] = time.time  # noqa: TID251 - the one clock, which all others are given


class CannotStart(Exception):
    """The daemon cannot start; the message says why and what to do."""


async def run(config: Config, origin: Path | None) -> None:
    """Run until SIGTERM or SIGINT and drain; a second signal ends it at once. Raises CannotStart."""
    state = state_dir(config, os.environ)
    _configure(config, state)
    log.info("starting", version=__version__, config=str(origin or "built-in defaults"), state=str(state))
    await _serve(config, state, _open_sockets(config), announce=lambda _: None)


async def demo(config: Config) -> None:
    """Run over a simulated ChatGPT, signed in, with its state in a temporary directory. Raises CannotStart."""
    # Imported here: the daemon proper never needs it.
    from codexd.demo.chatgpt import ChatGPT

    with tempfile.TemporaryDirectory(prefix="codexd-demo-") as directory:
        state = Path(directory)
        _configure(config, state)
        sockets = _open_sockets(config, any_port=True)
        chatgpt = ChatGPT(_clock)
        async with trio.open_nursery() as nursery:
            port = await nursery.start(chatgpt.serve)
            simulated = f"http://127.0.0.1:{port}"
            config = msgspec.structs.replace(
                config,
                oauth=msgspec.structs.replace(config.oauth, issuer=simulated),
                backend=msgspec.structs.replace(config.backend, url=f"{simulated}/backend-api"),
            )
            store.save(state / "tokens.json", chatgpt.sign_in())
            await _serve(config, state, sockets, announce=_announce_demo)
            nursery.cancel_scope.cancel()


def _announce_demo(base: str) -> None:
    target = f"--unix-socket {base.removeprefix('unix:')} http://localhost" if base.startswith("unix:") else base
    body = '{"model": "gpt-5.1", "stream": true, "messages": [{"role": "user", "content": "Hello, codexd!"}]}'
    print(  # noqa: T201 - this is what a person runs the demo for
        f"""
codexd {__version__} is running over a simulated ChatGPT (nothing leaves this machine).

  Base URL   {base}/v1
  API key    any, none is asked for

Try it in another terminal:

  curl -N {target}/v1/chat/completions -H 'content-type: application/json' -d '{body}'

Ctrl-C ends it.
""",
        flush=True,
    )


def _configure(config: Config, state: Path) -> None:
    try:
        observe.configure(config.logging, state)
    except OSError as error:
        raise CannotStart(f"logging.dir: {error.filename}: {error.strerror}") from error


def _open_sockets(config: Config, *, any_port: bool = False) -> list[socket.socket]:
    """The listening sockets. ``any_port`` takes a free one where the default one is in use."""
    sockets: list[socket.socket] = []
    for bind in config.listen():
        try:
            sockets.append(server.listen(bind))
        except OSError as error:
            address = split_bind(bind)
            if not any_port or isinstance(address, str):
                for each in sockets:
                    each.close()
                raise CannotStart(str(error)) from error
            sockets.append(server.listen(f"{address[0]}:0"))
    return sockets


@asynccontextmanager
async def _parts(config: Config, state: Path) -> AsyncIterator[tuple[Api, Session, Catalog, Upstream]]:
    async with make_client() as client:
        session = Session(
            state / "tokens.json",
            client=client,
            issuer=config.oauth.issuer,
            client_id=config.oauth.client_id,
            headers={"originator": config.backend.originator, "user-agent": USER_AGENT},
            clock=_clock,
        )
        version = config.backend.client_version
        catalog = Catalog(state / "models.json", aliases=config.models.aliases, client_version=version, clock=_clock)
        upstream = Upstream(client, session, config.backend, on_models_etag=catalog.on_models_etag, clock=_clock)
        api = Api(config, session=session, catalog=catalog, upstream=upstream, clock=_clock)
        yield api, session, catalog, upstream


async def _serve(config: Config, state: Path, sockets: list[socket.socket], *, announce: Callable[[str], None]) -> None:
    notifier = Notifier()
    stop = trio.Event()
    unix_paths = [name for each in sockets if isinstance(name := each.getsockname(), str)]
    try:
        async with _parts(config, state) as (api, session, catalog, upstream), trio.open_nursery() as keepers:
            keepers.start_soon(_watch_signals, stop, notifier, keepers.cancel_scope)
            keepers.start_soon(session.keep)
            keepers.start_soon(catalog.keep, upstream)
            async with trio.open_nursery() as web:
                serve = partial(server.serve, drain_seconds=config.server.drain_seconds, stop=stop.wait)
                await web.start(serve, api.app(), sockets)
                for each in sockets:
                    log.info("listening", address=server.describe(each))
                if not session.signed_in:
                    log.warning("not signed in: requests get 401", tokens=str(state / "tokens.json"))
                # What lives from here on was made by start-up: the collector need not look at it again.
                gc.collect()
                gc.freeze()
                notifier.ready("serving" if session.signed_in else "signed out")
                announce(server.describe(sockets[0]))
            keepers.cancel_scope.cancel()
    finally:
        server.remove(unix_paths)
    log.info("stopped")


async def _watch_signals(stop: trio.Event, notifier: Notifier, everything: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            name = signal.Signals(number).name
            if stop.is_set():
                log.warning("stopping at once", signal=name)
                everything.cancel()
                return
            log.info("stopping: open streams may finish", signal=name)
            notifier.stopping()
            stop.set()
