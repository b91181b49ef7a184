"""The dated list of advisories: it is read, and what it names would be found."""

import subprocess
import sys
import tomllib

import pytest

from support.daemon import ROOT

sys.path.insert(0, str(ROOT / "packaging" / "audit"))

import check  # type: ignore[import-not-found]

ADVISORIES = tomllib.loads((ROOT / "packaging" / "audit" / "advisories.toml").read_text())


@pytest.mark.parametrize(
    ("version", "affected", "hit"),
    [
        ("0.15.0", "<0.16.0", True), ("0.16.0", "<0.16.0", False), ("0.9", "<0.16.0", True), ("1.0", "==1.0", True),
        ("3.11.9", ">=3.11,<3.11.10 || >=3.12,<3.12.6", True), ("3.12.5", ">=3.11,<3.11.10 || >=3.12,<3.12.6", True),
        ("3.11.10", ">=3.11,<3.11.10 || >=3.12,<3.12.6", False), ("3.13.0", ">=3.11,<3.11.10 || >=3.12,<3.12.6", False),
    ],
)  # fmt: skip
def test_a_version_is_in_a_range_or_not(version: str, affected: str, hit: bool) -> None:
    assert check.is_affected(version, affected) is hit


def test_what_is_locked_has_none_that_is_known() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "packaging" / "audit" / "check.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert ADVISORIES["dated"] in done.stdout


def test_each_advisory_is_of_what_codexd_runs_on_and_has_an_end() -> None:
    names = check.locked((ROOT / "requirements.lock").read_text()).keys() | {"python"}
    for each in ADVISORIES["advisory"]:
        assert each["package"] in names, each
        assert "<" in each["affected"]
        assert each["id"].startswith("CVE-")
