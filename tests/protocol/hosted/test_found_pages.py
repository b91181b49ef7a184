"""What a search found, and its citations in a text."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.protocol.hosted.pages import MAX_PAGES, Page, annotation, citations, pages_of, text_of

A, B = Page("https://a.example/x", "A page"), Page("https://b.example/", "B")


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("", []),
        ("Nothing here.", []),
        ("[A page](https://a.example/x)\nIt says so.", [A]),
        ("Title: A page\nhttps://a.example/x\nIt says so.", [A]),
        ("# A page\n<https://a.example/x>.", [A]),
        ("See https://a.example/x, and https://a.example/x.", [Page(A.url, A.url)]),
        ("[A page](https://a.example/x)\n[The same](https://a.example/x)", [A]),
        ("https://a.example/x\n[A page](https://a.example/x)", [A]),
        ([{"url": A.url, "title": A.title}, {"url": B.url, "title": 7}], [A, Page(B.url, B.url)]),
        ({"results": [{"link": 1}, {"url": A.url, "title": A.title}], "more": "see [B](https://b.example/)"}, [A, B]),
        ('{"results": [{"url": "https://a.example/x", "title": "A page"}]}', [A]),
        ('{"results": [', []),
        ({"url": "file:///etc/passwd"}, []),
        (7, []),
        (None, []),
    ],
)
def test_pages_are_found_in_any_shape(output: Any, found: list[Page]) -> None:
    assert pages_of(output) == found


def test_pages_are_bounded() -> None:
    assert len(pages_of([{"url": f"https://{number}.example"} for number in range(200)])) == MAX_PAGES
    deep: Any = {"url": A.url}
    for _ in range(100):
        deep = [deep]
    assert pages_of(deep) == []


def test_an_output_is_a_text() -> None:
    assert text_of("x") == "x"
    assert text_of({"a": 1}) == '{"a":1}'
    assert text_of(" ") == "Nothing was found."


KNOWN = {A.url: A.title, B.url: B.title, "https://w.example/F_(b)?c=1": "F"}


@pytest.mark.parametrize(
    ("text", "cited"),
    [
        ("no links", []),
        ("[so](https://a.example/x), it says", [("[so](https://a.example/x)", A)]),
        ("See https://a.example/x.", [("https://a.example/x", A)]),
        ("See http://www.a.example/x/?utm_source=me#top.", [("http://www.a.example/x/?utm_source=me#top", Page("http://www.a.example/x/?utm_source=me#top", "A page"))]),
        ("[other](https://c.example)", []),
        ("https://w.example/F_(b)?utm_source=x&c=1, so", [("https://w.example/F_(b)?utm_source=x&c=1", Page("https://w.example/F_(b)?utm_source=x&c=1", "F"))]),
        ("([F](https://w.example/F_(b)?c=1))", [("[F](https://w.example/F_(b)?c=1)", Page("https://w.example/F_(b)?c=1", "F"))]),
        ("é [so](https://a.example/x) and https://b.example/", [("[so](https://a.example/x)", A), ("https://b.example/", B)]),
    ],
)  # fmt: skip
def test_links_to_found_pages_are_citations(text: str, cited: list[tuple[str, Page]]) -> None:
    found = citations(text, KNOWN)
    assert [(text[each.start : each.end], each.page) for each in found] == cited
    for each in found:
        assert annotation(each)["url"] == each.page.url


def test_a_page_without_a_title_has_the_links() -> None:
    assert citations("[so](https://a.example/x)", {A.url: ""})[0].page.title == "so"
    assert citations("https://a.example/x", {A.url: ""})[0].page.title == A.url


@pytest.mark.parametrize("text", ["[a](http://", "[", "(", "http://(", "title: ", "# ", "[a](http://a(b)"])
def test_foreign_texts_take_no_time(text: str) -> None:
    """A quadratic pattern would take minutes, and the test its deadline."""
    large = text * (500_000 // len(text))
    begun = time.process_time()
    pages_of(large)
    citations(large, {"http://a": ""})
    assert time.process_time() - begun < 5


@given(st.text(alphabet="[]() ahtps:/.exmlé\n", max_size=80))
def test_citations_are_in_order_and_apart(text: str) -> None:
    ends = 0
    for each in citations(text, {"https://a": "", "http://e.x": ""}):
        assert ends <= each.start < each.end <= len(text)
        ends = each.end
    pages_of(text)
