"""What a search found, and the citations of it in an answer. Pure functions."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from codexd.protocol import decoding

MAX_PAGES = 50
"""Pages of one search that are listed to the client."""

_PIECE = r"[^\s<>\"'()\[\]{}]"
# Brackets in it must be in pairs, as in the encyclopedia's addresses.
_ADDRESS = re.compile(rf"https?://{_PIECE}+(?:\({_PIECE}*\){_PIECE}*)*")
_LINK = re.compile(rf"\[([^\[\]\n]{{1,300}})\]\(({_ADDRESS.pattern})\)")
_TITLE = re.compile(r"(?:title\s*[:=]\s*|^#+\s*)(\S.{0,299})$", re.IGNORECASE)
MAX_TITLE_LINE = 400
_AFTER = ".,;:!?*_`"
"""Characters that end a sentence rather than an address."""


class Page(NamedTuple):
    url: str
    title: str


class Citation(NamedTuple):
    """A page that the characters of a text from ``start`` to ``end`` rest on."""

    start: int
    end: int
    page: Page


def text_of(output: object) -> str:
    """Returns a search's output, of whatever shape, as text for the model."""
    text = output if isinstance(output, str) else msgspec.json.encode(output).decode()
    return text if text.strip() else "Nothing was found."


def pages_of(output: object) -> list[Page]:
    """Returns the pages that a search's output names: objects with an address, else the links in a text."""
    found: dict[str, str] = {}
    if isinstance(output, str) and output.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(msgspec.DecodeError):
            output = decoding.decode(output)
    for page in _in_text(output) if isinstance(output, str) else _in_objects(output):
        if not found.get(page.url):
            found[page.url] = page.title
    return [Page(url, title or url) for url, title in list(found.items())[:MAX_PAGES]]


def _in_objects(value: object, depth: int = 0) -> Iterator[Page]:
    match value:
        case {"url": str() as url, **rest} if url.startswith(("http://", "https://")):
            title = rest.get("title")
            yield Page(url, title if isinstance(title, str) else "")
        case dict() if depth < 20:
            for each in value.values():
                yield from _in_objects(each, depth + 1)
        case list() if depth < 20:
            for each in value:
                yield from _in_objects(each, depth + 1)
        case str():
            yield from _in_text(value)
        case _:
            pass


def _in_text(text: str) -> Iterator[Page]:
    title = ""
    for line in text.splitlines():
        links = [Page(found[2], found[1]) for found in _LINK.finditer(line)]
        yield from links
        if not links:
            addresses = [_address(found[0]) for found in _ADDRESS.finditer(line)]
            yield from (Page(address, title) for address in addresses)
        if len(line) <= MAX_TITLE_LINE and (named := _TITLE.search(line)):
            title = named[1].strip()


def _address(found: str) -> str:
    return found.rstrip(_AFTER)


def citations(text: str, known: Mapping[str, str]) -> list[Citation]:
    """Returns the links in a text to pages that a search found; ``known`` maps addresses to titles."""
    same = {_plain(url): Page(url, title) for url, title in known.items()}
    found: list[Citation] = []
    covered = 0
    for link in re.finditer(f"{_LINK.pattern}|{_ADDRESS.pattern}", text):
        address = link[2] or _address(link[0])
        page = same.get(_plain(address))
        if page is not None and link.start() >= covered:
            covered = link.start() + len(link[0]) if link[2] else link.start() + len(address)
            found.append(Citation(link.start(), covered, Page(address, page.title or link[1] or address)))
    return found


def _plain(url: str) -> str:
    """Returns an address without what differs between two ways to write it."""
    place, _, query = url.partition("#")[0].partition("?")
    place = place.removeprefix("https://").removeprefix("http://").removeprefix("www.").rstrip("/")
    kept = "&".join(part for part in query.split("&") if part and not part.startswith("utm_"))
    return f"{place}?{kept}" if kept else place


def annotation(cited: Citation) -> dict[str, Any]:
    """Returns a citation as the APIs' ``url_citation``."""
    return {
        "type": "url_citation",
        "start_index": cited.start,
        "end_index": cited.end,
        "url": cited.page.url,
        "title": cited.page.title,
    }
