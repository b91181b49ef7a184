"""The configuration of coding agents and other clients for a codexd: files, variables, or words for a person.

``codexctl setup`` writes it, and the status page shows it. Paths and members are those of the clients' own manuals.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

FILL_IN = "YOUR-KEY"
"""Stands for a key that has to be filled in."""

NO_KEY = "unused"
"""A key for clients that insist on one, where codexd asks for none."""


class Target(NamedTuple):
    """A codexd. ``base`` is its base URL with ``/v1``; ``models`` are the listed ones, the first is the default.

    ``wanted`` is the model that was asked for, for clients that have a default of their own.
    """

    base: str
    key: str
    models: Sequence[str]
    wanted: str | None = None

    @property
    def root(self) -> str:
        """The base URL without ``/v1``."""
        return self.base.removesuffix("/v1")

    @property
    def model(self) -> str:
        return self.models[0] if self.models else "MODEL"


class ConfigFile(NamedTuple):
    """A file below the home directory, and what is put into it.

    ``json``: ``members`` are merged into the file's. ``toml``, ``yaml``: ``head`` is put at its beginning and ``text``
    at its end, between marks; ``own`` are the top-level keys of both.
    """

    path: str
    kind: Literal["json", "toml", "yaml"]
    members: Mapping[str, Any] = {}
    head: str = ""
    text: str = ""
    own: Sequence[str] = ()


class ClientSetup(NamedTuple):
    """What one client needs. ``words`` says what is left to a person; ``start`` is a command to try it.

    ``environ`` is another way than the files, and ``needed`` are variables that it must have besides them.
    """

    files: Sequence[ConfigFile] = ()
    environ: Mapping[str, str] = {}
    needed: Mapping[str, str] = {}
    words: str = ""
    start: str = ""


def _claude_code(it: Target) -> ClientSetup:
    environ = {"ANTHROPIC_BASE_URL": it.root, "ANTHROPIC_AUTH_TOKEN": it.key}
    if it.wanted is not None:
        environ["ANTHROPIC_MODEL"] = it.wanted
    return ClientSetup([ConfigFile(".claude/settings.json", "json", {"env": environ})], environ, start="claude")


def _codex(it: Target) -> ClientSetup:
    key = f'\nexperimental_bearer_token = "{it.key}"' if it.key != NO_KEY else ""
    head = f'model_provider = "codexd"\nmodel = "{it.model}"'
    table = f'[model_providers.codexd]\nname = "codexd"\nbase_url = "{it.base}"\nwire_api = "responses"{key}'
    file = ConfigFile(".codex/config.toml", "toml", head=head, text=table, own=("model_provider", "model"))
    return ClientSetup([file], start="codex")


def _opencode(it: Target) -> ClientSetup:
    options = {"baseURL": it.base, "apiKey": it.key}
    models: dict[str, Any] = {name: {} for name in it.models}
    provider = {"npm": "@ai-sdk/openai-compatible", "name": "codexd", "options": options, "models": models}
    file = ConfigFile(".config/opencode/opencode.json", "json", {"provider": {"codexd": provider}})
    return ClientSetup([file], start=f"opencode -m codexd/{it.model}")


def _aider(it: Target) -> ClientSetup:
    own = {"openai-api-base": it.base, "openai-api-key": it.key, "model": f"openai/{it.model}"}
    text = "\n".join(f"{name}: {value}" for name, value in own.items())
    environ = {"OPENAI_API_BASE": it.base, "OPENAI_API_KEY": it.key}
    return ClientSetup([ConfigFile(".aider.conf.yml", "yaml", text=text, own=tuple(own))], environ, start="aider")


def _llm(it: Target) -> ClientSetup:
    folder = ".config/io.datasette.llm"
    entries = [
        f"- model_id: codexd/{name}\n  model_name: {name}\n  api_base: {it.base}\n  api_key_name: codexd\n"
        "  can_stream: true\n  supports_tools: true\n  supports_schema: true\n  vision: true"
        for name in it.models
    ]
    models = ConfigFile(f"{folder}/extra-openai-models.yaml", "yaml", text="\n".join(entries))
    keys = ConfigFile(f"{folder}/keys.json", "json", {"codexd": it.key})
    return ClientSetup([models, keys], start=f"llm -m codexd/{it.model} Hello")


def _zed(it: Target) -> ClientSetup:
    models = [{"name": name, "display_name": name, "max_tokens": 272_000} for name in it.models]
    own = {"openai_compatible": {"codexd": {"api_url": it.base, "available_models": models}}}
    file = ConfigFile(".config/zed/settings.json", "json", {"language_models": own})
    return ClientSetup([file], needed={"CODEXD_API_KEY": it.key}, start="zed")


def _continue(it: Target) -> ClientSetup:
    model = (
        f"name: {it.model}\n    provider: openai\n    model: {it.model}\n    apiBase: {it.base}\n    apiKey: {it.key}"
    )
    return ClientSetup(words=f"Add to the models in ~/.continue/config.yaml:\n\n  - {model}")


def _cline(it: Target) -> ClientSetup:
    return ClientSetup(words=_form("In Cline's settings, choose the API provider OpenAI Compatible", it))


def _cursor(it: Target) -> ClientSetup:
    where = "In Cursor's settings, under Models, set Override OpenAI Base URL"
    return ClientSetup(
        words=f"{_form(where, it)}\n\nCursor's own servers make the requests, so this address must be reachable from "
        "the internet: put a proxy with TLS and a key in front of codexd."
    )


def _open_webui(it: Target) -> ClientSetup:
    environ = {
        "OPENAI_API_BASE_URL": it.base,
        "OPENAI_API_KEY": it.key,
        "ENABLE_IMAGE_GENERATION": "true",
        "IMAGE_GENERATION_ENGINE": "openai",
        "IMAGES_OPENAI_API_BASE_URL": it.base,
        "IMAGES_OPENAI_API_KEY": it.key,
    }
    return ClientSetup(
        environ=environ,
        words="In a container, 127.0.0.1 is the container itself: codexd must listen on an address of the container's "
        "network (server.bind), and then it requires a key. See /docs/clients/open-webui.md on this codexd.",
        start="open-webui serve",
    )


def _n8n(it: Target) -> ClientSetup:
    return ClientSetup(words=_form("In n8n, create a credential of type OpenAI", it))


def _form(where: str, it: Target) -> str:
    return f"{where}:\n\n  Base URL  {it.base}\n  API key   {it.key}\n  Model     {it.model}"


CLIENTS: Mapping[str, Callable[[Target], ClientSetup]] = {
    "claude-code": _claude_code,
    "codex": _codex,
    "opencode": _opencode,
    "aider": _aider,
    "cline": _cline,
    "continue": _continue,
    "zed": _zed,
    "cursor": _cursor,
    "open-webui": _open_webui,
    "llm": _llm,
    "n8n": _n8n,
}
"""Each client's setup, by the name that ``codexctl setup`` takes."""


def described(found: ClientSetup) -> str:
    """Returns a setup as text: files, variables, words, and the command to start with."""
    parts = [f"# ~/{file.path}\n{contents(file)}" for file in found.files]
    for head, variables in (
        ("# Or set these variables instead of the file:", found.environ),
        ("# Also set these variables:", found.needed),
    ):
        if variables:
            parts.append("\n".join([*([head] if found.files else []), exports(variables)]))
    start = f"# Start it with: {found.start}" if found.start else ""
    return "\n\n".join([*parts, *filter(None, (found.words, start))])


def exports(variables: Mapping[str, str]) -> str:
    """Returns the commands of a shell that set variables."""
    return "\n".join(f"export {name}={value}" for name, value in variables.items())


def contents(file: ConfigFile) -> str:
    """Returns what is put into a file, as if the file were empty."""
    if file.kind == "json":
        return as_json(file.members)
    return "\n\n".join(filter(None, (file.head, file.text)))


def as_json(members: Mapping[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(members), indent=2).decode()
