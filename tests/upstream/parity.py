"""codexd's own requests beside those that the official client sent for the same purpose, field by field.

Only fields that both send are compared: codexd has its own tools and texts, and leaves out what is the client's own
business. The official side is a capture's shapes, codexd's comes through the same recorder and the same placeholders.
"""

import base64
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import trustme

from codexd import __version__
from codexd.config.model import Backend, Config
from codexd.protocol.codex.models import BUILT_IN, Model, decode_catalogue
from codexd.system import certificates
from codexd.upstream import proxies
from codexd.upstream.transport import Transport
from support.asgi import client
from support.proxy import proxying
from upstream import backend, shapes
from upstream.compare import show, some
from upstream.recorder import Json, Recorder


class Pair(NamedTuple):
    """A scenario of the official client, which of its requests to ``/codex/responses``, and what a client asks codexd.

    In a scenario with a websocket it is the number of the message, beside which the handshake's headers are compared.

    The conversations are the same, so that ids, models, efforts and forms should be.
    """

    scenario: str
    which: int
    asked: Json


_TOOLS: list[Json] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("exec_command", "wait")
]
_CALL: Json = {"id": "call_1", "type": "function", "function": {"name": "exec_command", "arguments": '{"cmd":"true"}'}}
_SAY: Json = {"role": "user", "content": "say hello"}
_BRIEF: Json = {"role": "system", "content": "Be brief."}
_PICTURE: Json = {
    "type": "image_url",
    "image_url": {"url": f"data:image/png;base64,{base64.b64encode(backend.PNG).decode()}"},
}
_SEE: Json = {"role": "user", "content": [_PICTURE, {"type": "text", "text": "say hello"}]}
_FORM: Json = {
    "type": "json_schema",
    "json_schema": {
        "name": "codex_output_schema",
        "strict": True,
        "schema": {
            "type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip


def _ask(model: str, *messages: Json, **more: Any) -> Json:
    return {"model": model, "messages": [_BRIEF, *(messages or (_SAY,))], "tools": _TOOLS, **more}


_LOOP = (
    _SAY,
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "done"},
)

CLASSIC, LITE = "gpt-5.5", "gpt-6-sol"

PAIRS = (
    Pair("exec_classic", 0, _ask(CLASSIC)),
    Pair("exec_classic_schema_fast_summary", 0, _ask(CLASSIC, response_format=_FORM, service_tier="fast")),
    Pair("exec_classic_image", 0, _ask(CLASSIC, _SEE)),
    Pair("exec_classic_tool_loop", 1, _ask(CLASSIC, *_LOOP)),
    Pair("exec_lite_sol", 0, _ask(LITE)),
    Pair("exec_lite_ultra", 0, _ask(LITE, reasoning_effort="ultra")),
    Pair("exec_lite_image_schema", 0, _ask(LITE, _SEE, response_format=_FORM)),
    Pair("exec_lite_tool_loop", 1, _ask(LITE, *_LOOP)),
    Pair("ws_classic", 1, _ask(CLASSIC)),
    Pair("ws_lite", 1, _ask(LITE)),
)

DELIBERATE: Mapping[str, str] = {
    "alpn": "codexd speaks HTTP/1.1 alone, over connections that it holds ready",
    "header.originator": "the name that the client signs in under, whose tokens these are; backend.originator is another",
    "header.user-agent": "codexd says what it is",
    "body.input[message/developer].content[input_text].text": "texts are the client's own, or those of prompts/",
    "body.input[function_call_output].output": "a tool's result is the client's own text",
}
"""Where codexd sends another value than the official client, by the field's path, and why."""


@dataclass
class Comparison:
    """``differing``: path, official value, codexd's. The other two are paths that one side alone sends."""

    differing: list[tuple[str, Any, Any]] = field(default_factory=list)
    official_only: list[str] = field(default_factory=list)
    own_only: list[str] = field(default_factory=list)

    def unlisted(self) -> list[str]:
        """Differences that nobody has decided on."""
        return [f"{path}: {show(a)}, codexd {show(b)}" for path, a, b in self.differing if path not in DELIBERATE]


def compare(official: Json, own: Json) -> Comparison:
    """Two shapes of requests."""
    theirs, ours = fields(official), fields(own)
    return Comparison(
        [(path, value, ours[path]) for path, value in theirs.items() if path in ours and ours[path] != value],
        [path for path in theirs if path not in ours],
        [path for path in ours if path not in theirs],
    )


def fields(shape: Json) -> dict[str, Any]:
    """The leaves of a request by their paths: ``header.accept``, ``body.input[message/user].content[input_text].text``.

    An entry of a list goes by its type, role and name; the last one of each counts. A list without objects is a leaf.
    """
    headers = {name.lower(): value for name, value in shape["headers"].items()}
    top = {"alpn": shape["alpn"], "header": headers, "body": shape["body"]}
    return dict(_leaves(top, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _leaves(each, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for kind, each in {_kind(each): each for each in value}.items():
            yield from _leaves(each, f"{path}[{kind}]")
    else:
        yield path, value


def _kind(entry: Any) -> str:
    if not isinstance(entry, dict):
        return "other"
    return "/".join(str(entry[key]) for key in ("type", "role", "name") if key in entry)


def request_of(capture: Mapping[str, Any], pair: Pair) -> Json:
    """The official client's request in a capture."""
    if pair.scenario.startswith("ws_"):
        return _framed(capture[pair.scenario], pair.which)
    found = [
        shape
        for shape in capture[pair.scenario]
        if shape["request"].startswith("POST ") and shape["request"].endswith("/codex/responses")
    ]
    request: Json = found[pair.which]
    return request


def _framed(found: Iterable[Json], which: int) -> Json:
    """The handshake of a websocket, and one of its messages as the body."""
    shape = next(shape for shape in found if shape.get("frames"))
    return {name: shape[name] for name in ("request", "alpn", "headers")} | {"body": shape["frames"][which]}


async def own_requests(pairs: Iterable[Pair], version: str) -> list[Json]:
    """What codexd sends for each, as the recorder has it; ``version`` is the official client's, as it stands in a capture."""
    hide = [(Config().backend.client_version, "<version>")] if Config().backend.client_version == version else []
    hide.append((f"codexd/{__version__}", "codexd/<own version>"))
    ca = trustme.CA()
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        (work := Path(folder)).chmod(0o700)
        ca.cert_pem.write_to_path(str(work / "ca.pem"))
        found = []
        for pair in pairs:
            over_websocket = pair.scenario.startswith("ws_")
            back = backend.Backend({"models": []}, websocket=over_websocket)
            async with proxying(Recorder(ca, back.answer, back.websocket)) as recorder:
                transport = Transport(
                    lambda: certificates.context(certificates.store({}, str(work / "ca.pem"))),
                    partial(proxies.route, {"HTTPS_PROXY": recorder.url()}),
                )
                config = Config(backend=Backend(transport="websocket" if over_websocket else "http"))
                async with client(work, transport, config) as app:
                    answer = await app.request("POST", "/v1/chat/completions", pair.asked)
                    assert answer.status == 200, answer.body
                await transport.aclose()
                shaped = shapes.of(recorder.log, hide)
                found += [_framed(shaped, 0)] if over_websocket else shaped
        return found


def models(capture: Mapping[str, Any]) -> list[str]:
    """Where codexd's built-in models are not those that the client brings along."""
    theirs = {model.slug: model for model in decode_catalogue(msgspec.json.encode({"models": capture["_catalogue"]}))}
    ours = {model.slug: model for model in BUILT_IN}
    told = {slug: _model(model, ours.get(slug)) for slug, model in theirs.items()}
    return [f"models: {slug}: {what}" for slug, what in told.items() if what]


def _model(official: Model, own: Model | None) -> str:
    if own is None:
        return "not built in"
    return ", ".join(
        f"{name} {show(getattr(official, name))}, codexd {show(getattr(own, name))}"
        for name in official.__struct_fields__
        if getattr(official, name) != getattr(own, name)
    )


@dataclass
class Report:
    """``unlisted`` are differences that nobody has decided on; ``decided`` the paths of those that somebody has."""

    unlisted: list[str] = field(default_factory=list)
    decided: list[str] = field(default_factory=list)
    official_only: list[str] = field(default_factory=list)
    own_only: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        yield from (f"differs, and is not listed: {each}" for each in self.unlisted)
        yield from (f"differs by decision: {path}: {DELIBERATE[path]}" for path in self.decided)
        yield f"only the official client sends: {', '.join(self.official_only)}"
        yield f"only codexd sends: {', '.join(self.own_only)}"


async def report(capture: Mapping[str, Any]) -> Report:
    """Everything that codexd has in common with the client, beside a capture of it."""
    decided: set[str] = set()
    theirs: dict[str, None] = {}
    ours: dict[str, None] = {}
    unlisted: dict[str, list[str]] = {}
    for pair, own in zip(PAIRS, await own_requests(PAIRS, capture["_version"]), strict=True):
        found = compare(request_of(capture, pair), own)
        for line in found.unlisted():
            unlisted.setdefault(line, []).append(pair.scenario)
        decided |= {path for path, _, _ in found.differing if path in DELIBERATE}
        theirs |= dict.fromkeys(map(_branch, found.official_only))
        ours |= dict.fromkeys(found.own_only)
    lines = [f"{line}   [{some(scenarios)}]" for line, scenarios in unlisted.items()]
    return Report(models(capture) + lines, sorted(decided), list(theirs), list(ours))


_WHOLE = (
    "body.tools",
    "body.client_metadata",
    "body.input[additional_tools/developer].tools",
    "header.x-codex-turn-metadata",
)


def _branch(path: str) -> str:
    """A field without what lies below it where that is much: tools, metadata."""
    whole = next((branch for branch in _WHOLE if path.startswith(branch)), path)
    return re.sub(r"(_metadata_passthrough)\..*", r"\1", whole)
