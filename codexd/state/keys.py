"""Client keys: from the configuration, and made with ``codexctl keys``.

A made key is 32 random bytes, shown once and stored as its SHA-256. It cannot be guessed, so a slow hash would add no
protection and cost time for every request. ``keys.json`` holds names, hashes and times.
"""

import fnmatch
import hashlib
import hmac
import math
import re
import secrets
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import structlog
import trio
from msgspec import Struct

from codexd import errors
from codexd.config.model import Config, KeyLimits
from codexd.lowlevel import workers
from codexd.protocol import decoding
from codexd.reasons import quoted, reason_of
from codexd.state.files import Newest, set_aside

PREFIX = "sk-codexd-"
MAX_KEYS = 1000
SAVE_INTERVAL = 900.0
"""Seconds by which a last-used time on disk may be late. Each save syncs the disk, which delays all streams."""

MINUTE = 60.0

NONE = KeyLimits()
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")

log = structlog.get_logger()


class Key(Struct):
    """A made key. Times are Unix seconds; ``sha256`` is in hex."""

    name: str
    sha256: str
    created_at: int
    last_used_at: int | None = None
    strict: bool = False
    limits: KeyLimits = NONE


class _Use:
    """Current use of one key: requests in progress, and when those of the last minute began (trio's clock)."""

    __slots__ = ("began", "open")

    def __init__(self) -> None:
        self.open = 0
        self.began: deque[float] = deque()


class _KeysFile(Struct):
    keys: list[Key]
    version: int = 1


class Listed(Struct, frozen=True, kw_only=True):
    """A key as ``codexctl`` lists it. ``source`` is the place where it can be removed."""

    name: str
    source: str
    created_at: int | None
    last_used_at: int | None
    strict: bool
    limits: KeyLimits


class Keys:
    """All client keys. ``clock`` gives Unix seconds.

    If the file cannot be used, a key is still required and no made key is accepted.
    """

    def __init__(self, path: Path, config: Config, *, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._made: dict[str, Key] = {}
        self._used: dict[str, int] = {}
        self._uses: dict[str, _Use] = {}
        self._lent: dict[str, bytes] = {}
        self._unsaved = self._retired = False
        self._writes = Newest()
        self.fault: str | None = None
        self._load()
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Applies ``[server.client_keys]`` and whether a key is always required."""
        self._configured = {name: _digest_of(key) for name, key in config.server.client_keys.items()}
        self._always = config.key_always
        self._strict = frozenset(config.server.strict_keys)
        self._limits = config.server.key_limits
        self._index()

    def _index(self) -> None:
        made = {name: bytes.fromhex(key.sha256) for name, key in self._made.items()}
        self._digests = list({**made, **self._configured}.items())

    @property
    def required(self) -> bool:
        """Whether every client needs a key. After the last key is revoked, other machines still need one."""
        return bool(self._digests) or self._always or self.fault is not None

    @property
    def any(self) -> bool:
        return bool(self._digests)

    def check(self, given: str) -> str | None:
        """Returns the key's name, or None. Compares all keys in constant time. Raises ApiError 401 if it expired."""
        digest = hashlib.sha256(given.encode()).digest()
        known = [*self._digests, *self._lent.items()]
        names = [name for name, each in known if hmac.compare_digest(digest, each)]
        if not names:
            return None
        limits = self.limits(names[0])
        if limits.expires_at is not None and self._clock() >= limits.expires_at:
            raise errors.key_expired(names[0])
        self._used[names[0]] = int(self._clock())
        self._unsaved = True
        return names[0]

    def is_strict(self, name: str) -> bool:
        """Returns whether requests with this key are refused instead of having parameters dropped."""
        made = self._made.get(name)
        return name in self._strict or (made is not None and made.strict)

    def limits(self, name: str) -> KeyLimits:
        made = self._made.get(name)
        return self._limits.get(name, NONE) if made is None else made.limits

    def enter(self, name: str) -> bool:
        """Starts a request; returns whether ``leave`` must be called. Raises ApiError 429 at the key's limit."""
        limits = self.limits(name)
        if limits == NONE:
            return False
        now, rate = trio.current_time(), limits.requests_per_minute
        use = self._uses.setdefault(name, _Use())
        if limits.concurrent_requests is not None and use.open >= limits.concurrent_requests:
            raise errors.key_busy(name, limits.concurrent_requests)
        if rate is not None:
            began = use.began
            while began and began[0] <= now - MINUTE:
                began.popleft()
            if len(began) >= rate:
                # A place is free when the oldest of those that fill the limit is a minute old.
                raise errors.key_too_fast(name, rate, max(1, math.ceil(began[len(began) - rate] + MINUTE - now)))
            began.append(now)
        use.open += 1
        return True

    def leave(self, name: str) -> None:
        if (use := self._uses.get(name)) is not None and use.open:
            use.open -= 1

    @contextmanager
    def counted(self, name: str | None) -> Iterator[None]:
        """Calls ``enter`` and ``leave`` for a client with a key; does nothing without one."""
        counted = name is not None and self.enter(name)
        try:
            yield
        finally:
            if counted and name is not None:
                self.leave(name)

    def may_use(self, name: str, model: str) -> bool:
        models = self.limits(name).models
        return not models or any(fnmatch.fnmatchcase(model, pattern) for pattern in models)

    def add(self, name: str, *, strict: bool = False, limits: KeyLimits = NONE) -> str:
        """Makes a key and returns it; it is not stored anywhere. Raises ApiError for a name that cannot be used."""
        if not _NAME.fullmatch(name):
            raise errors.bad_request(
                f"{quoted(name)} is not a valid key name: use up to 64 letters, digits or . _ @ -, "
                "starting with a letter or digit."
            )
        if self.knows(name):
            raise errors.bad_request(
                f"The key {quoted(name)} already exists. Use another name, or run `codexctl keys revoke {name}` first."
            )
        if len(self._made) >= MAX_KEYS:
            raise errors.bad_request(f"There are already {MAX_KEYS} keys: revoke some that are no longer used.")
        if self.fault is not None:
            self._set_aside()
        key = PREFIX + secrets.token_urlsafe(32)
        digest = hashlib.sha256(key.encode()).hexdigest()
        self._replace(self._made | {name: Key(name, digest, int(self._clock()), strict=strict, limits=limits)})
        log.info("client key added", key=name)
        return key

    @contextmanager
    def lent(self, name: str) -> Iterator[str]:
        """Yields a key that is only in memory, and is valid while the block runs. It changes nothing for others."""
        key = PREFIX + secrets.token_urlsafe(32)
        self._lent[name] = hashlib.sha256(key.encode()).digest()
        try:
            yield key
        finally:
            self._lent.pop(name, None)

    def knows(self, name: str) -> bool:
        """Returns whether there is a key of that name, created with codexctl or in the configuration."""
        return name in self._made or name in self._configured

    def revoke(self, name: str) -> None:
        """Removes a key. Raises ApiError when it does not exist or is in the configuration."""
        if name in self._configured:
            raise errors.bad_request(
                f"{quoted(name)} is set in [server.client_keys]: remove it there, and run `codexctl reload`."
            )
        if name not in self._made:
            known = ", ".join(self._made) or "none"
            raise errors.bad_request(f"Unknown key {quoted(name)}. Keys created with codexctl: {known}.")
        self._replace({other: key for other, key in self._made.items() if other != name})
        self._used.pop(name, None)
        self._uses.pop(name, None)
        log.info("client key revoked", key=name)

    def list(self) -> list[Listed]:
        made = [
            Listed(
                name=key.name,
                source="codexctl",
                created_at=key.created_at,
                last_used_at=self._used.get(key.name, key.last_used_at),
                strict=self.is_strict(key.name),
                limits=key.limits,
            )
            for key in self._made.values()
        ]
        configured = [
            Listed(
                name=name,
                source="configuration",
                created_at=None,
                last_used_at=self._used.get(name),
                strict=self.is_strict(name),
                limits=self.limits(name),
            )
            for name in self._configured
        ]
        return made + configured

    async def run(self) -> None:
        """Saves the last-used times every ``SAVE_INTERVAL`` seconds and at the end. Runs until cancelled."""
        try:
            while True:
                await trio.sleep(SAVE_INTERVAL)
                await self._save_times_in_thread()
        finally:
            self.save_times()

    def retire(self) -> None:
        """Saves for the last time: from now on a successor may own the file."""
        self.save_times()
        self._writes.close()
        self._retired = True

    def save_times(self) -> None:
        if (data := self._with_times()) is not None:
            self._write_times(self._writes.number(), data)

    async def _save_times_in_thread(self) -> None:
        """Saves without blocking streams: a disk can be slow."""
        if (data := self._with_times()) is None:
            return
        try:
            await workers.run(sys.maxsize, partial(self._write_times, self._writes.number(), data))
        except trio.Cancelled:
            self._unsaved = True
            raise

    def _with_times(self) -> bytes | None:
        """Returns the file's new contents; None if there is nothing to save."""
        if not self._unsaved or self.fault is not None or self._retired:
            return None
        for name, moment in self._used.items():
            if name in self._made:
                self._made[name].last_used_at = moment
        self._unsaved = False
        return _file_of(self._made) if self._made else None

    def _write_times(self, number: int, data: bytes) -> None:
        try:
            self._writes.write(number, self._path, data)
        except OSError as error:
            self._unsaved = True
            log.warning("the keys' last-used times could not be saved", reason=reason_of(error))

    def _replace(self, made: dict[str, Key]) -> None:
        if self._retired:
            raise errors.stopping()
        try:
            self._save(made)
        except OSError as error:
            raise errors.cannot_save(str(self._path), error.strerror or str(error)) from error
        self._made, self.fault = made, None
        self._index()

    def _save(self, made: Mapping[str, Key]) -> None:
        self._writes.write(self._writes.number(), self._path, _file_of(made))

    def _load(self) -> None:
        try:
            file = decoding.decode(self._path.read_bytes(), type=_KeysFile)
            if file.version != 1:
                raise ValueError(f"its version is {file.version}, but this codexd supports only version 1")
            for key in file.keys:
                if len(bytes.fromhex(key.sha256)) != hashlib.sha256().digest_size:
                    raise ValueError(f"the hash of {quoted(key.name)} is not a SHA-256")
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self.fault = f"{self._path} cannot be used ({reason_of(error)})"
            log.error("client keys cannot be used: no key in this file is accepted", reason=self.fault)
            return
        self._made = {key.name: key for key in file.keys}

    def _set_aside(self) -> None:
        """Keeps the unusable file under a second name. Until the next save it still causes keys to be refused."""
        try:
            aside = set_aside(self._path)
        except OSError as error:
            raise errors.cannot_save(str(self._path), error.strerror or str(error)) from error
        if aside is not None:
            log.warning("the unusable key file was renamed and kept", path=str(aside))


def _file_of(made: Mapping[str, Key]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(_KeysFile(list(made.values())))) + b"\n"


def _digest_of(key: str) -> bytes:
    """Returns the SHA-256 of a configured key, which is the key itself or ``sha256:`` and its hash in hex."""
    scheme, _, digest = key.partition(":")
    return bytes.fromhex(digest) if scheme == "sha256" else hashlib.sha256(key.encode()).digest()
