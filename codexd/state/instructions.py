"""The instruction text of each model: built in, or set by the user.

Set texts are in one file of the state directory, each with its source. No text is downloaded during a request.
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from codexd import errors
from codexd.protocol import decoding
from codexd.reasons import reason_of
from codexd.state.files import set_aside, write_durably

MAX_TEXT = 512 * 1024
"""Characters. The official texts have about ten thousand."""

MAX_NAMES = 200

log = structlog.get_logger()


FAMILIES = ("gpt-5-1", "gpt-5-2", "gpt-5-1-codex", "gpt-5-1-codex-max", "gpt-5-1-codex-mini", "gpt-5-2-codex")


def family_of(slug: str) -> str:
    """Returns the family whose text fits a model: the longest matching prefix, else the newest family of its kind."""
    name = slug.replace(".", "-")
    fitting = [family for family in FAMILIES if name == family or name.startswith(f"{family}-")]
    if fitting:
        return max(fitting, key=len)
    return "gpt-5-2-codex" if "codex" in name.split("-") else "gpt-5-2"


@functools.cache
def _family_text(family: str) -> str:
    # In the wheel the folder is package data; an editable install has no package data and reads the checkout.
    packaged = resources.files("codexd") / "prompts_data" / f"{family}.md"
    if packaged.is_file():
        return packaged.read_text().strip()
    return (Path(__file__).parents[2] / "prompts" / f"{family}.md").read_text().strip()


def built_in(slug: str) -> str:
    """Returns the built-in text for a model or a family."""
    return _family_text(family_of(slug))


class InstructionText(Struct, frozen=True, kw_only=True):
    """An instruction text. ``source`` is its origin, ``set_at`` in Unix seconds; both are None for a built-in text."""

    name: str
    text: str
    sha256: str
    source: str | None = None
    set_at: int | None = None


class _InstructionsFile(Struct):
    texts: list[InstructionText] = []
    version: int = 1


class Instructions:
    """The instruction texts in use. ``clock`` gives Unix seconds."""

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._set: dict[str, InstructionText] = {}
        self._load()

    def for_model(self, slug: str) -> str:
        """Returns the text for a model: its own, else its family's."""
        found = self._set.get(slug) or self._set.get(family_of(slug))
        return found.text if found is not None else built_in(slug)

    def get(self, name: str) -> InstructionText:
        """Returns the text in use for a family or a model."""
        found = self._set.get(name) or self._set.get(family_of(name))
        if found is None:
            text = built_in(name)
            found = InstructionText(name=family_of(name), text=text, sha256=_digest(text))
        return found

    def all(self) -> list[InstructionText]:
        """Returns the text of each family, then the models that have their own text."""
        own = [text for name, text in sorted(self._set.items()) if name not in FAMILIES]
        return [self.get(family) for family in FAMILIES] + own

    def set(self, name: str, text: str, source: str) -> InstructionText:
        """Sets the text of a family or a model, from the next request on. Raises ApiError 400 or 500."""
        if not text.strip():
            raise errors.bad_request("The prompt is empty; `codexctl prompts reset` restores the built-in one.")
        if len(text) > MAX_TEXT:
            raise errors.bad_request(f"The prompt has more than {MAX_TEXT} characters.")
        if len(self._set) >= MAX_NAMES and name not in self._set:
            raise errors.bad_request(f"{MAX_NAMES} prompts are set already; reset some.")
        text = text.strip()
        made = InstructionText(name=name, text=text, sha256=_digest(text), source=source, set_at=int(self._clock()))
        self._save(self._set | {name: made})
        log.info("a prompt was set", prompt=name, source=source, sha256=made.sha256)
        return made

    def reset(self, name: str | None) -> list[str]:
        """Restores the built-in text for one name or all; returns the names that were reset. Raises ApiError 500."""
        gone = [each for each in self._set if name in (None, each)]
        if gone:
            self._save({each: text for each, text in self._set.items() if each not in gone})
            log.info("prompts were reset", prompts=", ".join(gone))
        return gone

    def _save(self, wanted: dict[str, InstructionText]) -> None:
        try:
            write_durably(self._path, msgspec.json.encode(_InstructionsFile(list(wanted.values()))) + b"\n")
        except OSError as error:
            raise errors.cannot_save(str(self._path), error.strerror or str(error)) from error
        self._set = wanted

    def _load(self) -> None:
        try:
            file = decoding.decode(self._path.read_bytes(), type=_InstructionsFile)
            spoiled = [text.name for text in file.texts if _digest(text.text) != text.sha256]
            if file.version != 1 or spoiled:
                raise ValueError(
                    f"the checksum of {', '.join(spoiled)} is wrong" if spoiled else "its version is unknown"
                )
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            aside = None
            with contextlib.suppress(OSError):
                aside = set_aside(self._path)
            said = "the saved prompts cannot be used; using the built-in ones"
            log.error(said, reason=reason_of(error), kept=aside and str(aside))
            return
        self._set = {text.name: text for text in file.texts}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
