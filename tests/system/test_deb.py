"""The Debian package in a Debian that has nothing else, under a real systemd: installed, used, upgraded, removed, purged."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.box import Box, booted, why_not
from support.daemon import ROOT

pytestmark = pytest.mark.system

SUITES = {"bookworm": "debian12", "trixie": "debian13"}


def package(system: str) -> Path | None:
    return next((ROOT / "build" / "debs").glob(f"codexd_*+{system}_*.deb"), None)


@pytest.fixture(scope="module", params=SUITES)
def box(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A Debian with a systemd of its own, and the package for it at /deb/codexd.deb."""
    if (why := why_not()) is not None:
        pytest.skip(why)
    found, root = package(SUITES[request.param]), ROOT / "build" / f"rootfs-{request.param}"
    if found is None or not root.exists():
        pytest.skip("make debs rootfs makes what is needed here")
    folder = tmp_path_factory.mktemp("deb")
    shutil.copy(found, folder / "codexd.deb")
    with booted(folder, {folder: "/deb"}, root) as made:
        yield made


@pytest.mark.parametrize("system", SUITES.values())
def test_lintian_has_nothing_to_say(system: str) -> None:
    found = package(system)
    if found is None or shutil.which("lintian") is None:
        pytest.skip("make debs and lintian are needed here")
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", str(found)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def active(box: Box) -> list[str]:
    units = ("codexd.socket", "codexd-control.socket", "codexd.service")
    return [box.run("systemctl", "is-active", unit, check=False) for unit in units]


def health(box: Box) -> str:
    return box.run("curl", "-sS", "--unix-socket", "/run/codexd/api.sock", "http://codexd/health")


def test_it_is_installed_and_waits_for_somebody(box: Box) -> None:
    said = box.run("dpkg", "-i", "/deb/codexd.deb")
    assert "sudo codexctl login" in said
    assert active(box) == ["active", "active", "inactive"]
    assert box.run("stat", "-c", "%a %U %G", "/etc/codexd/config.toml") == "640 root codexd"
    assert box.run("codexd", "--check-config") == "/etc/codexd/config.toml: ok"
    assert '"signed_in":false' in health(box)
    assert active(box) == ["active"] * 3
    assert "Run `codexctl login`" in box.run("codexctl", "status", check=False)


def test_an_upgrade_restarts_it_and_keeps_what_was_changed(box: Box) -> None:
    box.run("sh", "-c", "echo '# mine' >> /etc/codexd/config.toml")
    pid = box.run("systemctl", "show", "-P", "MainPID", "codexd")
    box.run("dpkg", "--force-confold", "-i", "/deb/codexd.deb")
    assert "# mine" in box.run("cat", "/etc/codexd/config.toml")
    assert box.run("systemctl", "show", "-P", "MainPID", "codexd") not in ("0", pid)
    assert '"version"' in health(box)


def test_what_was_switched_off_stays_off(box: Box) -> None:
    box.run("systemctl", "disable", "--now", "codexd.socket", "codexd-control.socket", "codexd.service")
    box.run("dpkg", "--force-confold", "-i", "/deb/codexd.deb")
    assert box.run("systemctl", "is-enabled", "codexd.socket", check=False) == "disabled"
    box.run("systemctl", "enable", "--now", "codexd.socket", "codexd-control.socket")
    assert '"version"' in health(box)


def test_removing_keeps_the_state_and_purging_does_not(box: Box) -> None:
    box.run("sh", "-c", "echo x > /var/lib/codexd/kept")
    box.run("dpkg", "-r", "codexd")
    assert active(box) == ["inactive"] * 3
    assert box.run("cat", "/var/lib/codexd/kept") == "x"
    assert (
        box.run("sh", "-c", "ls -d /usr/lib/codexd /usr/bin/codexd /run/codexd/api.sock || true").count("No such") == 3
    )
    box.run("dpkg", "-P", "codexd")
    left = box.run("sh", "-c", "ls -d /var/lib/codexd /etc/codexd /etc/default/codexd || true")
    assert left.count("No such") == 3
    assert box.run("systemctl", "list-units", "--failed", "--no-legend", "codexd*") == ""
