"""The README's tables are made from the code; ``pytest --accept`` rewrites them."""

import re
from functools import partial
from pathlib import Path

import pytest

from codexd.api.api import KINDS
from codexd.config import load
from codexd.protocol import parameters
from support.daemon import ROOT

README = ROOT / "README.md"
TABLES = {
    "configuration": load.table,
    **{f"{each.name} parameters": partial(parameters.table, each.rules) for each in KINDS},
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_what_the_code_says(name: str, accept: bool) -> None:
    start, end = f"<!-- {name}: generated, `pytest --accept` rewrites it -->\n", "<!-- end -->"
    before, found, rest = README.read_text().partition(start)
    assert found
    shown, _, after = rest.partition(end)
    wanted = f"\n{TABLES[name]()}\n\n"
    if accept:
        README.write_text(before + start + wanted + end + after)
        return
    assert shown == wanted


def test_the_configuration_example_can_be_used(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    assert example is not None
    path = tmp_path / "config.toml"
    path.write_text(example[1].replace("sk-codexd-…", "sk-codexd-0123456789"))
    assert load.load(path, {})[0].models.aliases == {"gpt-4o": "gpt-6-luna-low"}
