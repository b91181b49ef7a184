"""The status page: what it says, to whom, and that nothing in it comes from elsewhere."""

import base64
import hashlib
import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

from codexd.api import docs_pages, status_page
from codexd.config.model import Config, Server
from codexd.protocol.codex.rate_limits import Window
from codexd.telemetry.tokens import Amount, Hour
from codexd.telemetry.trace import Spans, Trace
from support.asgi import client
from support.backend import WHOLE, Backend
from support.daemon import hello

VIEW = status_page.View(
    version="1.0", uptime="5 min", now=1_000.0, base="http://localhost:3000/v1", key_required=False, who="a@b.c", why=None,
    streams=1, lane="websockets", websockets=0, windows=(), models=["gpt-5.5"], hours=[Hour(hour=number) for number in range(24)],
)  # fmt: skip


def text(view: status_page.View) -> str:
    return status_page.page(view).body.decode()


class Balanced(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = ("meta", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        assert not any(name.startswith("on") or name in ("src", "srcset") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    "view",
    [
        VIEW,
        VIEW._replace(who=None, why="The <sign-in> has ended", models=[]),
        VIEW._replace(
            windows=[Window(limit="codex", label="5 h", used_percent=93.5, window_minutes=300, resets_at=4_600)]
        ),
        VIEW._replace(hours=[Hour(hour=number, requests=number, input=10**6) for number in range(24)]),
        VIEW._replace(hours=[]),
        VIEW._replace(base="http://a&b\"'<script>/v1", who="<b>", key_required=True, models=['"><script>alert(1)']),
    ],
)
def test_it_is_whole_and_escaped(view: status_page.View) -> None:
    found = text(view)
    parser = Balanced()
    parser.feed(found)
    assert parser.open == []
    assert parser.scripts == 1 and found.count("http-equiv") == 1
    assert re.findall(r"""(?:href=.|url\()(?!data:)(\w+:)""", found) == []


def test_its_only_script_is_the_one_that_the_policy_allows() -> None:
    document = status_page.page(VIEW)
    (script,) = re.findall(r"<script>(.*?)</script>", document.body.decode(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in dict(document.headers)["content-security-policy"]


def trace(**fields: Any) -> Trace:
    given = {"id": "req_1", "at": 900.0, "method": "POST", "endpoint": "/chat/completions", "status": None}
    return Trace(**given | {"streamed": True, "spans": Spans()} | fields)


def test_it_shows_failures_with_what_to_do_and_where_to_look() -> None:
    failed = trace(status=401, error="x", message="Not signed in: run `codexctl login` <now>.", model="gpt-5.5")
    found = text(VIEW._replace(failures=[failed]))
    assert "run <code>codexctl login</code> &lt;now&gt;." in found and "codexctl explain req_1" in found
    assert "Recent failures" not in text(VIEW)


def test_it_shows_what_is_in_progress() -> None:
    found = text(VIEW._replace(in_progress=[trace(model="gpt-5.5", key="לפטופ"), trace(endpoint="/", model=None)]))
    assert "<bdi>gpt-5.5</bdi>" in found and "<bdi>לפטופ</bdi>" in found
    assert "1 min, waiting for the first token" in found
    assert found.count("<li><span><bdi>") == 1


def test_it_shows_what_each_key_used_and_how_much_was_cached() -> None:
    hours = [Hour(hour=number, requests=1, input=100, cached=40, output=5) for number in range(24)]
    found = text(VIEW._replace(hours=hours, keys={"a": Amount(requests=2, input=10), "": Amount(requests=1, failed=1)}))
    assert "40% of the input tokens came from the cache." in found
    assert found.index("<bdi>a</bdi>") < found.index("(no key)") and "1 request, 1 failed" in found
    assert "Usage by key" not in text(VIEW._replace(keys={"": Amount(requests=1)}))


def test_signed_out_it_has_no_limits_of_an_account_that_is_gone() -> None:
    window = Window(limit="codex", label="5 h", used_percent=93.5, window_minutes=300, resets_at=4_600)
    assert "93.5" not in text(VIEW._replace(who=None, windows=[window]))


def test_what_it_says() -> None:
    assert "<strong" in text(VIEW) and "as <bdi>a@b.c</bdi>" in text(VIEW)
    assert "reach the backend over websockets." in text(VIEW)
    assert "over websockets, 2 open." in text(VIEW._replace(websockets=2))
    out = text(VIEW._replace(who=None, why=None))
    assert "Signed out." in out and "codexctl login" in out and "Not signed in" not in out
    window = Window(limit="codex", label="5 h", used_percent=93.5, window_minutes=300, resets_at=4_600)
    limits = text(VIEW._replace(windows=[window]))
    assert 'aria-label="93.5 % used"' in limits and 'class="track bad"' in limits and "resets in 1 h 0 min" in limits
    busy = text(VIEW._replace(hours=[Hour(hour=number, requests=50, input=1000, output=500) for number in range(24)]))
    assert "<strong>1\u202f200</strong> requests" in busy and "<strong>36\u202f000</strong> tokens" in busy
    assert "YOUR-KEY" in text(VIEW._replace(key_required=True)) and "YOUR-KEY" not in text(VIEW)


async def test_it_is_served_with_what_was_asked(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Backend(WHOLE)) as app:
        await app.request("POST", "/v1/chat/completions", hello(stream=True))
        answer = await app.request("GET", "/")
    async with client(tmp_path, Backend(), Config(server=Server(allow_unauthenticated=True))) as app:
        proxied = await app.request("GET", "/", headers={"x-forwarded-proto": "https"})
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
    found = answer.body.decode()
    assert "http://localhost/v1" in found and "https://localhost/v1" in proxied.body.decode()
    assert "<strong>1</strong> requests" in found and "<strong>10</strong> tokens" in found


async def test_the_documentation_is_served_without_a_key(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Backend(), Config(server=Server(client_keys={"phone": "k" * 32}))) as app:
        moved = await app.request("GET", "/docs")
        assert (moved.status, moved.headers["location"]) == (302, "docs/index.md")
        for name in sorted(docs_pages.names()):
            answer = await app.request("GET", f"/docs/{name}")
            kind = {"md": "text/html; charset=utf-8", "svg": "image/svg+xml", "png": "image/png"}[
                name.rpartition(".")[2]
            ]
            assert (answer.status, answer.headers["content-type"]) == (200, kind), name
        for name in ("nix.md", "../README.md", "..%2fREADME.md", "man/codexd.8"):
            assert (await app.request("GET", f"/docs/{name}")).status == 404, name


def test_every_page_is_in_the_navigation() -> None:
    assert {name for name in docs_pages.names() if name.endswith(".md") and "/" not in name} == set(docs_pages.ORDER)


def test_links_between_pages_lead_somewhere() -> None:
    """With the anchors of headings, as a browser finds them."""
    pages = {name: docs_pages.page(name).body.decode() for name in docs_pages.names() if name.endswith(".md")}
    for name, found in pages.items():
        for target in re.findall(r'(?:href|src)="([^"]+)"', found.partition("<article>")[2]):
            if target.startswith(("http:", "https:", "data:")):
                continue
            path, _, anchor = target.partition("#")
            wanted = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
            assert wanted in docs_pages.names(), (name, target)
            assert not anchor or f'id="{anchor}"' in pages[wanted], (name, target)


async def test_with_keys_a_browser_asks_for_one(autojump_clock: MockClock, tmp_path: Path) -> None:
    key = "k" * 32
    async with client(tmp_path, Backend(), Config(server=Server(client_keys={"phone": key}))) as app:
        refused = await app.request("GET", "/")
        assert (refused.status, refused.headers["www-authenticate"][:6]) == (401, "Basic ")
        for given in (f"me:{key}", f":{key}", f"phone:{key}"):
            basic = {"authorization": f"Basic {base64.b64encode(given.encode()).decode()}"}
            assert (await app.request("GET", "/", headers=basic)).status == 200
        for wrong in ("Basic !", "Basic", f"Basic {base64.b64encode(b'no-colon').decode()}", "Basic /w=="):
            assert (await app.request("GET", "/", headers={"authorization": wrong})).status == 401
        # A browser sends what it was told with whatever a page causes, so it opens nothing but this page.
        basic = {"authorization": f"Basic {base64.b64encode(f':{key}'.encode()).decode()}"}
        for path in ("/v1/models", "/v1/chat/completions", "/metrics", "/health/", "//"):
            for method in ("GET", "POST"):
                answer = await app.request(method, path, headers=basic)
                assert answer.status in (401, 404, 405) or path.startswith("/health"), (method, path)
        # An API client is not asked so: some would open a window.
        assert "www-authenticate" not in (await app.request("GET", "/v1/models")).headers
        assert (await app.request("GET", "/", headers={"authorization": f"Bearer {key}"})).status == 200
