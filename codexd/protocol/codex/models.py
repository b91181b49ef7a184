"""Model names: maps a client's model name to slug, effort and request shape.

Three layers, the later one wins: older names that clients still have in their configuration, a snapshot of the
catalogue that the official client shipped in November 2026, and the live catalogue of the signed-in account.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from codexd import errors
from codexd.protocol import decoding

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"]
EFFORTS: tuple[str, ...] = ("none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra")
Verbosity = Literal["low", "medium", "high"]


RESERVE = "gpt-reserve"
"""The model of the account's reserve allowance; ``codexd.upstream.identity`` has its header."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model. ``lite`` selects the upstream request shape; it comes from the catalogue's flag, not from the name."""

    slug: str
    efforts: tuple[str, ...]
    default_effort: str | None
    lite: bool = False
    listed: bool = True
    context_window: int | None = None
    verbosity: str = "medium"
    modalities: tuple[str, ...] = ("text", "image")


class Resolved(msgspec.Struct, frozen=True):
    """A resolved model name. ``effort`` is set only when the name contains one; the model may not offer it."""

    model: Model
    effort: str | None


_LARGE, _MIDDLE, _SMALL = ("-sol",), ("-terra",), ("-luna", "-mini", "-nano")

CLAUDE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("*claude*opus*", _LARGE),
    ("*claude*haiku*", _SMALL),
    ("*claude*sonnet*", _MIDDLE),
    ("*claude*", _MIDDLE),
)
"""Anthropic's names, as Claude Code sends them, and words in the names of the account's large, middle and small model.

A name in the configuration comes before these.
"""

_SUFFIX = re.compile(r"(.+?)\s*(?:\[[^\]]*\]|\((\w+)\)|:([\w.-]+))")
"""What routers and clients append: ``[1m]``, ``(high)``, ``:latest``."""


MAX_NAME = 200
"""Characters of a name that is looked for."""


class Catalogue:
    """An immutable view of all models known at one moment. ``aliases`` may have ``*``, which stands for any text."""

    def __init__(
        self, aliases: Mapping[str, str], live: Iterable[Model] | None = None, *, list_efforts: bool = False
    ) -> None:
        self._aliases = {name: target for name, target in aliases.items() if "*" not in name}
        # The pattern that says most comes first.
        patterns = [(name, target) for name, target in aliases.items() if "*" in name]
        self._patterns = sorted(patterns, key=lambda each: -len(each[0].replace("*", "")))
        self._models = {model.slug: model for model in BUILT_IN}
        # With a live catalogue only its models are listed, because the account has no others. Other models can still be
        # requested; the backend then returns its own error.
        listed = self._models
        if live is not None:
            listed = {model.slug: model for model in live}
            self._models.update(listed)
        self.own = list(listed.values())
        names = [model.slug for model in self.own if model.listed]
        if list_efforts:
            names = [
                name for slug in names for name in (slug, *(f"{slug}-{effort}" for effort in listed[slug].efforts))
            ]
        self.listed = names + sorted(
            alias for alias in self._aliases if alias not in listed and self._find(alias) is not None
        )

    def aliases_of(self, slug: str) -> list[str]:
        """Returns the configured names and patterns of the model, with or without an effort."""
        found = {alias: self._target(target) for alias, target in (*self._aliases.items(), *self._patterns)}
        return sorted(alias for alias, resolved in found.items() if resolved and resolved.model.slug == slug)

    def resolve(self, name: str) -> Resolved:
        """Resolves a name. Raises ApiError 404 for an unknown name."""
        if len(name) > MAX_NAME:
            raise errors.model_not_found(f"{name[:MAX_NAME]}...", [], self.listed)
        found = self._find(name)
        if found is None:
            stem = name.rpartition("-")[0]
            alias = next((each for each in (name, stem) if each in self._aliases), None)
            if alias is not None:
                raise errors.model_not_found(self._aliases[alias], [], self.listed, alias=alias)
            import difflib  # here: a start seldom needs it

            near = difflib.get_close_matches(name, self.listed, n=2)
            raise errors.model_not_found(name, near, self.listed)
        return found

    def _find(self, name: str) -> Resolved | None:
        plain, effort = _plain(name)
        found = self._exact(name) or self._exact(plain)
        if found is None:
            found = next((self._target(to) for pattern, to in self._patterns if _matches(pattern, name, plain)), None)
        if found is None:
            found = next((self._sized(words) for pattern, words in CLAUDE if _matches(pattern, plain)), None)
        return found if found is None or effort is None else Resolved(found.model, effort)

    def _exact(self, name: str) -> Resolved | None:
        # An alias overrides a model of the same name, so that a retired name can get a successor.
        if (target := self._aliases.get(name)) is not None:
            return self._target(target)
        if (model := self._models.get(name)) is not None:
            return Resolved(model, None)
        # The whole name first: gpt-5.1-codex-max is a slug, gpt-6-sol-max is a slug and an effort.
        stem, _, effort = name.rpartition("-")
        if effort not in EFFORTS or (stem not in self._aliases and stem not in self._models):
            return None
        found = self._exact(stem)
        return found and Resolved(found.model, effort)

    def _target(self, target: str) -> Resolved | None:
        """Resolves what an alias stands for, which is never an alias itself: that prevents cycles."""
        if (model := self._models.get(target)) is not None:
            return Resolved(model, None)
        stem, _, effort = target.rpartition("-")
        model = self._models.get(stem) if effort in EFFORTS else None
        return None if model is None else Resolved(model, effort)

    def _sized(self, words: tuple[str, ...]) -> Resolved | None:
        """Returns the account's first model with one of these words in its name, else its first one."""
        listed = [model for model in self.own if model.listed] or self.own
        found = next((model for model in listed if any(word in model.slug for word in words)), None)
        return Resolved(found or listed[0], None) if listed else None


def _plain(name: str) -> tuple[str, str | None]:
    """Returns a name without a router's prefixes and suffixes, and the effort if one of these was one."""
    effort = None
    name = name.strip()
    while (found := _SUFFIX.fullmatch(name)) is not None:
        word = (found[2] or found[3] or "").lower()
        name, effort = found[1], word if word in EFFORTS else effort
    return name.rpartition("/")[2].lower(), effort


def _matches(pattern: str, *names: str) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for name in names)


def nearest(efforts: Sequence[str], wanted: str) -> str | None:
    """Returns the effort of a model that is nearest to a known one, the stronger of two; None for an unknown word."""
    if wanted not in EFFORTS:
        return None
    place = EFFORTS.index(wanted)
    known = [effort for effort in efforts if effort in EFFORTS]
    return min(known, key=lambda each: (abs(EFFORTS.index(each) - place), -EFFORTS.index(each)), default=None)


def _family(efforts: str, default: str, *slugs: str, **rest: object) -> list[Model]:
    """Returns one model for each slug. ``efforts`` is a space-separated list, weakest first."""
    facts = {"efforts": efforts.split(), "default_effort": default, **rest}
    return [msgspec.convert({"slug": slug, **facts}, Model) for slug in slugs]


_TO_XHIGH = "low medium high xhigh"
_TO_MAX = "low medium high xhigh max"
_TO_ULTRA = "low medium high xhigh max ultra"
_LITE = {"lite": True, "context_window": 272_000, "verbosity": "low"}

BUILT_IN: tuple[Model, ...] = (
    # The catalogue of the official client 0.169.0, ordered by its priority.
    *_family(_TO_ULTRA, "low", "gpt-6.1-sol", "gpt-6-astra", **_LITE),
    *_family(_TO_ULTRA, "medium", "gpt-6-sol", **_LITE),
    *_family(_TO_MAX, "medium", "gpt-6-luna", **_LITE),
    *_family(_TO_ULTRA, "low", "gpt-5.6-sol", **_LITE),
    *_family(_TO_ULTRA, "low", "gpt-6.1-terra", **(_LITE | {"context_window": 500_000})),
    *_family(_TO_ULTRA, "medium", "gpt-5.6-terra", **_LITE),
    *_family(_TO_MAX, "medium", "gpt-5.6-luna", **_LITE),
    *_family(_TO_ULTRA, "low", "gpt-daybreak-blue-latest", listed=False, **_LITE),
    *_family(
        _TO_ULTRA,
        "medium",
        "gpt-daybreak-red-latest",
        lite=True,
        listed=False,
        context_window=372_000,
        verbosity="high",
    ),
    *_family(_TO_XHIGH, "medium", "gpt-5.5", context_window=272_000, verbosity="low"),
    *_family(_TO_MAX, "medium", "codex-auto-review", listed=False, **_LITE),
    # Reported by third parties: an allowance of its own, for when the other windows are used up.
    *_family(_TO_MAX, "medium", RESERVE, listed=False, **_LITE),
    # Older names: in no catalogue any more, but in many configurations.
    *_family("none low medium high", "none", "gpt-5.1"),
    *_family("none low medium high xhigh", "none", "gpt-5.2"),
    *_family("low medium high", "medium", "gpt-5.1-codex"),
    *_family(_TO_XHIGH, "high", "gpt-5.1-codex-max", "gpt-5.2-codex"),
    *_family("medium high", "medium", "gpt-5.1-codex-mini"),
)


class _Level(msgspec.Struct):
    effort: str


class _Entry(msgspec.Struct):
    """An entry of ``GET /codex/models``, read leniently: the keys that codexd uses, out of about forty."""

    slug: str
    supported_reasoning_levels: list[_Level] = []
    default_reasoning_level: str | None = None
    visibility: str = "list"
    use_responses_lite: bool = False
    context_window: int | None = None
    default_verbosity: str | None = None
    input_modalities: list[str] | None = None
    priority: float = 1e9


class _Answer(msgspec.Struct):
    models: list[msgspec.Raw]


_ANSWER = decoding.Decoder(_Answer)
_ENTRY = decoding.Decoder(_Entry)


def decode_catalogue(body: bytes) -> list[Model]:
    """Decodes the answer of ``GET /codex/models``, sorted by priority.

    Skips an entry that cannot be read. Raises ValueError when no entry is left.
    """
    entries: list[_Entry] = []
    for raw in _ANSWER.decode(body).models:
        try:
            entries.append(_ENTRY.decode(raw))
        except msgspec.ValidationError:
            continue
    if not entries:
        raise ValueError("the catalogue holds no readable model")
    return [
        Model(
            slug=entry.slug,
            efforts=tuple(level.effort for level in entry.supported_reasoning_levels),
            default_effort=entry.default_reasoning_level,
            lite=entry.use_responses_lite,
            listed=entry.visibility == "list",
            context_window=entry.context_window,
            verbosity=entry.default_verbosity or "medium",
            modalities=tuple(entry.input_modalities or ("text", "image")),
        )
        for entry in sorted(entries, key=lambda entry: entry.priority)
    ]
