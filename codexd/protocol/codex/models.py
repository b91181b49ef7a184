"""Model names: maps a client's model name to slug, effort and request shape.

Three layers, the later one wins: older names that clients still have in their configuration, a snapshot of the
catalogue that the official client shipped in November 2026, and the live catalogue of the signed-in account.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from codexd import errors

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"]
EFFORTS: tuple[str, ...] = ("none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra")
Verbosity = Literal["low", "medium", "high"]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model. ``lite`` selects the upstream request shape; it comes from the catalogue's flag, not from the name."""

    slug: str
    efforts: tuple[str, ...]
    default_effort: str | None
    lite: bool = False
    listed: bool = True
    context_window: int | None = None
    verbosity: str = "medium"


class Resolved(msgspec.Struct, frozen=True):
    """A resolved model name. ``effort`` is set only when the name contains one."""

    model: Model
    effort: str | None


class Catalogue:
    """An immutable view of all models known at one moment."""

    def __init__(self, aliases: Mapping[str, str], live: Iterable[Model] | None = None) -> None:
        self._aliases = aliases
        self._models = {model.slug: model for model in BUILT_IN}
        # With a live catalogue only its models are listed, because the account has no others. Other models can still be
        # requested; the backend then returns its own error.
        listed = self._models
        if live is not None:
            listed = {model.slug: model for model in live}
            self._models.update(listed)
        self.own = list(listed.values())
        self.listed = [m.slug for m in listed.values() if m.listed] + sorted(
            alias for alias in aliases if alias not in listed and self._find(alias, aliases) is not None
        )

    def aliases_of(self, slug: str) -> list[str]:
        """Returns the configured names of the model, with or without an effort."""
        found = {alias: self._find(alias, self._aliases) for alias in self._aliases}
        return sorted(alias for alias, resolved in found.items() if resolved and resolved.model.slug == slug)

    def resolve(self, name: str) -> Resolved:
        """Resolves a name. Raises ApiError 404 for an unknown name, 400 for an effort that the model lacks."""
        found = self._find(name, self._aliases)
        if found is None:
            stem = name.rpartition("-")[0]
            alias = next((each for each in (name, stem) if each in self._aliases), None)
            if alias is not None:
                raise errors.model_not_found(self._aliases[alias], [], self.listed, alias=alias)
            near = difflib.get_close_matches(name, [*self._models, *self._aliases], n=2)
            raise errors.model_not_found(name, near, self.listed)
        if found.effort is not None:
            check_effort(found.model, found.effort)
        return found

    def _find(self, name: str, aliases: Mapping[str, str]) -> Resolved | None:
        # An alias overrides a model of the same name, so that a retired name can get a successor. The target is never
        # looked up as an alias, which prevents cycles.
        if (target := aliases.get(name)) is not None:
            return self._find(target, {})
        if (model := self._models.get(name)) is not None:
            return Resolved(model, None)
        # The whole name first: gpt-5.1-codex-max is a slug, gpt-6-sol-max is a slug and an effort.
        stem, _, effort = name.rpartition("-")
        if effort in EFFORTS and (stem in aliases or stem in self._models):
            found = self._find(stem, aliases)
            return found and Resolved(found.model, effort)
        return None


def check_effort(model: Model, effort: str) -> None:
    """Raises ApiError 400 that lists the model's efforts. A model without a list accepts any effort."""
    if model.efforts and effort not in model.efforts:
        raise errors.bad_request(
            f"The model {model.slug!r} has no reasoning effort {effort!r}. It offers: {', '.join(model.efforts)}.",
            param="reasoning_effort",
            code="unsupported_value",
        )


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
    priority: float = 1e9


class _Answer(msgspec.Struct):
    models: list[msgspec.Raw]


_ANSWER = msgspec.json.Decoder(_Answer)
_ENTRY = msgspec.json.Decoder(_Entry)


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
        )
        for entry in sorted(entries, key=lambda entry: entry.priority)
    ]
