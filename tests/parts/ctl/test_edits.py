"""Edits of other programs' files, and their undoing."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.config.clients import CLIENTS, ConfigFile, Target, described
from codexd.ctl import edits
from codexd.ctl.edits import CannotEdit

TARGET = Target("http://127.0.0.1:3000/v1", "sk-codexd-key", ["gpt-6-sol", "gpt-5.5"])
FILES = [file for make in CLIENTS.values() for file in make(TARGET).files]
JSONS = [file for file in FILES if file.kind == "json"]
CODEX, AIDER = (next(f for f in FILES if f.path == path) for path in (".codex/config.toml", ".aider.conf.yml"))

leaf = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=5))
keys = st.sampled_from(["env", "provider", "codexd", "ANTHROPIC_BASE_URL", "name", "other", "language_models"])
objects: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    keys, st.recursive(leaf, lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=6), max_size=4
)


def holds(whole: Any, part: Any) -> bool:
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and holds(whole[key], part[key]) for key in part)
    return bool(whole == part)


@given(st.sampled_from(JSONS), objects)
def test_what_is_merged_is_there_and_can_be_undone(file: ConfigFile, before: dict[str, Any]) -> None:
    text = msgspec.json.encode(before).decode()
    after = edits.added(file, text, "x")
    assert holds(msgspec.json.decode(after), file.members)
    assert edits.added(file, after, "x") == after, "twice is as once"
    kept = edits.remembered(file, text)
    undone = edits.removed(file, after, kept, "x")
    assert msgspec.json.decode(undone) == before
    assert edits.removed(file, text, "", "x") == text, "nothing of ours is there"


@pytest.mark.parametrize("file", JSONS, ids=lambda file: file.path)
def test_what_the_user_adds_later_stays(file: ConfigFile) -> None:
    after = msgspec.json.decode(edits.added(file, "", "x"))
    after["later"] = 1
    kept = edits.remembered(file, "")
    undone = edits.removed(file, msgspec.json.encode(after).decode(), kept, "x")
    assert msgspec.json.decode(undone) == {"later": 1}
    assert edits.removed(file, edits.added(file, "", "x"), kept, "x") == ""
    assert edits.removed(file, "", kept, "x") == ""
    with pytest.raises(CannotEdit, match="by hand"):
        edits.removed(file, "{}", "?", "x")


def test_what_the_user_has_changed_since_stays() -> None:
    after = msgspec.json.decode(edits.added(JSONS[0], "", "x"))
    after["env"]["ANTHROPIC_BASE_URL"] = "https://mine"
    undone = edits.removed(JSONS[0], msgspec.json.encode(after).decode(), edits.remembered(JSONS[0], ""), "x")
    assert msgspec.json.decode(undone) == {"env": {"ANTHROPIC_BASE_URL": "https://mine"}}


@pytest.mark.parametrize(
    "before", ["", "a = 1\n", '# mine\n[model_providers.other]\nname = "o"\n', "\n\n[t]\nx = 2\n\n\n"]
)
def test_text_between_marks(before: str) -> None:
    after = edits.added(CODEX, before, "x")
    found = tomllib.loads(after)
    assert found["model_provider"] == "codexd" and found["model_providers"]["codexd"]["base_url"] == TARGET.base
    assert (
        tomllib.loads(before).items()
        <= (found | {"model_providers": tomllib.loads(before).get("model_providers")}).items()
    )
    assert edits.is_chosen(CODEX, after) and edits.added(CODEX, after, "x") == after
    assert edits.removed(CODEX, after, "", "x").strip("\n") == before.strip("\n")


def test_a_choice_of_the_users_stays() -> None:
    before = 'model_provider = "mine"\n'
    after = edits.added(CODEX, before, "x")
    assert tomllib.loads(after)["model_provider"] == "mine" and not edits.is_chosen(CODEX, after)
    assert edits.removed(CODEX, after, "", "x") == before
    with pytest.raises(CannotEdit, match="already sets model"):
        edits.added(AIDER, "model: mine\n", "x")
    assert "openai-api-base: " in edits.added(AIDER, "dark-mode: true\n", "x")


@pytest.mark.parametrize(
    ("file", "before", "said"),
    [
        (JSONS[0], "// a comment\n{}", "not valid JSON, or contains comments"),
        (JSONS[0], "[]", "not valid JSON, or contains comments"),
        (CODEX, "not = [toml", "valid TOML"),
        (CODEX, '[model_providers.codexd]\nname = "x"', "valid TOML"),
    ],
)
def test_what_cannot_be_edited_is_left(file: ConfigFile, before: str, said: str) -> None:
    with pytest.raises(CannotEdit, match=said):
        edits.added(file, before, "x")


def test_files_keep_their_mode_and_links(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "folder" / "link"
    edits.write(link, "new\n")
    assert link.stat().st_mode & 0o777 == 0o600
    real.write_text("old\n")
    real.chmod(0o644)
    link.unlink()
    link.symlink_to(real)
    edits.write(link, "new\n")
    assert (link.is_symlink(), real.read_text(), real.stat().st_mode & 0o777) == (True, "new\n", 0o644)
    edits.write(link, "new\n", private=True)
    assert real.stat().st_mode & 0o777 == 0o600
    edits.write(link, "")
    assert not real.exists() and edits.read(link) == ""
    with pytest.raises(CannotEdit, match="Cannot read"):
        edits.read(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CannotEdit, match="Cannot write"):
        edits.write(tmp_path / "file" / "x", "y")


@pytest.mark.parametrize("name", CLIENTS)
def test_each_setup_names_codexd_and_the_key(name: str) -> None:
    said = described(CLIENTS[name](TARGET))
    assert "127.0.0.1:3000" in said and TARGET.key in said
