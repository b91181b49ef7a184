"""Images that clients fetch by their address: in memory, bounded, and for some time only."""

import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from codexd.config.model import Storage


class StoredImage(NamedTuple):
    """``until`` is in Unix seconds; ``kind`` is the subtype, such as ``png``."""

    data: bytes
    kind: str
    until: float


class ImageStore:
    """The images. ``clock`` gives Unix seconds. The oldest are removed first."""

    def __init__(self, config: Storage, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._images: OrderedDict[str, StoredImage] = OrderedDict()
        self._bytes = 0
        self.configure(config)

    def configure(self, config: Storage) -> None:
        self._max_bytes, self._seconds = config.image_bytes, config.image_seconds
        self._shrink()

    def add(self, data: bytes, kind: str) -> str | None:
        """Stores an image; returns its name, which nobody can guess. None if it is larger than the store."""
        if len(data) > self._max_bytes:
            return None
        name = f"{secrets.token_urlsafe(24)}.{kind}"
        self._images[name] = StoredImage(data, kind, self._clock() + self._seconds)
        self._bytes += len(data)
        self._shrink()
        return name

    def get(self, name: str) -> StoredImage | None:
        self._shrink()
        return self._images.get(name)

    def _shrink(self) -> None:
        now = self._clock()
        while self._images:
            name, oldest = next(iter(self._images.items()))
            if self._bytes <= self._max_bytes and oldest.until > now:
                return
            del self._images[name]
            self._bytes -= len(oldest.data)
