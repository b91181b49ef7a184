"""The guide for contributors names files that are there, and all wings."""

import re

import pytest

from support import wings
from support.daemon import ROOT

GUIDE = (ROOT / "docs" / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "PERFORMANCE.md", "decisions.md", "RELIABILITY.md", "SECURITY.md"])
def test_the_files_that_are_named_are_there(page: str) -> None:
    named = set(re.findall(r"`(codexd/[a-z0-9_/]+(?:\.py)?/?)`", (ROOT / "docs" / page).read_text()))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_wing_is_told_of() -> None:
    wings = {path.name for path in (ROOT / "codexd").iterdir() if (path / "__init__.py").exists()}
    assert [wing for wing in sorted(wings) if f"`{wing}/`" not in GUIDE] == []


def test_the_picture_of_the_folders_is_that_of_the_code(accept: bool) -> None:
    path = ROOT / "docs" / "diagrams" / "folders.svg"
    if accept:
        path.write_text(wings.drawn())
    assert path.read_text() == wings.drawn()
