"""Every promise of docs/RELIABILITY.md and docs/SECURITY.md names a test that is there."""

import re
from pathlib import Path

import pytest

from support.daemon import ROOT


@pytest.mark.parametrize("page", ["RELIABILITY.md", "SECURITY.md"])
def test_the_tests_that_are_named_are_there(page: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / page).read_text())
    assert len(named) > 5
    missing = [f"{path}::{name}" for path, name in named if not _is_there(ROOT / path, name)]
    assert missing == []


def _is_there(path: Path, name: str) -> bool:
    return path.exists() and (not name or f"def {name}(" in path.read_text())
