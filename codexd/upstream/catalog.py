"""The model catalogue: available at once, refreshed in the background; requests never wait for it.

It comes from the backend and a copy is kept on disk, so that the account's models are known after a restart without a
network. An old copy is used while a new one is fetched.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
import trio
from msgspec import Raw, Struct

from codexd import errors
from codexd.config.model import Models
from codexd.errors import ApiError
from codexd.protocol import decoding
from codexd.protocol.codex.models import Catalogue, Model, Resolved, decode_catalogue
from codexd.reasons import reason_of
from codexd.state.files import write_durably
from codexd.upstream.client import Upstream

REFRESH_INTERVAL = 3600.0
RETRY_INTERVAL = 60.0
MIN_INTERVAL = 60.0
"""Minimum seconds between two refreshes, even if answers announce a new catalogue."""

log = structlog.get_logger()


class _Copy(Struct):
    """The copy on disk. The backend's list depends on ``client_version``, so a copy is valid for one version."""

    fetched_at: int
    client_version: str
    etag: str | None
    answer: Raw


class _ModelText(Struct):
    slug: str
    base_instructions: str


class _Texts(Struct):
    models: list[Raw] = []


class Catalog:
    """The model catalogue. ``models`` is the current one; ``run`` replaces it as a whole."""

    def __init__(self, path: Path, *, names: Models, client_version: str, clock: Callable[[], float]) -> None:
        self._path = path
        self._names = names
        self._client_version = client_version
        self._etag: str | None = None
        self._clock = clock
        self._due = trio.Event()
        self._live: list[Model] | None = None
        self.fetched_at: int | None = None
        self.why: str | None = None
        self.models = self._catalogue()
        self._load()

    def _catalogue(self) -> Catalogue:
        return Catalogue(self._names.aliases, self._live, list_efforts=self._names.list_efforts)

    def configure(self, names: Models, client_version: str) -> None:
        """Sets new names. A new client version makes a refresh due, because the backend then lists other models."""
        self._names = names
        self.models = self._catalogue()
        if client_version != self._client_version:
            self._client_version, self._etag = client_version, None
            self._due.set()

    @property
    def models_listed(self) -> int:
        """Number of models that clients are shown, without aliases."""
        return sum(model.listed for model in self.models.own)

    def resolve(self, name: str) -> Resolved:
        """Finds a model by name. Raises ApiError for an unknown model or an unsupported effort."""
        return self.models.resolve(name)

    async def document(self) -> tuple[bytes, str | None]:
        """Returns the backend's catalogue and its etag, read from disk. Raises ApiError 503 if there is no copy."""
        try:
            copy = decoding.decode(await trio.to_thread.run_sync(self._path.read_bytes), type=_Copy)
        except (OSError, msgspec.DecodeError) as error:
            raise errors.no_catalogue(self.why) from error
        return bytes(copy.answer), copy.etag

    async def instructions(self) -> dict[str, str]:
        """Returns each model's official instructions, from the backend's catalogue. Raises ApiError 503."""
        document, _ = await self.document()
        found = {}
        for raw in decoding.decode(document, type=_Texts).models:
            with contextlib.suppress(msgspec.ValidationError):
                model = decoding.decode(raw, type=_ModelText)
                found[model.slug] = model.base_instructions
        return found

    def on_models_etag(self, etag: str) -> None:
        """Makes a refresh due if the etag, which comes with the backend's answers, differs from the known one."""
        # Weak and strong etags count as equal: the two headers were seen to differ only in that.
        if self._etag is not None and etag.removeprefix("W/") != self._etag.removeprefix("W/"):
            self._due.set()

    async def run(self, upstream: Upstream) -> None:
        """Refreshes now, then hourly and when the etag changes. Runs until cancelled."""
        while True:
            pause = REFRESH_INTERVAL if await self.refresh(upstream) else RETRY_INTERVAL
            with trio.move_on_after(pause):
                await trio.sleep(MIN_INTERVAL)
                await self._due.wait()
            self._due = trio.Event()

    async def refresh(self, upstream: Upstream) -> bool:
        """Fetches the catalogue once; returns whether that succeeded. After a failure the known one stays in use."""
        try:
            response = await upstream.models(self._etag)
        except ApiError as error:
            self.why = error.error.message
            log.debug("the model catalogue could not be fetched", reason=self.why)
            return False
        if response.status_code == 304:
            self.fetched_at = int(self._clock())
            return True
        if response.status_code != 200:
            self.why = f"The ChatGPT backend answered with status {response.status_code}."
            log.warning("the model catalogue could not be fetched", status=response.status_code)
            return False
        try:
            live = decode_catalogue(response.content)
        except (msgspec.DecodeError, ValueError) as error:
            self.why = f"The backend's answer cannot be read: {error}"
            log.warning("the model catalogue cannot be read; the last one stays in use", reason=reason_of(error))
            return False
        self._live = live
        self.models = self._catalogue()
        self._etag = response.headers.get("etag")
        self.fetched_at = int(self._clock())
        log.info("model catalogue refreshed", models=len(live))
        copy = _Copy(self.fetched_at, self._client_version, self._etag, Raw(response.content))
        try:
            await trio.to_thread.run_sync(write_durably, self._path, msgspec.json.encode(copy))
        except OSError as error:
            log.warning("the model catalogue could not be saved", reason=reason_of(error))
        return True

    def _load(self) -> None:
        try:
            copy = decoding.decode(self._path.read_bytes(), type=_Copy)
            if copy.client_version == self._client_version:
                self._live = decode_catalogue(copy.answer)
                self.models = self._catalogue()
                self._etag, self.fetched_at = copy.etag, copy.fetched_at
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError, ValueError) as error:
            log.warning("the saved model catalogue cannot be used", path=str(self._path), reason=reason_of(error))
