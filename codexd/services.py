"""The services of a daemon: how they are built, and how a reloaded configuration reaches each of them."""

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog
import trio

from codexd.api.api import Api
from codexd.api.journal import Journal
from codexd.api.pipeline import Pipeline
from codexd.auth.issuer import Issuer
from codexd.auth.login import Logins
from codexd.auth.session import Session
from codexd.config.load import Sources
from codexd.config.model import Config
from codexd.config.paths import KEYS_FILE
from codexd.errors import ConfigError
from codexd.lowlevel.keepers import Keepers
from codexd.reasons import reason_of
from codexd.state.images import ImageStore
from codexd.state.instructions import Instructions
from codexd.state.keys import Keys
from codexd.state.responses import ResponseStore
from codexd.state.usage import Ledger
from codexd.system import memory
from codexd.system.memory import Room
from codexd.telemetry.level import LevelOverride
from codexd.telemetry.log import configure_logging
from codexd.upstream.account_tools import AccountTools
from codexd.upstream.catalog import Catalog
from codexd.upstream.client import HttpClient, Upstream, make_client, make_transport
from codexd.upstream.identity import user_agent
from codexd.upstream.transport import Transport

Load = Callable[[], tuple[Config, Path | None]]
"""Reads the configuration again from the same sources; returns it and its file. Raises ConfigError."""

FIXED = ("server.bind", "server.host", "server.port", "control.socket", "storage.dir", "storage.responses")
"""Keys that need a restart: where codexd listens, and where its state is stored."""

log = structlog.get_logger()


class Change(NamedTuple):
    """Keys whose values differ: ``changed`` are in effect, ``restart`` only after a restart of codexd."""

    changed: list[str]
    restart: list[str]


class Lifecycle:
    """The daemon's state for status reports. ``started`` is in trio's time."""

    def __init__(self) -> None:
        self.started = trio.current_time()
        self.listeners: list[str] = []
        self.keepers = Keepers()
        self.draining = False


class ConfigInForce:
    """The configuration in effect, and its file (``origin``), if any."""

    def __init__(self, config: Config, origin: Path | None, load: Load, sources: Sources | None = None) -> None:
        """``sources``: None where there is no file, as in a demonstration."""
        self.current = config
        self.origin = origin
        self.load = load
        self.sources = sources

    @property
    def source(self) -> str:
        return "built-in defaults" if self.origin is None else str(self.origin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Services:
    """The services of one daemon. ``state`` is its directory; ``clock`` gives Unix seconds."""

    config: ConfigInForce
    state: Path
    clock: Callable[[], float]
    lifecycle: Lifecycle
    level: LevelOverride
    issuer: Issuer
    session: Session
    logins: Logins
    keys: Keys
    catalog: Catalog
    upstream: Upstream
    account: AccountTools
    images: ImageStore
    responses: ResponseStore
    usage: Ledger
    room: Room
    instructions: Instructions
    pipeline: Pipeline
    journal: Journal
    api: Api

    def reload(self) -> Change:
        """Applies a changed configuration to new requests. Raises ConfigError; the old one then stays in effect."""
        try:
            wanted, origin = self.config.load()
            change, config = compare(self.config.current, wanted)
            configure_logging(config.logging, self.state)
        except ConfigError as error:
            log.error("the configuration cannot be used; the old one stays in effect", reason=reason_of(error))
            raise
        except OSError as error:
            log.error("the configuration cannot be used; the old one stays in effect", reason=reason_of(error))
            raise ConfigError(f"logging.dir: {error.filename}: {error.strerror}") from error
        self.config.current, self.config.origin = config, origin
        config, self.room.size = fitted(config)
        self.upstream.configure(config.backend)
        self.account.configure(config.backend)
        self.images.configure(config.storage)
        self.issuer.configure(config.oauth, identity(config))
        self.logins.configure(config.oauth, config.backend.originator)
        self.keys.configure(config)
        self.catalog.configure(config.models, config.backend.client_version)
        self.responses.configure(config.storage)
        self.api.configure(config)
        self.level.configure(config.logging.level)
        log.info(
            "configuration reloaded",
            changed=", ".join(change.changed) or "nothing",
            restart_needed=", ".join(change.restart) or None,
        )
        return change


def compare(old: Config, wanted: Config) -> tuple[Change, Config]:
    """Returns the differences, and the new configuration with the old values of ``FIXED``."""
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


def fitted(config: Config) -> tuple[Config, int]:
    """Returns the configuration with stores that fit into the memory, and the bytes that are left for requests."""
    server, storage, codex = config.server, config.storage, config.codex
    shares = memory.divided(
        memory.total() if server.memory_mb is None else server.memory_mb * memory.MIB,
        responses=storage.response_bytes,
        images=storage.image_bytes,
        reasoning=codex.reasoning_memory_bytes,
    )
    # What is on disk is not thrown away because a machine is small.
    responses = storage.response_bytes if storage.responses else shares.responses
    requests = max(shares.requests - (responses - shares.responses), memory.LEAST)
    return msgspec.structs.replace(
        config,
        storage=msgspec.structs.replace(storage, response_bytes=responses, image_bytes=shares.images),
        codex=msgspec.structs.replace(codex, reasoning_memory_bytes=shares.reasoning),
    ), requests


def identity(config: Config) -> dict[str, str]:
    """Returns the headers that identify the client to the issuer, for refresh and revocation."""
    return {"originator": config.backend.originator, "user-agent": user_agent(config.backend)}


@asynccontextmanager
async def build(
    config: ConfigInForce,
    state: Path,
    *,
    clock: Callable[[], float],
    trust_env: bool = True,
    on_change: Callable[[], None] = lambda: None,
) -> AsyncIterator[Services]:
    """Builds the services, which do not run yet. ``trust_env``: use the environment's proxies and certificates."""
    transport = make_transport(config.current.backend.ca_file, trust_env=trust_env)
    async with make_client(transport) as client:
        yield compose(config, state, client, transport, clock=clock, on_change=on_change)


def compose(
    in_force: ConfigInForce,
    state: Path,
    client: HttpClient,
    transport: Transport | None,
    *,
    clock: Callable[[], float],
    on_change: Callable[[], None] = lambda: None,
) -> Services:
    """Builds the services over an HTTP client and a transport for streams, if any. ``on_change``: see ``Session``."""
    config, size = fitted(in_force.current)
    room = Room(size)
    issuer = Issuer(client, config.oauth, identity(config))
    session = Session(state / "tokens.json", issuer=issuer, clock=clock, on_change=on_change)
    logins = Logins(issuer, session, config.oauth, config.backend.originator, clock=clock)
    keys = Keys(state / KEYS_FILE, config, clock=clock)
    catalog = Catalog(
        state / "models.json",
        names=config.models,
        client_version=config.backend.client_version,
        clock=clock,
    )
    upstream = Upstream(
        client, session, config.backend, on_models_etag=catalog.on_models_etag, clock=clock, transport=transport
    )
    responses = ResponseStore(state / "responses", config.storage, clock=clock)
    images = ImageStore(config.storage, clock=clock)
    usage = Ledger(state / "usage.json", clock=clock)
    instructions = Instructions(state / "prompts.json", clock=clock)
    account = AccountTools(client, session, config.backend, clock=clock)
    pipeline = Pipeline(
        config,
        keys=keys,
        catalog=catalog,
        upstream=upstream,
        account=account,
        instructions=instructions,
        clock=clock,
    )
    journal = Journal(usage, upstream.limits, clock=clock)
    lifecycle = Lifecycle()
    return Services(
        config=in_force,
        state=state,
        clock=clock,
        lifecycle=lifecycle,
        level=LevelOverride(config.logging.level, clock=clock),
        issuer=issuer,
        session=session,
        logins=logins,
        keys=keys,
        catalog=catalog,
        upstream=upstream,
        account=account,
        images=images,
        responses=responses,
        usage=usage,
        room=room,
        instructions=instructions,
        pipeline=pipeline,
        journal=journal,
        api=Api(
            pipeline,
            journal,
            session=session,
            logins=logins,
            keys=keys,
            catalog=catalog,
            upstream=upstream,
            account=account,
            images=images,
            responses=responses,
            usage=usage,
            room=room,
            faults=lambda: lifecycle.keepers.faults,
        ),
    )
