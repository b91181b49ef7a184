"""The daemon: sockets, parts, nurseries, readiness, drain.

Two nurseries. The keepers (token, catalogue, signals) live until the web nursery has drained: streams that are still
open may need a token. A crash in either ends the process, and systemd starts it anew.
"""

import errno
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
from codexd.config import Config, ConfigError, resolve_bind, state_dir
from codexd.systemd import Notifier
from codexd.upstream import USER_AGENT, Upstream, make_client

log = structlog.get_logger()

_clock: Callable[[], float] = time.time  # noqa: TID251 - the one clock, which all others are given


LAST_WORDS = 2.0
"""Seconds after the drain in which answers that are still open are ended with an error, before they are cut."""


class CannotStart(Exception):
    """The daemon cannot start; the message says why and what to do."""


async def run(config: Config, origin: Path | None) -> None:
    """Run until SIGTERM or SIGINT and drain; a second signal ends it at once. Raises CannotStart."""
    state = state_dir(config, os.environ)
    _configure(config, state)
    log.info("starting", version=__version__, config=str(origin or "built-in defaults"), state=str(state))
    await _serve(config, state, _open_sockets(config))


async def demo(config: Config) -> None:
    """Run over a simulated ChatGPT, signed in, with its state in a temporary directory. Raises CannotStart."""
    # Imported here: the daemon proper never needs it.
    from codexd.demo.chatgpt import ChatGPT

    with tempfile.TemporaryDirectory(prefix="codexd-demo-") as directory:
        state = Path(directory)
        _configure(config, state)
        sockets = _open_sockets(config, any_port=config.server.port is None)
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
            # Nothing leaves the machine: not by a proxy of the environment either.
            await _serve(config, state, sockets, trust_env=False, announce=partial(_announce_demo, config))
            nursery.cancel_scope.cancel()


def _announce_demo(config: Config, base: str) -> None:
    target, where = base, ""
    if base.startswith("unix:"):
        target, where = "http://localhost", f"--unix-socket {base.removeprefix('unix:')} "
    key, header = "any, none is asked for", ""
    if config.server.client_keys:
        key, header = "one of [server.client_keys]", "-H 'authorization: Bearer YOUR-KEY' "
    body = '{"model": "gpt-5.1", "stream": true, "messages": [{"role": "user", "content": "Hello, codexd!"}]}'
    print(  # noqa: T201 - this is what a person runs the demo for
        f"""
codexd {__version__} is running over a simulated ChatGPT (nothing leaves this machine).

  Base URL   {target}/v1{f"   (on the socket {base})" if where else ""}
  API key    {key}

Try it in another terminal:

  curl -N {where}{target}/v1/chat/completions {header}-H 'content-type: application/json' -d '{body}'

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
    try:
        for bind in config.listen():
            try:
                sockets.append(server.listen(resolve_bind(bind, os.environ)))
            except OSError as error:
                if not any_port or error.__cause__ is None or getattr(error.__cause__, "errno", 0) != errno.EADDRINUSE:
                    raise
                sockets.append(server.listen(f"{bind.rpartition(':')[0]}:0"))
    except (OSError, ConfigError) as error:
        for each in sockets:
            each.close()
        raise CannotStart(str(error)) from error
    return sockets


@asynccontextmanager
async def _parts(
    config: Config, state: Path, *, trust_env: bool
) -> AsyncIterator[tuple[Api, Session, Catalog, Upstream]]:
    async with make_client(trust_env=trust_env) as client:
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


async def _serve(
    config: Config,
    state: Path,
    sockets: list[socket.socket],
    *,
    trust_env: bool = True,
    announce: Callable[[str], None] = lambda _: None,
) -> None:
    notifier = Notifier()
    stop = trio.Event()
    files = server.files_of(sockets)
    try:
        async with (
            _parts(config, state, trust_env=trust_env) as (api, session, catalog, upstream),
            trio.open_nursery() as keepers,
        ):
            keepers.start_soon(_watch_signals, stop, notifier, keepers.cancel_scope)
            keepers.start_soon(session.keep)
            keepers.start_soon(catalog.keep, upstream)
            keepers.start_soon(_end_drain, stop, config.server.drain_seconds, api)
            async with trio.open_nursery() as web:
                serve = partial(server.serve, drain_seconds=config.server.drain_seconds + LAST_WORDS, stop=stop.wait)
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
        server.remove(files)
    log.info("stopped")


async def _end_drain(stop: trio.Event, seconds: float, api: Api) -> None:
    await stop.wait()
    await trio.sleep(seconds)
    api.close()


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
