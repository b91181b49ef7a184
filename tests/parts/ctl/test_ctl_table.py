"""The table of verbs is complete, and a verb imports only what it needs."""

import subprocess
import sys
from pathlib import Path

import pytest

from codexd.ctl import verbs
from codexd.ctl.table import VERBS, load
from support.daemon import environment

LOAD_ALL = "from codexd.ctl.table import VERBS, load\nfor verb in VERBS: load(verb.name)"
PARSE = "from codexd.ctl.parser import parser\nparser({words!r})"


def imported(home: Path, code: str) -> set[str]:
    """Runs the code in another interpreter and returns the modules that it has then."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        env=environment(home), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_each_module_of_a_verb_is_in_the_table() -> None:
    modules = {path.stem for path in Path(verbs.__file__).parent.glob("*.py")} - {"__init__"}
    assert {verb.module for verb in VERBS} == modules


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_each_verb_can_be_run(verb: str) -> None:
    assert callable(load(verb).run)


def test_no_verb_needs_rich_before_it_draws(tmp_path: Path) -> None:
    found = imported(tmp_path, LOAD_ALL)
    assert "codexd.ctl.drawing" in found
    assert {"rich", "pygments", "segno", "trio", "httpx"} & found == set()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--version"], set()),
        (["--help"], set()),
        (["--json", "status"], {"status"}),
        (["help", "keys"], {"help", "keys"}),
    ],
    ids=" ".join,
)  # fmt: skip
def test_only_the_verbs_of_the_command_line_are_imported(tmp_path: Path, words: list[str], wanted: set[str]) -> None:
    found = imported(tmp_path, PARSE.format(words=words))
    below = "codexd.ctl.verbs."
    assert {name.removeprefix(below) for name in found if name.startswith(below)} == wanted
