"""What a daemon is made of, built once, and how a new configuration reaches each part of it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import structlog
import trio

from codexd.api.app import Api
from codexd.auth.issuer import Issuer
from codexd.auth.login import Logins
from codexd.auth.session import Session
from codexd.config.model import Config
from codexd.config.paths import KEYS_FILE
from codexd.errors import ConfigError
from codexd.lowlevel import timers
from codexd.state.instructions import Instructions
from codexd.state.keys import Keys
from codexd.state.responses import ResponseStore
from codexd.state.usage import Ledger
from codexd.telemetry.log import configure_logging, set_level
from codexd.upstream.catalog import Catalog
from codexd.upstream.client import (
    USER_AGENT,
    Upstream,
    make_client,
    make_transport,
)

LogLevel = Literal["debug", "info", "warn", "error"]
Load = Callable[[], tuple[Config, Path | None]]

FIXED = ("server.bind", "server.host", "server.port", "control.socket", "storage.dir", "storage.responses")
"""What a running daemon does not change: where it listens and where its state lies."""

log = structlog.get_logger()


class Change(NamedTuple):
    """Keys whose values differ: ``changed`` are in force, ``restart`` are not until codexd is started anew."""

    changed: list[str]
    restart: list[str]


class Parts:
    """``load`` reads the configuration anew, from where it came at the start."""

    def __init__(
        self,
        config: Config,
        origin: Path | None,
        load: Load,
        state: Path,
        *,
        clock: Callable[[], float],
        issuer: Issuer,
        session: Session,
        logins: Logins,
        keys: Keys,
        catalog: Catalog,
        upstream: Upstream,
        store: ResponseStore,
        ledger: Ledger,
        instructions: Instructions,
    ) -> None:
        self.config = config
        self.origin = origin
        self.state = state
        self.clock = clock
        self.issuer = issuer
        self.session = session
        self.logins = logins
        self.keys = keys
        self.catalog = catalog
        self.upstream = upstream
        self.api = Api(
            config,
            session=session,
            logins=logins,
            keys=keys,
            catalog=catalog,
            upstream=upstream,
            store=store,
            ledger=ledger,
            instructions=instructions,
            clock=clock,
        )
        self.store = store
        self.ledger = ledger
        self.instructions = instructions
        self.started = trio.current_time()
        self.listeners: list[str] = []
        self.draining = False
        self.level: LogLevel = config.logging.level
        self.level_until: float | None = None
        self._level_timer: timers.Timer | None = None
        self._load = load

    def set_level(self, level: LogLevel | None, seconds: float) -> None:
        """Log from this level on for so long; None is what the configuration says."""
        if self._level_timer is not None:
            self._level_timer.cancel()
        self.level, self.level_until = level or self.config.logging.level, None
        set_level(self.level)
        if level is not None:
            self.level_until = self.clock() + seconds
            self._level_timer = timers.call_at(trio.current_time() + seconds, lambda: self.set_level(None, 0))
        log.info("the log's level has changed", to=self.level, seconds=seconds or None)

    def read_config(self) -> tuple[Config, Path | None]:
        """The configuration as it is on disk now. Raises ConfigError."""
        return self._load()

    def reload(self) -> Change:
        """Take a changed configuration over, without touching an open stream. Raises ConfigError; then nothing is."""
        try:
            wanted, origin = self._load()
            change, config = compare(self.config, wanted)
            configure_logging(config.logging, self.state)
        except ConfigError as error:
            log.error("the configuration cannot be used; the one in force stays", reason=str(error))
            raise
        except OSError as error:
            log.error("the configuration cannot be used; the one in force stays", reason=str(error))
            raise ConfigError(f"logging.dir: {error.filename}: {error.strerror}") from error
        self.upstream.configure(config.backend)
        self.config, self.origin = config, origin
        self.issuer.configure(config.oauth, identity(config))
        self.logins.configure(config.oauth, config.backend.originator)
        self.keys.configure(config)
        self.catalog.configure(config.models.aliases, config.backend.client_version)
        self.store.configure(config.storage)
        self.api.configure(config)
        if self.level_until is not None:
            # What a person has asked for a while ago still holds.
            set_level(self.level)
        else:
            self.level = config.logging.level
        log.info(
            "configuration reloaded",
            changed=", ".join(change.changed) or "nothing",
            restart_needed=", ".join(change.restart) or None,
        )
        return change


def compare(old: Config, wanted: Config) -> tuple[Change, Config]:
    """What differs, and the new configuration with what is fixed as it was."""
    change = Change([], [])
    sections = {}
    for section in msgspec.structs.fields(Config):
        before, after = getattr(old, section.name), getattr(wanted, section.name)
        kept = {}
        for field in msgspec.structs.fields(section.type):
            key, value = f"{section.name}.{field.name}", getattr(before, field.name)
            if value == getattr(after, field.name):
                continue
            if key in FIXED:
                kept[field.name] = value
            (change.restart if key in FIXED else change.changed).append(key)
        sections[section.name] = msgspec.structs.replace(after, **kept)
    return change, Config(**sections)


def identity(config: Config) -> dict[str, str]:
    """The headers that tell the issuer who refreshes and revokes."""
    return {"originator": config.backend.originator, "user-agent": USER_AGENT}


@asynccontextmanager
async def build(
    config: Config,
    origin: Path | None,
    load: Load,
    state: Path,
    *,
    clock: Callable[[], float],
    trust_env: bool = True,
    on_change: Callable[[], None] = lambda: None,
) -> AsyncIterator[Parts]:
    """The parts, not running yet. ``on_change`` is called when somebody signed in or out."""
    transport = make_transport(config.backend.ca_file, trust_env=trust_env)
    async with make_client(transport) as client:
        issuer = Issuer(client, config.oauth, identity(config))
        session = Session(state / "tokens.json", issuer=issuer, clock=clock, on_change=on_change)
        catalog = Catalog(
            state / "models.json",
            aliases=config.models.aliases,
            client_version=config.backend.client_version,
            clock=clock,
        )
        yield Parts(
            config,
            origin,
            load,
            state,
            clock=clock,
            issuer=issuer,
            session=session,
            logins=Logins(issuer, session, config.oauth, config.backend.originator, clock=clock),
            keys=Keys(state / KEYS_FILE, config, clock=clock),
            catalog=catalog,
            upstream=Upstream(
                client,
                session,
                config.backend,
                on_models_etag=catalog.on_models_etag,
                clock=clock,
                transport=transport,
            ),
            store=ResponseStore(state / "responses", config.storage, clock=clock),
            ledger=Ledger(state / "usage.json", clock=clock),
            instructions=Instructions(state / "prompts.json", clock=clock),
        )
