"""What was recorded, as a shape: one that two runs of one version share, and that holds none of the client's texts.

Ids, dates, tokens and whatever else chance decides become placeholders; a long text becomes its length and hash.
"""

import hashlib
import re
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from upstream.recorder import Json, Recorded

LONGEST = 100
"""Characters of a text that is kept as it is; names and values are shorter, prompts are longer."""

PROSE = {"description": 40, "text": 40}
"""The same for fields that hold sentences."""

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-([0-9a-f])[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")

PLACEHOLDERS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*"), "<jwt>"),
    (re.compile(r"(?<![=\w-])20\d\d-\d\d-\d\d(?:T[\d:.]+Z?)?(?![\w-])"), "<date>"),
    (re.compile(r"\b\d{8}T\d{6}\w*"), "<stamp>"),
    (re.compile(r"data:image/[^ \"]{40,}"), "<data url>"),
    (re.compile(r"Chunk ID: \w+"), "Chunk ID: <id>"),
    (re.compile(r"Wall time: [\d.]+"), "Wall time: <s>"),
)

VOLATILE = {
    "sec-websocket-key": "<key>",
    "content-length": "<n>",
    "state": "<state>",
    "code_challenge": "<challenge>",
    "code_verifier": "<verifier>",
    "x-codex-ws-stream-request-start-ms": "<ms>",
}
"""Fields and headers whose values are chance."""

NOISE = re.compile(r"/backend-api/(ps|wham/settings|codex/analytics-events)/|/otlp/")
"""What the client asks beside its work, in an order and number that are chance."""


def hashed(text: str) -> str:
    return f"<text {len(text)} chars sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]}>"


class Namer:
    """Placeholders of one scenario: the same id has the same name all through it, so that equality stays visible.

    ``hide`` are texts of this very run, such as a folder and the version, and what stands for them.
    """

    def __init__(self, hide: Iterable[tuple[str, str]] = ()) -> None:
        self._hide = list(hide)
        self._ids: dict[str, str] = {}

    def text(self, text: str, longest: int = LONGEST) -> str:
        for found, name in self._hide:
            text = text.replace(found, name)
        for pattern, name in PLACEHOLDERS:
            text = pattern.sub(name, text)
        text = UUID.sub(self._id, text)
        return text if len(text) <= longest else hashed(text)

    def _id(self, found: re.Match[str]) -> str:
        return self._ids.setdefault(found[0], f"<uuid{found[1]}#{len(self._ids)}>")

    def shape(self, value: Any, key: str = "") -> Any:
        """``key`` is the field or header that the value stands in. JSON within a text is opened."""
        if key.lower() in VOLATILE:
            return VOLATILE[key.lower()]
        if isinstance(value, dict):
            return {self.text(name): self.shape(each, name) for name, each in value.items()}
        if isinstance(value, list):
            return [self.shape(each) for each in value]
        if isinstance(value, str):
            inner = _object_in(value)
            return self.text(value, PROSE.get(key, LONGEST)) if inner is None else {"<json>": self.shape(inner)}
        if isinstance(value, float) or (key.endswith(("_ms", "_time")) and not isinstance(value, bool)):
            return "<time>"
        return value


def _object_in(text: str) -> Json | None:
    if not text.startswith("{"):
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        return None


def of(log: Iterable[Recorded], hide: Iterable[tuple[str, str]] = ()) -> list[Json]:
    """The shapes of a scenario's requests: those that work first, in their order, then what the client asks at start.

    Ids are so named by the work. Questions come once or twice, before or after a cookie came and the client gave its
    name: each is kept once, and without either.
    """
    namer = Namer(hide)
    wanted = [recorded for recorded in log if not NOISE.search(recorded.target)]
    questions = {recorded.target: recorded for recorded in reversed(wanted) if _is_question(recorded)}
    work = [_request(recorded, namer) for recorded in wanted if not _is_question(recorded)]
    return work + [_request(questions[target], namer, _calm) for target in sorted(questions)]


def _is_question(recorded: Recorded) -> bool:
    return recorded.method == "GET" and not recorded.frames


def _request(recorded: Recorded, namer: Namer, adapt: Callable[[str, str], str | None] = lambda _, v: v) -> Json:
    """``headers`` and bodies with the order of their fields; ``body`` is JSON, ``form`` pairs, ``frames`` messages."""
    headers: Json = {}
    for name, value in recorded.headers:
        if (kept := adapt(name.lower(), _system(value))) is not None:
            headers[name] = namer.shape(kept, name)
    host = recorded.header("host")
    shape: Json = {
        "request": f"{recorded.method} {host}{namer.text(recorded.target)}",
        "alpn": recorded.alpn,
        "headers": headers,
        **_body(recorded, namer),
    }
    if recorded.frames:
        shape["frames"] = namer.shape(recorded.frames)
    return shape


def _body(recorded: Recorded, namer: Namer) -> Json:
    if not recorded.body:
        return {}
    if recorded.header("content-type").startswith("application/x-www-form-urlencoded"):
        return {"form": namer.shape(dict(urllib.parse.parse_qsl(recorded.body.decode())))}
    try:
        return {"body": namer.shape(msgspec.json.decode(recorded.body))}
    except msgspec.DecodeError:
        return {"body": f"<{recorded.header('content-type')}, not JSON>"}


def _system(value: str) -> str:
    """A user agent without the machine that the client ran on."""
    return re.sub(r"^([\w-]+/\S+) \([^;)]+; [^;)]+\)", r"\1 (<system>)", value)


def _calm(name: str, value: str) -> str | None:
    if name == "cookie":
        return None
    if name == "originator":
        return "<originator>"
    if name == "user-agent":
        return re.sub(r"^[\w-]+/", "<originator>/", re.sub(r" \([\w-]+; [\w.]+\)$", "", value))
    return value


# --- what the binary itself says


def catalogue(models: Json) -> list[Json]:
    """The bundled models, without their prompts."""
    namer = Namer()
    return [namer.shape(model) for model in models["models"]]


def features(listing: str) -> dict[str, str]:
    """Flags of the client: by name, its stage and whether it is on."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in listing.splitlines()]
    return {row[0]: " | ".join(row[1:]) for row in rows}


_HEADER = rb"x-(?:codex|openai|oai|responsesapi|models)-"
_VARIABLE = rb"(?:CODEX|OPENAI)_"
_STRINGS = [
    rb"/?(?:backend-api|wham)/[a-z0-9_/-]{3,60}",
    rb"/(?:responses|oauth|deviceauth|images|realtime|transcribe|alpha|memories|codex)/[a-z0-9_-]{3,40}",
    _HEADER + rb"(?:(?!" + _HEADER + rb")[a-z0-9-]){3,50}",
    _VARIABLE + rb"(?:(?!" + _VARIABLE + rb")[A-Z0-9_]){4,60}",
    rb"responses_websockets=[0-9-]+",
    rb"remote_compaction_v\d+",
    rb"gpt-image-[0-9.]+",
    rb"gpt-realtime[a-z0-9.-]*",
    rb"gpt-[0-9.]+o?-transcribe",
]


def strings(binary: bytes) -> list[str]:
    """Paths, headers, variables and models that the binary names. Rust lays texts end to end: some have a tail."""
    return sorted({found.decode() for pattern in _STRINGS for found in re.findall(pattern, binary)})
