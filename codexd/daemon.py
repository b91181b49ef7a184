"""The daemon: sockets, parts, nurseries, readiness, drain.

Two nurseries. The keepers (token, catalogue, signals) live until the web nursery has drained: streams that are still
open may need a token. A crash in either ends the process, and systemd starts it anew.
"""

import contextlib
import gc
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import msgspec
import structlog
import trio

from codexd import __version__
from codexd.auth import oauth, store
from codexd.config.model import Config
from codexd.config.paths import state_dir
from codexd.control import server as control_server
from codexd.control.verbs import Verbs
from codexd.errors import ApiError, CannotStart, ConfigError
from codexd.parts import Load, Parts, build
from codexd.protocol import limits
from codexd.server import hypercorn as server
from codexd.server import sockets
from codexd.server.listeners import (
    Listeners,
    open_all,
    open_api,
    open_control,
)
from codexd.state import files
from codexd.state.lock import InUse, lock_directory
from codexd.system import certificates, device_code, support
from codexd.system.peer import user_ids
from codexd.system.systemd import (
    Notifier,
    credential,
    keep_alive,
    watchdog_seconds,
)
from codexd.telemetry.log import configure_logging
from codexd.upstream import proxies

log = structlog.get_logger()

_clock: Callable[[], float] = time.time  # noqa: TID251 - the one clock, which all others are given


DEMO_PATIENCE = 4.0
"""Seconds after which the simulated person approves a device code: time to look at it."""

STATUS_INTERVAL = 5.0
"""Seconds between two looks at what ``systemctl status`` shows."""

IDLE_CHECK = 10.0
"""Seconds between two looks at whether anybody still asks for anything, at most."""

LAST_WORDS = 2.0
"""Seconds after the drain in which answers that are still open are ended with an error, before they are cut."""


async def run(config: Config, origin: Path | None, load: Load) -> None:
    """Run until SIGTERM or SIGINT and drain; a second signal ends it at once. Raises CannotStart.

    ``load`` reads the configuration anew, when a reload is asked for.
    """
    state = state_dir(config, os.environ)
    _configure(config, state)
    log.info("starting", version=__version__, config=str(origin or "built-in defaults"), state=str(state))
    trusted = certificates.store(os.environ, config.backend.ca_file)
    for fault in [*proxies.problems(os.environ), *certificates.problems(trusted)]:
        log.error("connections that need this fail until it is corrected", reason=str(fault))
    listening = open_all(config, os.environ)
    # What cannot be made is said by whoever wants to write there; a daemon that only reads may do without.
    with contextlib.suppress(OSError):
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if config.server.exit_idle_seconds and not listening.activated:
        log.warning("server.exit_idle_seconds is not used: no socket came from systemd, so nobody would start codexd")
    parts = partial(build, config, origin, load, state, clock=_clock)
    try:
        with lock_directory(state) as lock:
            _import_credential(state)
            await _serve(parts, listening, release=lock.release)
    except InUse as error:
        sockets.remove(listening.files)
        raise CannotStart(
            f"the state directory {state} is in use by {error.holder}, another codexd: stop that one, or give this one "
            "a directory of its own (storage.dir, or $STATE_DIRECTORY)"
        ) from error


async def demo(config: Config) -> None:
    """Run over a simulated ChatGPT, signed in, with its state in a temporary directory. Raises CannotStart."""
    # Imported here: the daemon proper never needs it.
    from codexd.demo.chatgpt import ChatGPT
    from codexd.demo.issuer import Issuer

    with tempfile.TemporaryDirectory(prefix="codexd-demo-") as directory:
        state = Path(directory)
        _configure(config, state)
        opened = open_api(config, os.environ, any_port=config.server.port is None)
        control = state / "control.sock"
        own = open_control(control, opened)
        listening = Listeners(opened, own, sockets.files_of([*opened, own]), activated=False)
        chatgpt = ChatGPT(_clock, Issuer(_clock, approves_after=DEMO_PATIENCE))
        async with trio.open_nursery() as nursery:
            simulated = await nursery.start(chatgpt.serve)
            config = msgspec.structs.replace(
                config,
                oauth=msgspec.structs.replace(config.oauth, issuer=simulated),
                backend=msgspec.structs.replace(config.backend, url=f"{simulated}/backend-api"),
            )
            store.save(state / "tokens.json", chatgpt.issuer.sign_in())
            # Nothing leaves the machine: not by a proxy of the environment either.
            parts = partial(build, config, None, lambda: (config, None), state, clock=_clock, trust_env=False)
            await _serve(parts, listening, announce=partial(_announce_demo, config, control))
            nursery.cancel_scope.cancel()


def _announce_demo(config: Config, control: Path, base: str) -> None:
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

And codexctl, where every verb works (after `login --device` the simulated person approves by itself):

  export CODEXCTL_SOCKET={control}
  {_codexctl()} status

Ctrl-C ends it.
""",
        flush=True,
    )


def _configure(config: Config, state: Path) -> None:
    try:
        configure_logging(config.logging, state)
    except OSError as error:
        raise CannotStart(f"logging.dir: {error.filename}: {error.strerror}") from error


def _codexctl() -> str:
    """How to start it here: in a checkout it is on nobody's path, but beside the interpreter."""
    beside = Path(sys.executable).with_name("codexctl")
    if shutil.which("codexctl"):
        return "codexctl"
    return str(beside) if beside.exists() else f"{sys.executable} -m codexd.ctl"


def _import_credential(state: Path) -> None:
    """Take over the sign-in that ``LoadCredential=tokens.json:…`` brings, once: it changes hands with that."""
    path, mark = state / "tokens.json", state / "credential.sha256"
    try:
        data = credential(os.environ, "tokens.json")
        if data is None or path.exists():
            return
        digest = hashlib.sha256(data).hexdigest().encode()
        if mark.exists() and mark.read_bytes() == digest:
            # It was taken over before and signed out since: its tokens are spent.
            return
        store.save(path, store.from_bytes(data))
        files.write_durably(mark, digest)
    except (OSError, store.StoreError) as error:
        log.error("the credential tokens.json cannot be taken over", reason=str(error))
    else:
        log.info("the credential tokens.json was taken over")


async def _serve(
    parts: Callable[..., AbstractAsyncContextManager[Parts]],
    listening: Listeners,
    *,
    announce: Callable[[str], None] = lambda _: None,
    release: Callable[[], None] = lambda: None,
) -> None:
    """``release`` is called when the drain begins."""
    notifier = Notifier()
    stop = trio.Event()
    changed = _Changes()
    try:
        async with parts(on_change=changed.ring) as made, trio.open_nursery() as keepers:
            made.listeners = [sockets.describe(each) for each in listening.api]
            keepers.start_soon(_watch_signals, stop, notifier, made, keepers.cancel_scope)
            keepers.start_soon(made.session.run)
            keepers.start_soon(made.catalog.run, made.upstream)
            keepers.start_soon(made.upstream.keep_warm)
            keepers.start_soon(made.keys.run)
            keepers.start_soon(made.ledger.run)
            keepers.start_soon(made.logins.run)
            keepers.start_soon(made.store.run)
            keepers.start_soon(_end_drain, stop, made, release)
            await keepers.start(control_server.serve, listening.control, Verbs(made, listening.api[0]).handle)
            async with trio.open_nursery() as web:
                serve = partial(
                    server.serve,
                    drain_seconds=lambda: _drain_seconds(made) + LAST_WORDS,
                    stop=stop.wait,
                    websockets=server.Websockets(made.api.serves_websocket, lambda: made.config.server.max_body_bytes),
                    lane=made.api.lane,
                    admission=server.Admission(
                        lambda: made.config.server.max_connections, lambda: user_ids(made.config.server.allowed_users)
                    ),
                )
                await web.start(serve, made.api.app(), listening.api)
                for address in made.listeners:
                    log.info("listening", address=address)
                # What lives from here on was made by start-up: the collector need not look at it again.
                gc.collect()
                gc.freeze()
                status = _status(made)
                notifier.ready(status)
                announce(made.listeners[0])
                _note_what_is_untested()
                keepers.start_soon(_tell_status, changed, notifier, made, status)
                if (seconds := watchdog_seconds(os.environ)) is not None:
                    keepers.start_soon(keep_alive, notifier, seconds, listening.api[0])
                if listening.activated:
                    keepers.start_soon(_exit_when_idle, stop, notifier, made)
                if not made.session.signed_in:
                    await _not_signed_in(keepers, made)
            keepers.cancel_scope.cancel()
    finally:
        sockets.remove(listening.files)
    log.info("stopped")


def _note_what_is_untested() -> None:
    if (differs := support.untested_system()) is not None:
        log.warning(differs)
    if others := support.untested_versions():
        log.warning("installed packages are not those that codexd was tested with", packages=", ".join(others))


class _Changes:
    """A bell that any part may ring: somebody signed in or out."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self) -> None:
        await self._rung.wait()
        self._rung = trio.Event()


def _status(parts: Parts) -> str:
    """``signed in as a@b, 5h 37%, week 12%, 3 streams``."""
    sign_in = parts.session.describe()
    if not sign_in.signed_in:
        return "signed out: run codexctl login"
    usage = parts.upstream.limits()
    windows = [window for window in (usage.windows if usage else ()) if window.limit == limits.MAIN]
    shown = [f"{limits.short(window)} {window.used_percent:.0f}%" for window in windows]
    streams = parts.api.answers.open
    who = f"signed in as {sign_in.email}" if sign_in.email else "signed in"
    return ", ".join([who, *shown, f"{streams} stream{'' if streams == 1 else 's'}"])


async def _tell_status(changed: _Changes, notifier: Notifier, parts: Parts, told: str) -> None:
    """``told`` is what systemd has heard already; it may be outdated before this begins."""
    due = trio.current_time()
    while True:
        parts.api.metrics.lagged(max(0.0, trio.current_time() - due))
        due = trio.current_time() + STATUS_INTERVAL
        if not parts.draining and (status := _status(parts)) != told:
            told = status
            notifier.status(status)
        with trio.move_on_after(STATUS_INTERVAL):
            await changed.wait()


async def _exit_when_idle(stop: trio.Event, notifier: Notifier, parts: Parts) -> None:
    """systemd keeps the sockets, and starts codexd again with the next request."""
    while not stop.is_set():
        limit = parts.config.server.exit_idle_seconds
        attempt = parts.logins.current
        if attempt is not None and not attempt.finished.is_set():
            await attempt.finished.wait()
        idle = parts.api.idle_seconds()
        if limit and idle >= limit:
            log.info("stopping: nobody has asked for anything", seconds=round(idle))
            _stop(stop, notifier, parts)
            return
        await trio.sleep(min(limit - idle, IDLE_CHECK) if limit else IDLE_CHECK)


def _stop(stop: trio.Event, notifier: Notifier, parts: Parts) -> None:
    parts.draining = True
    notifier.stopping()
    stop.set()


async def _not_signed_in(keepers: trio.Nursery, parts: Parts) -> None:
    """Say what to do; at a terminal, start doing it."""
    log.warning("not signed in: run codexctl login; until then requests get 401")
    if sys.stderr.isatty() and not parts.session.has_credentials:
        keepers.start_soon(_sign_in_here, parts)


async def _sign_in_here(parts: Parts) -> None:
    try:
        attempt, _ = await parts.logins.start("device")
    except ApiError as error:
        _say(f"Not signed in, and a sign-in could not be started: {error}")
        return
    minutes = round(oauth.DEVICE_LIFETIME / 60)
    width, colour = shutil.get_terminal_size().columns, not os.environ.get("NO_COLOR")
    _say(device_code.instructions(attempt.url, attempt.user_code or "", minutes, width=width, colour=colour).strip())
    await attempt.finished.wait()
    if attempt.error is not None:
        _say(str(attempt.error))
    elif attempt.signed_in is not None:
        _say(f"Signed in as {attempt.signed_in.email or 'an account without an address'}.")


def _say(text: str) -> None:
    # The terminal may have been closed meanwhile, and that must not end the daemon.
    with contextlib.suppress(OSError):
        print(f"\n{text}\n", file=sys.stderr, flush=True)  # noqa: T201


def _drain_seconds(parts: Parts) -> float:
    return parts.config.server.drain_seconds


async def _end_drain(stop: trio.Event, parts: Parts, release: Callable[[], None]) -> None:
    await stop.wait()
    parts.keys.retire()
    parts.ledger.retire()
    release()
    parts.api.drain()
    await trio.sleep(_drain_seconds(parts))
    parts.api.answers.close()


async def _watch_signals(stop: trio.Event, notifier: Notifier, parts: Parts, everything: trio.CancelScope) -> None:
    # A closed terminal sends SIGHUP too, to a daemon that somebody has started there by hand: that one is to stop.
    at_terminal = sys.stderr.isatty()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP and sys.stderr.isatty() == at_terminal:
                notifier.reloading()
                _reload(parts)
                notifier.ready(_status(parts))
                continue
            if stop.is_set():
                log.warning("stopping at once", signal=name)
                everything.cancel()
                return
            log.info("stopping: open streams may finish", signal=name)
            _stop(stop, notifier, parts)


def _reload(parts: Parts) -> None:
    try:
        parts.reload()
    except ConfigError:
        pass  # it is in the log, and the configuration in force stays
    except Exception as error:
        log.error("a reload met a fault of codexd itself", exc_info=error)
