"""The guides: what is generated is what the code says, and what is marked runnable runs."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from codexd.auth import store
from codexd.config.clients import CLIENTS, NO_KEY, Target, described
from codexd.ctl.parser import parser
from codexd.protocol.codex.models import BUILT_IN
from support.asgi import client
from support.backend import Backend
from support.daemon import ROOT, environment, running
from support.simulated import simulated

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
COMMON = " [-h] [--json] [--socket PATH] [--instance NAME]"
"""What every verb takes; the page says so once."""

MARK, END = "<!-- generated, `pytest --accept` rewrites it -->\n", "<!-- end -->\n"


def verbs() -> str:
    """Each verb with its usage and its options, as the parser has them."""
    lines: list[str] = []

    def describe(of: argparse.ArgumentParser, name: str, text: str) -> None:
        usage = " ".join(of.format_usage().removeprefix("usage: ").split()).replace(COMMON, "")
        lines.extend([f"## {name}", "", f"{text[0].upper()}{text[1:]}.", "", "```text", usage, "```", ""])
        shown = [
            (
                ", ".join(f"`{each}`" for each in action.option_strings) or f"`{action.metavar or action.dest}`",
                action.help,
            )
            for action in of._actions
            if action.help not in (None, argparse.SUPPRESS)
            and action.dest not in ("help", "json", "socket", "instance")
        ]
        if shown:
            lines.extend(["| | |", "|---|---|", *(f"| {names} | {said} |" for names, said in shown), ""])

    for top in parser()._actions:
        if not isinstance(top, argparse._SubParsersAction):
            continue
        for choice in top._choices_actions:
            verb = top.choices[choice.dest]
            inner = [action for action in verb._actions if isinstance(action, argparse._SubParsersAction)]
            if not inner:
                describe(verb, choice.dest, choice.help or "")
            for action in inner:
                for each in action._choices_actions:
                    describe(action.choices[each.dest], f"{choice.dest} {each.dest}", each.help or "")
    return "\n".join(lines)


async def endpoints(folder: Path) -> str:
    async with client(folder, Backend()) as app:
        paths = (await app.request("GET", "/openapi.json")).json["paths"]
    rows = [
        f"| `{method.upper()}` | `{path}` | {operation['summary']} |"
        for path, operations in paths.items()
        for method, operation in operations.items()
    ]
    return "\n".join(["| | path | |", "|---|---|---|", *rows, ""])


def check(page: Path, wanted: str, *, accept: bool) -> None:
    before, found, rest = page.read_text().partition(MARK)
    assert found
    shown, _, after = rest.partition(END)
    if accept:
        page.write_text(f"{before}{MARK}\n{wanted}\n{END}{after}")
    else:
        assert shown == f"\n{wanted}\n"


def test_the_verbs_are_those_that_there_are(accept: bool) -> None:
    check(DOCS / "codexctl.md", verbs(), accept=accept)


async def test_the_endpoints_are_those_that_there_are(autojump_clock: MockClock, tmp_path: Path, accept: bool) -> None:
    check(DOCS / "api.md", await endpoints(tmp_path), accept=accept)


@pytest.mark.parametrize("name", CLIENTS)
def test_the_page_of_a_client_has_what_setup_writes(name: str, accept: bool) -> None:
    target = Target("http://127.0.0.1:3000/v1", NO_KEY, [BUILT_IN[0].slug])
    check(DOCS / "clients" / f"{name}.md", f"```text\n{described(CLIENTS[name](target))}\n```", accept=accept)


def test_examples_use_the_catalogues_default_model() -> None:
    default = BUILT_IN[0].slug
    for page in PAGES:
        for block in re.findall(r"```.*?```", page.read_text(), re.DOTALL):
            for named in re.findall(r"gpt-[\d.]+-?[a-z]*(?:-[a-z]+)*", block):
                assert named.startswith(default) or named in ("gpt-4o", "gpt-6"), (page.name, named)


BLOCK = re.compile(r"<!-- runnable -->\n```(sh|python)\n(.*?)```", re.DOTALL)


def blocks() -> Iterator[tuple[str, str, str]]:
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text()):
            yield page.name, language, text


def test_every_page_has_its_examples_marked() -> None:
    assert len({page for page, _, _ in blocks()}) >= 4
    for page in PAGES:
        assert page.read_text().count("<!-- runnable -->") == len(BLOCK.findall(page.read_text())), page.name


@pytest.mark.loopback
@pytest.mark.parametrize(
    ("page", "language", "text"), list(blocks()), ids=lambda value: value if len(value) < 30 else ""
)
async def test_what_is_marked_runnable_runs(tmp_path: Path, logs: Path, page: str, language: str, text: str) -> None:
    if "curl" in text and shutil.which("curl") is None:
        pytest.skip("curl is needed here")
    beside = tmp_path / "bin"
    beside.mkdir()
    for name, module in (("codexctl", "codexd.ctl"), ("codexd", "codexd")):
        (beside / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (beside / name).chmod(0o755)
    async with simulated() as chatgpt:
        state = tmp_path / "state"
        state.mkdir()
        store.save(state / "tokens.json", chatgpt.issuer.sign_in())
        async with running(tmp_path, logs, chatgpt, signed_in=False) as daemon:
            environ = environment(tmp_path) | {"CODEXCTL_SOCKET": str(daemon.control)}
            environ["PATH"] = f"{beside}{os.pathsep}{environ['PATH']}"
            told = text.replace("http://127.0.0.1:3000", daemon.base)
            command = ["bash", "-euo", "pipefail", "-c", told] if language == "sh" else [sys.executable, "-c", told]
            with trio.fail_after(90):
                ran = await trio.run_process(
                    command, env=environ, capture_stdout=True, capture_stderr=True, check=False, cwd=tmp_path
                )
            assert ran.returncode == 0, (page, ran.stdout.decode(), ran.stderr.decode())
            assert ran.stdout


def test_symptoms_have_the_codes_that_there_are() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "codexd").rglob("*.py"))
    first_cells = re.findall(r"^\| ([^|]+) \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    codes = re.findall(r"`([a-z]+(?:_[a-z]+)+)`", "\n".join(first_cells))
    assert len(codes) >= 6
    for code in codes:
        assert f'"{code}"' in sources, code


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    mkdocs = ROOT / "build" / "docs" / "bin" / "mkdocs"
    if not mkdocs.exists():
        if os.environ.get("CI"):
            pytest.fail("make docs has not made its environment")
        pytest.skip("make docs makes what this needs")
    site = tmp_path / "site"
    config = ROOT / "packaging" / "docs" / "mkdocs.yml"
    ran = subprocess.run(
        [mkdocs, "build", "--strict", "--quiet", "--config-file", config, "--site-dir", site],
        cwd=ROOT, capture_output=True, text=True, check=False, env=environment(tmp_path) | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for page in site.rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|link)[^>]*?(?:src|href)="(https?://[^"]+)"', page.read_text())
        assert [address for address in fetched if "rel=canonical" not in address] == [], page.name
    shutil.rmtree(site)
