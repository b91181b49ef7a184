"""The daemon: sockets, services, nurseries, readiness and drain.

    state     | left by                                                       | to
    ----------|---------------------------------------------------------------|---------
    starting  | all listeners serve (``_ready``: READY=1)                     | running
    running   | SIGTERM, SIGINT, or no request for ``exit_idle_seconds``      | draining
    draining  | no open streams, the drain's deadline, or a second signal     | stopped

Two nurseries: the keepers (token, catalogue, signals) run until the web nursery has drained, because open streams may
need a token. A keeper that fails starts again later, and ``codexctl status`` shows why (``lowlevel.keepers``); a crash
of the server itself ends the process, and systemd restarts it.
"""

import contextlib
import gc
import hashlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import msgspec
import structlog
import trio

from codexd import __version__
from codexd.api.api import WEBSOCKET
from codexd.api.quart_app import WebsocketApp
from codexd.auth import oauth, store
from codexd.config.load import Sources
from codexd.config.model import Config
from codexd.config.paths import state_dir
from codexd.control import server as control_server
from codexd.control.verbs import Verbs
from codexd.errors import ApiError, CannotStart, ConfigError
from codexd.lowlevel import timers, workers
from codexd.protocol.codex import rate_limits
from codexd.reasons import reason_of
from codexd.server import hypercorn, sockets
from codexd.server.connection import Admission
from codexd.server.listeners import Listeners, open_all, open_api, open_control
from codexd.server.request import Dispatch
from codexd.server.serve import serve
from codexd.services import ConfigInForce, Services, build
from codexd.state import files
from codexd.state.lock import InUse, holder_of, lock_directory
from codexd.system import certificates, device_code, memory, support
from codexd.system.peer import user_ids
from codexd.system.systemd import Notifier, credential, keep_alive, watchdog_seconds
from codexd.telemetry.log import configure_logging
from codexd.upstream import proxies

log = structlog.get_logger()

_clock: Callable[[], float] = time.time  # noqa: TID251 - the only clock, passed to all parts

DEMO_PATIENCE = 4.0
"""Seconds after which the simulated issuer approves a device code, so that the user can see the code first."""

STATUS_INTERVAL = 5.0
"""Seconds between updates of the status line in ``systemctl status``."""

MEMORY_PAUSE = 0.25
"""Seconds between two looks for free memory."""

IDLE_CHECK = 10.0
"""Maximum seconds between checks for ``server.exit_idle_seconds``."""

LAST_WORDS = 2.0
"""Seconds after the drain in which open answers are ended with an error event, before their connections are closed."""


async def run(config: Config, origin: Path | None, sources: Sources) -> None:
    """Runs the daemon until a signal, then drains. ``sources`` is read again on a reload. Raises CannotStart."""
    state = state_dir(config, os.environ)
    _configure(config, state)
    log.info("starting", version=__version__, config=str(origin or "built-in defaults"), state=str(state))
    trusted = certificates.store(os.environ, config.backend.ca_file)
    for fault in [*proxies.problems(os.environ), *certificates.problems(trusted)]:
        log.error(
            "invalid proxy or certificate setting: connections that use it fail until it is fixed", reason=str(fault)
        )
    hypercorn.check()
    try:
        listening = open_all(config, os.environ)
    except CannotStart as error:
        if isinstance(error.__cause__, sockets.AddressInUse) and (holder := holder_of(state)) is not None:
            raise _second(state, holder) from error
        raise
    # A failure is reported by the first write to the directory; until then codexd can do without it.
    with _no_secrets_for_others(listening), contextlib.suppress(OSError):
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.check_private(state)
    if config.server.exit_idle_seconds and not listening.activated:
        log.warning(
            "server.exit_idle_seconds is ignored: systemd passed no socket, so nothing would start codexd again"
        )
    services = partial(build, ConfigInForce(config, origin, sources.load, sources), state, clock=_clock)
    try:
        with _no_secrets_for_others(listening), lock_directory(state) as lock:
            _import_credential(state)
            await _serve(services, listening, release=lock.release)
    except InUse as error:
        sockets.remove(listening.files)
        raise _second(state, error.holder) from error


def _second(state: Path, holder: str) -> CannotStart:
    """Returns the error of a daemon that has found another one; it names all that the two cannot share."""
    return CannotStart(
        f"codexd is already running ({holder}, state directory {state}): see `codexctl status`. To run a second one, "
        "give it its own address (server.bind, or $PORT), state directory (storage.dir) and control socket "
        "(control.socket)."
    )


@contextlib.contextmanager
def _no_secrets_for_others(listening: Listeners) -> Iterator[None]:
    try:
        yield
    except files.Unsafe as error:
        sockets.remove(listening.files)
        raise CannotStart(str(error)) from error


async def demo(config: Config) -> None:
    """Runs over a simulated ChatGPT, signed in, with its state in a temporary directory. Raises CannotStart."""
    # Imported here because the daemon itself does not need it.
    from codexd.demo.announcement import announce
    from codexd.demo.chatgpt import ChatGPT
    from codexd.demo.issuer import SimulatedIssuer

    with tempfile.TemporaryDirectory(prefix="codexd-demo-") as directory:
        state = Path(directory)
        _configure(config, state)
        opened = open_api(config, os.environ, any_port=config.server.port is None)
        control = state / "control.sock"
        own = open_control(control, opened)
        listening = Listeners(opened, own, sockets.files_of([*opened, own]), activated=False)
        chatgpt = ChatGPT(_clock, SimulatedIssuer(_clock, approves_after=DEMO_PATIENCE))
        async with trio.open_nursery() as nursery:
            simulated = await nursery.start(chatgpt.serve)
            config = msgspec.structs.replace(
                config,
                oauth=msgspec.structs.replace(config.oauth, issuer=simulated),
                backend=msgspec.structs.replace(config.backend, url=f"{simulated}/backend-api"),
            )
            store.save(state / "tokens.json", chatgpt.issuer.sign_in())
            # trust_env is off so that no traffic leaves the machine through a proxy of the environment.
            in_force = ConfigInForce(config, None, lambda: (config, None))
            services = partial(build, in_force, state, clock=_clock, trust_env=False)
            await _serve(services, listening, announce=partial(announce, config, control))
            nursery.cancel_scope.cancel()


def _configure(config: Config, state: Path) -> None:
    try:
        configure_logging(config.logging, state)
    except OSError as error:
        raise CannotStart(f"logging.dir: {error.filename}: {error.strerror}") from error


def _import_credential(state: Path) -> None:
    """Imports the sign-in of ``LoadCredential=tokens.json:…`` once, because its refresh token is single-use."""
    path, mark = state / "tokens.json", state / "credential.sha256"
    try:
        data = credential(os.environ, "tokens.json")
        if data is None or path.exists():
            return
        digest = hashlib.sha256(data).hexdigest().encode()
        if mark.exists() and mark.read_bytes() == digest:
            # It was imported before, and codexd has signed out since: its tokens are used up.
            return
        store.save(path, store.from_bytes(data))
        files.write_durably(mark, digest)
    except (OSError, store.StoreError) as error:
        log.error("the credential tokens.json cannot be imported", reason=reason_of(error))
    else:
        log.info("the credential tokens.json was imported")


async def _serve(
    services: Callable[..., AbstractAsyncContextManager[Services]],
    listeners: Listeners,
    *,
    announce: Callable[[str], None] = lambda _: None,
    release: Callable[[], None] = lambda: None,
) -> None:
    """Runs until stopped and drained. ``release`` is called when the drain begins."""
    changed = _Changes()
    try:
        async with services(on_change=changed.ring) as made:
            await _Daemon(made, listeners, changed, announce, release).run()
    finally:
        sockets.remove(listeners.files)
    log.info("stopped")


class _Daemon:
    """The running daemon. ``_stop`` is set when the drain begins."""

    def __init__(
        self,
        services: Services,
        listeners: Listeners,
        changed: "_Changes",
        announce: Callable[[str], None],
        release: Callable[[], None],
    ) -> None:
        self._services = services
        self._listeners = listeners
        self._changed = changed
        self._announce = announce
        self._release = release
        self._notifier = Notifier()
        self._stop = trio.Event()
        self._told = ""
        services.lifecycle.listeners = [sockets.describe(each) for each in listeners.api]

    async def run(self) -> None:
        services, api = self._services, self._listeners.api
        keep = services.lifecycle.keepers.keep
        async with trio.open_nursery() as keepers:
            keepers.start_soon(self._watch_signals, keepers.cancel_scope)
            tasks: dict[str, Callable[[], Awaitable[None]]] = {
                "sign-in": services.session.run,
                "model catalogue": partial(services.catalog.run, services.upstream),
                "backend": services.upstream.run,
                "keys": services.keys.run,
                "usage": services.usage.run,
                "sign-ins": services.logins.run,
                "stored responses": services.responses.run,
            }
            for name, run in tasks.items():
                keepers.start_soon(keep, name, run)
            keepers.start_soon(self._end_drain)
            await keepers.start(control_server.serve, self._listeners.control, Verbs(services, api[0]).handle)
            async with trio.open_nursery() as web:
                await web.start(self._serve_api)
                self._ready()
                keepers.start_soon(keep, "status", self._tell_status)
                keepers.start_soon(keep, "memory", self._give_memory_back)
                if (seconds := watchdog_seconds(os.environ)) is not None:
                    watch = partial(keep_alive, self._notifier, seconds, api[0])
                    keepers.start_soon(keep, "watchdog", watch)
                if self._listeners.activated:
                    keepers.start_soon(keep, "idle exit", self._exit_when_idle)
                if not services.session.signed_in:
                    keepers.start_soon(keep, "sign-in at the terminal", self._not_signed_in)
            keepers.cancel_scope.cancel()

    async def _serve_api(self, task_status: trio.TaskStatus[None]) -> None:
        services = self._services
        await serve(
            WebsocketApp(WEBSOCKET, services.api.websocket.serve),
            self._listeners.api,
            drain_seconds=lambda: self._drain_seconds + LAST_WORDS,
            stop=self._stop.wait,
            dispatch=Dispatch(
                services.api.find,
                services.api.serves_websocket,
                lambda: self._config.server.max_body_bytes,
                services.room,
            ),
            admission=Admission(
                lambda: self._config.server.max_connections,
                lambda: user_ids(self._config.server.allowed_users),
                services.api.websocket.evict,
            ),
            task_status=task_status,
        )

    @property
    def _config(self) -> Config:
        return self._services.config.current

    @property
    def _drain_seconds(self) -> float:
        return self._config.server.drain_seconds

    def _ready(self) -> None:
        for address in self._services.lifecycle.listeners:
            log.info("listening", address=address)
        # Objects made by the start-up stay alive: the garbage collector need not examine them again.
        gc.collect()
        gc.freeze()
        self._told = _status(self._services)
        self._notifier.ready(self._told)
        self._announce(self._services.lifecycle.listeners[0])
        if (differs := support.untested_system()) is not None:
            log.warning(differs)
        if others := support.untested_versions():
            log.warning("installed packages are not those that codexd was tested with", packages=", ".join(others))

    async def _tell_status(self) -> None:
        services, due = self._services, trio.current_time()
        while True:
            services.journal.metrics.lagged(max(0.0, trio.current_time() - due))
            due = timers.next_round(STATUS_INTERVAL)
            if not services.lifecycle.draining and (status := _status(services)) != self._told:
                self._told = status
                self._notifier.status(status)
            with trio.move_on_at(due):
                await self._changed.wait()

    async def _give_memory_back(self) -> None:
        """Frees what large requests left: a client that disconnects can leave megabytes in a reference cycle."""
        while True:
            freed = trio.Event()
            self._services.room.on_freed = freed.set
            with trio.move_on_at(timers.next_round(STATUS_INTERVAL)):
                await freed.wait()
            if freed.is_set() or workers.has_worked():
                await trio.to_thread.run_sync(memory.give_back)
                await trio.sleep(MEMORY_PAUSE)

    async def _not_signed_in(self) -> None:
        """Starts a device sign-in at a terminal; elsewhere, logs how to sign in."""
        if sys.stderr.isatty() and not self._services.session.has_credentials:
            await _sign_in_here(self._services)
        else:
            log.warning("not signed in: run `codexctl login`; until then requests fail with status 401")

    # --- the end

    async def _watch_signals(self, everything: trio.CancelScope) -> None:
        # A closed terminal sends SIGHUP too: a daemon that was started there by hand has to stop, not to reload.
        at_terminal = sys.stderr.isatty()
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                name = signal.Signals(number).name
                if number == signal.SIGHUP and sys.stderr.isatty() == at_terminal:
                    self._reload()
                    continue
                if self._stop.is_set():
                    log.warning("stopping immediately", signal=name)
                    everything.cancel()
                    return
                log.info("stopping: requests in progress may finish", signal=name)
                self._begin_drain()

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            self._services.reload()
        except ConfigError:
            pass  # it is logged, and the old configuration stays in effect
        except Exception as error:
            log.error("internal error during a reload", exc_info=error)
        self._notifier.ready(_status(self._services))

    async def _exit_when_idle(self) -> None:
        """Stops when idle. systemd keeps the sockets and starts codexd again for the next connection."""
        while not self._stop.is_set():
            limit = self._config.server.exit_idle_seconds
            attempt = self._services.logins.current
            if attempt is not None and not attempt.finished.is_set():
                await attempt.finished.wait()
            idle = self._services.api.idle_seconds()
            if limit and idle >= limit:
                log.info("stopping: idle", seconds=round(idle))
                self._begin_drain()
                return
            await trio.sleep(min(limit - idle, IDLE_CHECK) if limit else IDLE_CHECK)

    def _begin_drain(self) -> None:
        self._services.lifecycle.draining = True
        self._notifier.stopping()
        self._stop.set()

    async def _end_drain(self) -> None:
        await self._stop.wait()
        self._services.keys.retire()
        self._services.usage.retire()
        self._release()
        self._services.api.drain()
        await trio.sleep(self._drain_seconds)
        self._services.pipeline.close()


class _Changes:
    """An event that can be set repeatedly, after each sign-in and sign-out."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self) -> None:
        await self._rung.wait()
        self._rung = trio.Event()


def _status(services: Services) -> str:
    """Returns the status line for systemd: ``signed in as a@b, 5h 37%, week 12%, 3 in progress``."""
    sign_in = services.session.describe()
    if not sign_in.signed_in:
        return "signed out: run `codexctl login`"
    usage = services.upstream.limits()
    windows = [window for window in (usage.windows if usage else ()) if window.limit == rate_limits.MAIN]
    shown = [f"{rate_limits.short(window)} {window.used_percent:.0f}%" for window in windows]
    streams = services.pipeline.open
    who = f"signed in as {sign_in.email}" if sign_in.email else "signed in"
    return ", ".join([who, *shown, f"{streams} in progress"])


async def _sign_in_here(services: Services) -> None:
    try:
        attempt, _ = await services.logins.start("device")
    except ApiError:
        _say(
            "The sign-in could not be started; the log above says why. Run `codexctl login` to try again. Until then, "
            "requests fail with status 401."
        )
        return
    minutes = round(oauth.DEVICE_LIFETIME / 60)
    screen = device_code.Screen.here(colour=not os.environ.get("NO_COLOR"))
    _say(device_code.instructions(attempt.url, attempt.user_code or "", minutes, screen).strip("\n"))
    await attempt.finished.wait()
    if attempt.error is not None:
        _say(str(attempt.error))
    elif attempt.signed_in is not None:
        _say(f"Signed in as {attempt.signed_in.email or 'an unnamed account'}.")


def _say(text: str) -> None:
    # The terminal may be closed by now; that must not end the daemon.
    with contextlib.suppress(OSError):
        print(f"\n{text}\n", file=sys.stderr, flush=True)  # noqa: T201
