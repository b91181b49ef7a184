"""Where tests lie: what two test files share is in tests/support."""

import ast
from collections.abc import Iterator
from pathlib import Path

from support.daemon import ROOT

TESTS = ROOT / "tests"


def files() -> Iterator[Path]:
    """All that is the project's: ``tests/clients`` may have an environment of its own in it."""
    yield from (file for file in TESTS.rglob("*.py") if not {".venv", "node_modules"} & set(file.parts))


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (alias.name for alias in node.names)


def test_no_file_imports_a_test_file() -> None:
    """A test file that others import cannot be moved, parted or run alone without them."""
    found = {
        f"{file.relative_to(TESTS)}: {module}"
        for file in files()
        for module in imported(file)
        if module.rpartition(".")[2].startswith("test_")
    }
    assert found == set()
