"""Instruction texts by model family, from the ``prompts/`` folder.

In the wheel the folder is package data; an editable install does not see force-included data and reads the checkout.
"""

import functools
from importlib import resources
from pathlib import Path

FAMILIES = ("gpt-5-1", "gpt-5-2", "gpt-5-1-codex", "gpt-5-1-codex-max", "gpt-5-1-codex-mini", "gpt-5-2-codex")


def family(slug: str) -> str:
    """The family whose text fits a model: the longest that its name starts with, else the newest of its kind."""
    name = slug.replace(".", "-")
    fitting = [family for family in FAMILIES if name == family or name.startswith(f"{family}-")]
    if fitting:
        return max(fitting, key=len)
    return "gpt-5-2-codex" if "codex" in name.split("-") else "gpt-5-2"


@functools.cache
def text(family: str) -> str:
    """The text of a family, without surrounding white space."""
    packaged = resources.files("codexd") / "prompts_data" / f"{family}.md"
    if packaged.is_file():
        return packaged.read_text().strip()
    return (Path(__file__).parent.parent / "prompts" / f"{family}.md").read_text().strip()


def for_model(slug: str) -> str:
    return text(family(slug))
