"""The documentation, served by codexd itself: the Markdown of ``docs/`` as HTML, for the version that is running."""

import re
from functools import lru_cache
from html import escape
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from markdown_it import MarkdownIt
from markdown_it.token import Token

import codexd
from codexd import errors
from codexd.api.exchange import Document
from codexd.api.status_page import HEAD, STYLE

_HEADERS = (
    ("content-security-policy", "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'"),
    ("cache-control", "max-age=300"),
    ("x-content-type-options", "nosniff"),
)

START = "index.md"
_ELSEWHERE = "changelog.md"
"""A page of the site that only includes a file of the checkout."""

ORDER = (
    START, "server.md", "proxy.md", "clients.md", "upgrade.md", "monitoring.md", "troubleshooting.md",
    "configuration.md", "codexctl.md", "api.md", "parameters.md",
    "how-it-works.md", "SECURITY.md", "RELIABILITY.md", "PERFORMANCE.md", "CONTRIBUTING.md",
    "decisions.md",
)  # fmt: skip
"""The pages in the navigation, in its order."""

_PAGE = Template(
    HEAD
    + """<title>$title – codexd</title>
<style>
$style
h2 { font-size: 1.2rem; margin: 1.6rem 0 .4rem; } h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .8rem; padding: 1rem 1.25rem;
  overflow-wrap: anywhere; min-width: 0; }
article ul { list-style: disc; padding-left: 1.25rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; overflow-wrap: normal; margin: .6rem 0; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; }
img { max-width: 100%; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; }
nav [aria-current] { font-weight: 600; text-decoration: none; color: var(--text); }
pre { user-select: auto; -webkit-user-select: auto; cursor: auto; }
</style>
</head>
<body>
<main>
<nav aria-label="Pages"><a href="$root">Status</a> $links</nav>
<article>
$body
</article>
</main>
</body>
</html>
"""
)


def start(prefix: str = "docs/") -> Document:
    """Returns a redirect to the first page: links between pages are relative."""
    return Document(b"", (("location", f"{prefix}{START}"),), status=302, content_type="text/plain")


def page(name: str) -> Document:
    """Returns a page by its path in ``docs/``, such as ``clients/aider.md``, or an image. Raises ApiError 404."""
    if name not in names():
        raise errors.no_such_page(name)
    found = _folder() / name
    if name.endswith(".svg"):
        return Document(found.read_bytes(), _HEADERS, content_type="image/svg+xml")
    if name.endswith(".png"):
        return Document(found.read_bytes(), _HEADERS, content_type="image/png")
    return Document(_rendered(name).encode(), _HEADERS, content_type="text/html; charset=utf-8")


def _folder() -> Traversable:
    packaged = resources.files("codexd") / "docs_data"
    return packaged if packaged.is_dir() else Path(codexd.__file__).parent.parent / "docs"


@lru_cache(maxsize=1)
def names() -> frozenset[str]:
    """Returns the paths of all pages and images."""
    return frozenset(_below(_folder(), ""))


def _below(folder: Traversable, prefix: str) -> list[str]:
    found = []
    for each in folder.iterdir():
        if each.is_dir():
            found += _below(each, f"{prefix}{each.name}/")
        elif each.name.endswith((".md", ".svg", ".png")) and each.name != _ELSEWHERE:
            found.append(f"{prefix}{each.name}")
    return found


@lru_cache(maxsize=8)
def _rendered(name: str) -> str:
    text = (_folder() / name).read_text()
    up = "../" * name.count("/")
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = markdown.parse(text)
    _name_headings(tokens)
    title = next((tokens[place + 1].content for place, token in enumerate(tokens) if token.tag == "h1"), "codexd")
    links = " ".join(
        f'<a href="{up}{escape(each)}"{" aria-current=page" if each == name else ""}>{escape(_title(each))}</a>'
        for each in ORDER
    )
    body = markdown.renderer.render(tokens, markdown.options, {})
    root = f"../{up}"
    return _PAGE.substitute(title=escape(title), style=STYLE, links=links, body=body, root=root)


def _title(name: str) -> str:
    first = (_folder() / name).read_text().partition("\n")[0]
    return first.removeprefix("# ")


def _name_headings(tokens: list[Token]) -> None:
    """Gives each heading an id, as links between pages expect."""
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            text = tokens[place + 1].content
            token.attrSet("id", re.sub(r"[^\w]+", "-", re.sub(r"[`*,.?!():]", "", text).lower()).strip("-"))
