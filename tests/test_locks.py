"""Each lock is complete: nothing that an index offers tomorrow has a say in what a clone of today installs."""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.daemon import ROOT

PYTHONS = ("3.11.0", "3.11.2", "3.12.0", "3.13.0", "3.14.0", "3.15.0")
SYSTEMS = (("linux", "Linux"), ("darwin", "Darwin"))

# Lock, what it is made from, the environment that holds it.
LOCKS = {
    "requirements.lock": ("pyproject.toml", ".venv"),
    "requirements-dev.lock": ("pyproject.toml", ".venv"),
    "packaging/audit/requirements.lock": ("packaging/audit/requirements.in", "build/audit"),
    "packaging/wheel/requirements.lock": ("packaging/wheel/requirements.in", "build/pip"),
    "packaging/docs/requirements.lock": ("packaging/docs/requirements.in", "build/docs"),
    "tests/bench/requirements.lock": ("tests/bench/requirements.in", "build/bench/plots"),
    "tests/clients/python/requirements.lock": ("tests/clients/python/requirements.in", "tests/clients/python/.venv"),
    "tests/fuzz/requirements.lock": ("tests/fuzz/requirements.in", "build/schemathesis"),
    "tests/suites/requirements.lock": ("tests/suites/requirements.in", "build/suites"),
    "tests/system/requirements.lock": ("tests/system/requirements.in", "build/container/linters"),
}


def pins_of(text: str) -> list[Requirement]:
    return [Requirement(line.split(" --hash=")[0]) for line in lines_of(text)]


def lines_of(text: str) -> list[str]:
    joined = re.sub(r" *\\\n *", " ", text)
    return [line for line in joined.splitlines() if re.match(r"[a-zA-Z0-9]", line)]


def asked_in(name: str, lock: str) -> list[Requirement]:
    """What the lock is made from asks for."""
    text = (ROOT / name).read_text()
    if name.endswith(".in"):
        return pins_of(text)
    project = tomllib.loads(text)["project"]
    asked = project["dependencies"] + (project["optional-dependencies"]["dev"] if "dev" in lock else [])
    return [Requirement(each) for each in asked]


def environments() -> Iterator[dict[str, str]]:
    for full in PYTHONS:
        for platform, system in SYSTEMS:
            python = {"python_version": full.rpartition(".")[0], "python_full_version": full}
            yield {**default_environment(), **python, "sys_platform": platform, "platform_system": system}  # type: ignore[dict-item]


def applies(requirement: Requirement, environment: dict[str, str], extras: set[str] = frozenset()) -> bool:  # type: ignore[assignment]
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in extras | {""})


def missing(asked: list[Requirement], pins: list[Requirement], known: dict[str, list[str]]) -> set[str]:
    """What some Python would have to look up in an index. ``known``: what each pinned distribution here requires."""
    found: set[str] = set()
    for environment in environments():
        here: dict[str, Requirement] = {}
        for pin in pins:
            if applies(pin, environment):
                name = canonicalize_name(pin.name)
                if name in here:
                    found.add(f"{name} is pinned twice for Python {environment['python_full_version']}")
                here[name] = pin
        wanted, seen = list(asked), set()
        while wanted:
            requirement = wanted.pop()
            if not applies(requirement, environment) or str(requirement) in seen:
                continue
            seen.add(str(requirement))
            pin = here.get(canonicalize_name(requirement.name))
            if pin is None or not requirement.extras <= pin.extras:
                found.add(f"{requirement} is not pinned for Python {environment['python_full_version']}")
                continue
            version = str(pin.specifier).removeprefix("==")
            if not requirement.specifier.contains(version, prereleases=True):
                found.add(f"{requirement} is pinned as {version}")
            for line in known.get(f"{canonicalize_name(pin.name)}=={version}", ()):
                inner = Requirement(line)
                if applies(inner, environment, requirement.extras):
                    inner.marker = None
                    wanted.append(inner)
    return found


def known_in(paths: list[str]) -> dict[str, list[str]]:
    return {
        f"{canonicalize_name(each.name)}=={each.version}": each.requires or []
        for each in metadata.distributions(path=paths)
    }


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_resolves_against_itself_on_every_python(lock: str) -> None:
    source, folder = LOCKS[lock]
    paths = sys.path if folder == ".venv" else [str(path) for path in (ROOT / folder).glob("lib/python*/site-packages")]
    if not paths:
        pytest.skip(f"{folder} is not installed here")
    pins, known = pins_of((ROOT / lock).read_text()), known_in(paths)
    assert pins
    python = next(environments()) | default_environment()
    unread = [
        str(pin)
        for pin in pins
        if applies(pin, python) and f"{canonicalize_name(pin.name)}{pin.specifier}" not in known
    ]
    assert not unread, f"installed otherwise than locked: {unread}"
    assert missing(asked_in(source, lock), pins, known) == set()


def test_a_lock_without_extras_is_noticed() -> None:
    """As pip-compile's --strip-extras wrote them: pip then asks the index for the extra's newest version."""
    known = {"pytest-cov==7.1.0": ["coverage[toml]>=7.10.6"], "coverage==7.17.3": []}
    asked = [Requirement("pytest-cov>=6")]
    complete = [Requirement("pytest-cov==7.1.0"), Requirement("coverage[toml]==7.17.3")]
    assert missing(asked, complete, known) == set()
    stripped = [Requirement("pytest-cov==7.1.0"), Requirement("coverage==7.17.3")]
    assert {text.split(" for ")[0] for text in missing(asked, stripped, known)} == {
        "coverage[toml]>=7.10.6 is not pinned"
    }


def test_a_pin_for_one_python_alone_is_noticed() -> None:
    only = [Requirement("a==1"), Requirement("b==1 ; python_full_version < '3.13'")]
    told = missing([Requirement("a")], only, {"a==1": ["b>=1 ; python_version < '3.14'"], "b==1": []})
    assert told == {"b>=1 is not pinned for Python 3.13.0"}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_hashes_and_no_index(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert "--index" not in text
    assert all(re.search(r"==\S+ .*--hash=sha256:[0-9a-f]{64}", line) for line in lines_of(text))


def test_every_lock_is_looked_at() -> None:
    known = {ROOT / lock for lock in LOCKS}
    tracked = [path for path in _locks(ROOT) if path.name.startswith("requirements")]
    assert set(tracked) == known


def _locks(root: Path) -> Iterator[Path]:
    yield from root.glob("*.lock")
    for folder in ("packaging", "tests"):
        yield from (path for path in (root / folder).rglob("*.lock") if "site-packages" not in path.parts)


def test_nothing_is_installed_but_what_a_lock_says() -> None:
    """Every ``pip install`` in the Makefile and the image takes a lock as it is, or this checkout without an index."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ") + (ROOT / "packaging/docker/Dockerfile").read_text()
    for line in text.splitlines():
        # The plain install of "make pythons" is the exception: to choose from the index is what it tries.
        if "pip install" in line and "codexd-*.whl" not in line and not line.lstrip().startswith(("#", "@echo", "||")):
            assert re.search(r"\$\((LOCKED|BUILT)\)", line) or (
                "--no-deps" in line and "--no-build-isolation" in line
            ), line
