"""``codexctl config`` and ``instances``, and what else users try to type."""

import re
import socket
from pathlib import Path

import pytest

from support.codexctl import Make, Setup
from support.control import codexctl_alone

pytestmark = pytest.mark.loopback


async def test_each_value_is_shown_with_where_it_comes_from(setup: Make, tmp_path: Path) -> None:
    async with setup(server={"client_keys": {"mine": "sk-codexd-0123456789"}}) as it:
        shown = await it.ctl("config", "show")
        assert re.search(rf"server\.bind +\[.*\] +{tmp_path}/config", shown.out)
        assert re.search(r"backend\.max_connections +\d+ +default", shown.out)
        assert "0123456789" not in shown.out and re.search(r'client_keys +\{"mine":"\[redacted\]"\}', shown.out)
        only = await it.ctl("config", "show", "logging.keep_days")
        assert only.out.split()[-3:] == ["logging.keep_days", "30", "default"]
        changed = await it.ctl("config", "show", "--changed")
        assert "default" not in changed.out
        wrong = await it.ctl("config", "show", "loging")
        assert (wrong.code, 'Unknown key or section "loging"' in wrong.err) == (2, True)


async def test_a_file_that_is_edited_is_reloaded(setup: Make, tmp_path: Path) -> None:
    async with setup() as it:
        path = Path((await it.ctl("config", "path")).out.strip())
        editor = tmp_path / "editor"
        editor.write_text('#!/bin/sh\ngrep -q keep_days "$2" || sed -i \'s/"logging":{/&"keep_days":7,/\' "$2"\n')
        editor.chmod(0o755)
        edited = await it.ctl("config", "edit", env={"EDITOR": f"{editor} --wait"})
        assert (edited.code, "logging.keep_days" in edited.out) == (0, True), (edited, path.read_text())
        assert "Nothing has changed" in (await it.ctl("config", "edit", env={"EDITOR": f"{editor} --wait"})).err
        editor.write_text('#!/bin/sh\nsed -i s/keep_days/kept_days/ "$1"\n')
        wrong = await it.ctl("config", "edit", env={"EDITOR": str(editor)})
        assert (
            wrong.code != 0 and "did you mean keep_days?" in wrong.err and "previous configuration stays" in wrong.err
        )
        shown = await it.ctl("config", "show", "logging.keep_days")
        assert re.search(r"logging\.keep_days +7 +before the change", shown.out) and "stay in effect" in shown.err
        assert "did you mean keep_days?" in shown.err and "?." not in f"{wrong.err}{shown.err}"


async def test_what_changed_in_the_file_and_is_not_in_force_is_named(setup: Make) -> None:
    async with setup() as it:
        path = Path((await it.ctl("config", "path")).out.strip())
        path.write_text(path.read_text().replace('"logging":{', '"logging":{"keep_days":3,'))
        path.write_text(path.read_text()[:-1] + ',"storage":{"responses":true}}')
        shown = await it.ctl("config", "show")
        assert "not yet in effect: logging.keep_days. Run `codexctl reload`" in shown.err
        assert "not yet in effect: storage.responses. Restart codexd" in shown.err
        assert re.search(r"storage\.responses +false +before the change", shown.out)


async def test_without_a_daemon_it_shows_what_one_would_use(tmp_path: Path) -> None:
    shown = await codexctl_alone(tmp_path, "config", "show", env={"CODEXD_LOGGING__LEVEL": "debug"})
    assert shown.code == 0 and "No codexd is running" in shown.err
    assert re.search(r'logging\.level +"debug" +\$CODEXD_LOGGING__LEVEL', shown.out)
    assert f"creates {tmp_path}" in shown.err


async def test_without_a_daemon_a_file_with_a_fault_is_edited(tmp_path: Path) -> None:
    path, editor = tmp_path / "config.toml", tmp_path / "editor"
    path.write_text('[logging]\nlevle = "debug"\n')
    editor.write_text('#!/bin/sh\nsed -i s/levle/level/ "$1"\n')
    editor.chmod(0o755)
    env = {"CONFIG_PATH": str(path), "EDITOR": str(editor)}
    shown = await codexctl_alone(tmp_path, "config", "show", env=env)
    assert shown.code != 0 and "did you mean level? To fix it, run `codexctl config edit`." in shown.err
    assert (await codexctl_alone(tmp_path, "config", "path", env=env)).out == f"{path}\n"
    edited = await codexctl_alone(tmp_path, "config", "edit", env=env)
    assert (edited.code, "at the next start" in edited.err) == (0, True), edited
    assert path.read_text() == '[logging]\nlevel = "debug"\n'
    editor.write_text('#!/bin/sh\nsed -i s/level/levle/ "$1"\n')
    again = await codexctl_alone(tmp_path, "config", "edit", env=env)
    assert again.code != 0 and "Run `codexctl config edit` again." in again.err


async def test_instances_are_listed_without_being_started(shared: Setup) -> None:
    listed = await shared.ctl("instances")
    assert listed.code == 0
    assert re.search(r"yours +running +\S+@\S+ \(plus\)", listed.out)
    state, report, done = (await shared.ctl("instances", "--json")).json[-3:]
    assert (state["name"], state["outcome"], state["message"]) == ("yours", "ok", "running")
    assert (report["reply"], done["reply"]) == ("status", "done")


async def test_an_instance_that_does_not_run_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    env = {"CODEXCTL_SOCKET": str(path)}
    listed = await codexctl_alone(tmp_path, "instances", env=env)
    assert listed.code == 0 and re.search(r"yours +not running", listed.out)
    state = (await codexctl_alone(tmp_path, "instances", "--json", env=env)).json[-2]
    assert (state["name"], state["outcome"], state["message"]) == ("yours", "warning", "not running")
    assert str(path) in state["advice"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("restart", "Run: .*systemctl restart codexd|not installed as a service"),
        ("--instance alice stop", r"systemctl stop codexd@alice.socket codexd-control@alice.socket codexd@alice"),
        ("--instance alice status", r"/run/codexd/alice/control.sock.*systemctl status codexd@alice"),
        ("--instance ../x status", "is not a valid instance name"),
        ("--instance a --socket b status", "not both"),
        ("usage --csv --json", "Use either --csv"),
    ],
)
async def test_what_users_guess_leads_on(tmp_path: Path, words: str, said: str) -> None:
    found = await codexctl_alone(tmp_path, *words.split())
    assert found.code != 0 and re.search(said, f"{found.err}{found.out}"), found


async def test_versions(shared: Setup) -> None:
    said = await shared.ctl("version")
    assert re.fullmatch(r"codexctl \S+\ncodexd \S+\n", said.out)
    assert (await shared.ctl("-V")).out.startswith("codexctl ")
    assert "--strict" in (await shared.ctl("help", "keys", "add")).out
    assert (await shared.ctl("logs", "-n", "1")).code == 0
