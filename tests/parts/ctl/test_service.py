"""``codexctl service`` where there is no session to install it in; tests/system/test_systemd.py has one."""

import argparse
from pathlib import Path

import pytest

from codexd.ctl.session import Output, VerbFailed
from codexd.ctl.verbs import service
from support.daemon import ROOT


def test_the_unit_is_the_packages_own_with_another_command() -> None:
    packaged = (ROOT / "systemd" / "user" / "codexd.service").read_text()
    assert service.unit_text(service.PACKAGED) == packaged.replace("=/usr/bin/codexd", '="/usr/bin/codexd"')
    made = service.unit_text(Path('/home/a b/100%/"x"/codexd'))
    assert 'ExecStart="/home/a b/100%%/\\"x\\"/codexd"\n' in made


@pytest.mark.parametrize("action", ["install", "remove", "status"])
@pytest.mark.parametrize(
    ("systemctl", "said"),
    [(None, "does not use systemd"), ("exit 1", "Log in as this user over SSH or at the console")],
)
def test_without_a_session_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, systemctl: str | None, said: str
) -> None:
    if systemctl is not None:
        (tmp_path / "systemctl").write_text(f"#!/bin/sh\n{systemctl}\n")
        (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(service, "_command", lambda: tmp_path / "codexd")
    with pytest.raises(VerbFailed, match=said):
        service.run(argparse.Namespace(action=action), Output(json=False))
    assert not (tmp_path / "config").exists()
