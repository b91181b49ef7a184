"""The manual pages say what the programs take, and a formatter has nothing to say against them."""

import argparse
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from codexd import __main__ as daemon
from codexd.config import load
from codexd.config.model import Config
from codexd.control import wire
from codexd.ctl.parser import parser
from codexd.ctl.session import EXIT
from codexd.protocol.codex import rate_limits

MAN = Path(__file__).parent.parent / "docs" / "man"
PAGES = sorted(MAN.iterdir())


def words(page: Path) -> str:
    """The page's text with roff's escapes and macros' splitting taken out."""
    return page.read_text().replace("\\-", "-")


def options(of: argparse.ArgumentParser) -> Iterator[str]:
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            listed = {choice.dest for choice in action._choices_actions}
            for name in sorted(listed):  # the others are names that users guess
                verb = action.choices[name]
                yield name
                yield from options(verb)
        else:
            yield from action.option_strings


def test_codexctl_is_described_whole() -> None:
    text = words(MAN / "codexctl.1")
    for option in set(options(parser())) - {"-h", "--help"}:
        shown = f"Fl {option.removeprefix('-')}" if option.startswith("-") else option
        assert re.search(rf"(Cm|Fl|Ar) [^\n]*{re.escape(shown.removeprefix('Fl '))}\b", text), option
    for code in set(EXIT.values()):
        assert f".It {code}\n" in text


def test_codexd_is_described_whole(capsys: pytest.CaptureFixture[str]) -> None:
    text = words(MAN / "codexd.8")
    with pytest.raises(SystemExit):
        daemon.main(["--help"])
    found = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert len(found) >= 5
    for option in found:
        assert re.search(rf"(Fl|,) {option[1:]}\b", text), option


def roff(text: str) -> str:
    """Our Markdown of one line: code in backquotes is set literally, and each sentence begins a line."""
    text = text.replace("\\", "\\e").replace(". ", ".\n")
    return re.sub(r"`([^`]*)`", lambda found: f"\\fB{found[1]}\\fR".replace("-", "\\-"), text)


def prose(text: str) -> str:
    """A docstring, as roff."""
    return roff(" ".join(text.replace("``", "`").split()))


def replies() -> str:
    lines = [".Bl -tag -width Ds"]
    for reply in wire.Reply.__args__:
        said = prose(reply.__doc__) if reply.__doc__ and not reply.__doc__.startswith(f"{reply.__name__}(") else ""
        fields = [field.name for field in msgspec.structs.fields(reply) if field.name != "version"]
        held = " ,\n.Ql ".join(fields)
        lines += [
            f".It Ic {reply.__struct_config__.tag}",
            *([said] if said else []),
            *([f".Ql {held} ."] if held else []),
        ]
    inner = [("windows of usage", rate_limits.Window), ("credits of usage", rate_limits.Credits), ("models", wire.ModelEntry), ("keys", wire.KeyEntry)]  # fmt: skip
    for name, struct in inner:
        held = " ,\n.Ql ".join(field.name for field in msgspec.structs.fields(struct))
        lines += [f".It each of the {name}", f".Ql {held} ."]
    return "\n".join([*lines, ".El"]) + "\n"


def table() -> str:
    lines = []
    for section in msgspec.structs.fields(Config):
        lines += [f".Ss [{section.name}]", ".Bl -tag -width Ds"]
        for field in msgspec.structs.fields(section.type):
            default = field.default if field.default is not msgspec.NODEFAULT else {}
            shown = "unset" if default is None else msgspec.json.encode(default).decode()
            lines += [f".It Ic {section.name}.{field.name}", roff(load.description(section.type, field.name))]
            lines += [".br", f"Default: {roff(shown)}"]
        lines.append(".El")
    return "\n".join(lines) + "\n"


GENERATED = {"codexd.toml.5": table, "codexctl.1": replies}


@pytest.mark.parametrize("name", GENERATED)
def test_what_is_generated_is_what_the_code_says(name: str, accept: bool) -> None:
    page = MAN / name
    start, end = '.\\" generated, `pytest --accept` rewrites it\n', '.\\" end\n'
    before, found, rest = page.read_text().partition(start)
    assert found
    shown, _, after = rest.partition(end)
    wanted = GENERATED[name]()
    if accept:
        page.write_text(before + start + wanted + end + after)
        return
    assert shown == wanted


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_formatter_has_nothing_against_it(page: Path) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not here")
    checked = subprocess.run(["mandoc", "-Tlint", "-Wwarning", str(page)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")
