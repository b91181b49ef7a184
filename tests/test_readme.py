"""The tables of the reference are made from the code; ``pytest --accept`` rewrites them. The README is short."""

import re
from functools import partial
from pathlib import Path

import pytest

from codexd.api.api import KINDS
from codexd.config import load
from codexd.protocol import parameters
from support.daemon import ROOT

DOCS = ROOT / "docs"
TABLES = {
    "configuration": ("configuration.md", load.table),
    **{f"{each.name} parameters": ("parameters.md", partial(parameters.table, each.rules)) for each in KINDS},
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_what_the_code_says(name: str, accept: bool) -> None:
    start, end = f"<!-- {name}: generated, `pytest --accept` rewrites it -->\n", "<!-- end -->"
    page, table = TABLES[name]
    before, found, rest = (DOCS / page).read_text().partition(start)
    assert found
    shown, _, after = rest.partition(end)
    wanted = f"\n{table()}\n\n"
    if accept:
        (DOCS / page).write_text(before + start + wanted + end + after)
        return
    assert shown == wanted


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_configuration_example_can_be_used(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", (DOCS / "configuration.md").read_text(), re.DOTALL)
    assert example is not None
    path = tmp_path / "config.toml"
    path.write_text(example[1].replace("sk-codexd-…", "sk-codexd-0123456789"))
    assert load.load(path, {})[0].models.aliases == {"gpt-4o": "gpt-6.1-sol-low"}
