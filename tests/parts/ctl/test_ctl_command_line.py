"""What ``codexctl`` says of a command line, before it asks a daemon."""

import pytest

from codexd.ctl.__main__ import main


def exit_code(*words: str) -> int:
    try:
        return main(list(words))
    except SystemExit as error:
        assert isinstance(error.code, int)
        return error.code


@pytest.mark.parametrize(
    "words",
    ["", "nonsense", "login --device --paste", "keys", "keys add", "status --socket=", "level loud", "doctor --url ftp://x"],
)  # fmt: skip
def test_wrong_usage_has_exit_code_2(words: str) -> None:
    assert exit_code(*words.split()) == 2


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("keys add x --rpm", "0"),
        ("keys add x --concurrent", "-1"),
        ("keys add x --expires", "soon"),
        ("keys add x --expires", "2020-01-01"),
        ("usage --by", "moon"),
        ("usage --since", "yesterday"),
        ("usage --since", "0d"),
        ("level debug --for", "43201"),
        ("log -n", "many"),
    ],
)
def test_a_value_that_is_wrong_is_named(capsys: pytest.CaptureFixture[str], words: str, wrong: str) -> None:
    assert exit_code(*words.split(), wrong) == 2
    assert wrong in capsys.readouterr().err


@pytest.mark.parametrize(("words", "near"), [(["stauts"], "status"), (["keys", "lst"], "list")], ids=str)
def test_the_nearest_word_is_suggested(capsys: pytest.CaptureFixture[str], words: list[str], near: str) -> None:
    assert exit_code(*words) == 2
    assert f'did you mean "{near}"?' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("keys", "an action is missing; use add, list or revoke"),
        ("zzz", 'unknown verb "zzz"; see `codexctl help`'),
        ("keys zzz", 'unknown action "zzz"; use add, list or revoke\n'),
        ("setup zzz", "cursor, open-webui, llm or n8n"),
        ("status --jsn", "unknown option --jsn; did you mean --json?"),
        ("top --filtr x", "did you mean --filter?"),
    ],
)
def test_a_wrong_word_is_answered_with_those_that_exist(
    capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    assert exit_code(*words.split()) == 2
    assert said in capsys.readouterr().err


def test_help_shows_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("help", "doctor") == 0
    assert "--deep" in capsys.readouterr().out


def test_help_shows_all_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("help") == 0
    assert "exit codes:" in capsys.readouterr().out
