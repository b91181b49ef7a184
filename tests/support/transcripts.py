"""The golden transcripts of tests/transcripts, and what the API makes of their requests."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from codexd.api.anthropic import MESSAGES
from codexd.api.chat import CHAT
from codexd.api.pipeline import Context, Dialect
from codexd.api.responses import RESPONSES, understood
from codexd.protocol import members, parameters
from codexd.protocol.adjustments import Adjustments
from codexd.protocol.codex.models import Catalogue
from codexd.protocol.conversion import Conversion
from codexd.protocol.convert import Converted, Settings
from codexd.protocol.reasoning import nothing
from support.daemon import ROOT

FOLDER = ROOT / "tests" / "transcripts"
NAMES = sorted(folder.name for folder in FOLDER.iterdir())
DIALECTS = {dialect.name: dialect for dialect in (CHAT, RESPONSES, MESSAGES)}

FOREIGN = ("responses-chats-words", "chat-responses-words", "chat-anthropics-words", "messages-unknown-blocks")
"""Transcripts whose requests are in another API's words."""

MODE_OFF = ("chat-own-instructions", "chat-no-instructions-lite")
"""Transcripts with ``codex.mode`` off."""


def dialect_of(folder: Path) -> Dialect:
    return DIALECTS[folder.name.partition("-")[0]]


@cache
def prepared(folder: Path, *, streamed: bool) -> tuple[Converted, Callable[[], Conversion], Adjustments]:
    """What the API makes of the request: with the endpoint's own dialect, and a context that is always the same."""
    dialect = dialect_of(folder)
    found = members.split((folder / "request.json").read_bytes())
    asked = dialect.request.decode(found)
    prompt = None if folder.name in MODE_OFF else "(the family's instructions)"
    context = Context(
        id="1" * 48,
        created=1795324300,
        resolved=Catalogue({}).resolve(asked.model),
        settings=Settings(prompt=prompt, repair_history=folder.name.endswith("-repaired")),
        streamed=streamed,
        recall=nothing,
        turn=lambda: None,
        reasoning_format="reasoning_content",
    )
    ((converted, conversion),) = dialect.prepare(
        understood(asked, found) if dialect is RESPONSES else asked, context
    ).parts
    return converted, conversion, parameters.apply_rules(found, dialect.rules)


def conversion(folder: Path, *, streamed: bool) -> Conversion:
    _, make, _ = prepared(folder, streamed=streamed)
    return make()


def upstream(folder: Path) -> list[bytes]:
    """The backend's answer as events."""
    return (folder / "upstream.jsonl").read_bytes().splitlines()
