"""Words that do not come back: what people read is plain English, with the field's terms (CONTRIBUTING has a glossary)."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemon import ROOT

BANNED = {
    r"mend(?:s|ed|ing)?": "fix, repair",
    r"anew": "again",
    r"(?:is|are|all|ends?|ended|went|stops?|works?) well": "OK, passed",
    r"(?<!there )(?:is|are) no(?! longer| more)": "is not a",
    r"has no \w+ of": "is not a",
    r"no (?:number|name|date|image|key|address) (?:of|that)": "not a number",
    r"(?<!such )as \d+[dhkm]": "such as 7d",
    r"so many": "this many",
    r"under way": "in progress",
    r"stands? in for": "replaces",
    r"whoever": "the user, the client",
    r"lies? (?:in|under|below|at|beside)": "is in",
    r"go(?:es)? on": "continue",
    r"met a fault": "internal error",
    r"that there (?:is|are)": "that exist",
    r"stays? good": "stays valid",
    r"cannot be had": "cannot be shown",
    r"any more than": "more than",
    r"\(?finds? no room": "does not fit",
    r"on top of the file": "overrides the file",
}
"""Expressions of the old dialect, and what to write instead."""

_FIND = re.compile(rf"(?<![\w`/.-])(?:{'|'.join(BANNED)})(?![\w`])", re.IGNORECASE)


def texts() -> Iterator[tuple[str, str]]:
    """Yields each place and text that people read: documents, units, configuration, and the code's own strings."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    names = listed or [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
    for name in names:
        path = ROOT / name
        if name.startswith(("tests/", "docs/performance/")) or not path.is_file():
            continue
        if name.startswith("codexd/") and path.suffix == ".py":
            yield from strings(path)
        elif path.suffix in (
            ".md",
            ".1",
            ".8",
            ".5",
            ".service",
            ".socket",
            ".default",
            ".conf",
            ".yaml",
            ".yml",
            ".toml",
        ):
            yield from ((f"{name}:{number}", line) for number, line in enumerate(path.read_text().splitlines(), 1))


def strings(path: Path) -> Iterator[tuple[str, str]]:
    """Yields all strings of a module, docstrings too, and its comments."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value
    for number, line in enumerate(text.splitlines(), 1):
        if comment := re.search(r"(?:^|\s)# (.*)", line):
            yield f"{path.relative_to(ROOT)}:{number}", comment[1]


def test_the_old_words_do_not_come_back() -> None:
    found = [f"{place}: {hit[0]!r} in {text.strip()[:100]!r}" for place, text in texts() if (hit := _FIND.search(text))]
    assert found == []


@pytest.mark.parametrize(
    ("text", "banned"),
    [
        ("All 10 checks are well.", True), ("begins anew in 1 h", True), ("'0' is no number", True),
        ("as 7d", True), ("such as 7d", False), ("There is no file x.", False), ("it is no longer valid", False),
        ("mended", True), ("recommend", False), ("Mend what is above", True), ("it goes on", True),
    ],
)  # fmt: skip
def test_the_list_finds_what_it_should(text: str, banned: bool) -> None:
    assert (_FIND.search(text) is not None) is banned
