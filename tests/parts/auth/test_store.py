import os
from pathlib import Path

import msgspec
import pytest

from codexd.auth import store
from codexd.auth.oauth import claims, refusal
from codexd.auth.store import Credentials, StoreError
from codexd.state.lock import try_lock
from support.secrets import ACCOUNT, access_token, refresh_token

TOKENS = Credentials(
    access_token="a", refresh_token="r", expires_at=1795330000.7, account_id="acct", updated_at=1795320000
)


def test_what_is_saved_is_loaded_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tokens.json"
    store.save(path, msgspec.structs.replace(TOKENS, id_token="i", extra={"mine": msgspec.Raw(b"[1]")}))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["tokens.json"]
    document = msgspec.json.decode(path.read_bytes())
    assert document == {"access_token": "a", "refresh_token": "r", "expires_at": 1795330000, "account_id": "acct",
                        "updated_at": 1795320000, "id_token": "i", "mine": [1]}  # fmt: skip
    loaded = store.load(path)
    assert loaded is not None
    assert (loaded.access_token, loaded.expires_at) == ("a", 1795330000.0)
    assert msgspec.json.decode(loaded.extra["mine"]) == [1]


def test_the_five_keys_are_always_written(tmp_path: Path) -> None:
    store.save(tmp_path / "t", Credentials(access_token="a"))
    assert set(msgspec.json.decode((tmp_path / "t").read_bytes())) == {
        "access_token", "refresh_token", "expires_at", "account_id", "updated_at",
    }  # fmt: skip


def test_milliseconds_are_read_as_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    path.write_text('{"access_token": "a", "expires_at": 1795330000000, "updated_at": 1795320000}')
    loaded = store.load(path)
    assert loaded is not None
    assert (loaded.expires_at, loaded.updated_at) == (1795330000.0, 1795320000)


@pytest.mark.parametrize(
    "text",
    [
        '{"access_token": "a\\n"}',
        '{"access_token": "…"}',
        '{"access_token": "a", "account_id": "é"}',
        "",
        "{",
        "[]",
        '{"refresh_token": "r"}',
        '{"access_token": 7}',
        "\xff",
    ],
)
def test_a_file_that_cannot_be_used_says_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_bytes(text.encode() if text.startswith("{") else text.encode("latin-1"))
    with pytest.raises(StoreError, match="not a usable credentials file"):
        store.load(path)
    path.unlink()
    assert store.load(path) is None
    assert store.signature(path) is None


def test_a_file_that_cannot_be_used_is_kept_aside_by_the_one_that_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    new = Credentials(access_token="a", refresh_token="b")
    for spoiled in (b'{"access_token": "half', b"\x00" * 100):
        path.write_bytes(spoiled)
        store.save(path, new)
        assert store.load(path) == new
        assert (tmp_path / "tokens.json.bad").read_bytes() == spoiled
    (tmp_path / "tokens.json.bad").unlink()
    store.save(path, new)
    assert not (tmp_path / "tokens.json.bad").exists()


def test_a_directory_in_the_files_place_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        store.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be read"):
        store.signature(tmp_path / "file" / "tokens.json")


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokens.json"
    store.save(path, TOKENS)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.save(path, msgspec.structs.replace(TOKENS, access_token="b"))
    monkeypatch.undo()
    loaded = store.load(path)
    assert loaded is not None
    assert loaded.access_token == "a"
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokens.json"]


def test_the_lock_is_for_one(tmp_path: Path) -> None:
    first = try_lock(tmp_path / "tokens.json")
    assert first is not None
    assert try_lock(tmp_path / "tokens.json") is None
    os.close(first)
    second = try_lock(tmp_path / "tokens.json")
    assert second is not None
    os.close(second)
    with pytest.raises(FileExistsError):
        try_lock(tmp_path / "tokens.json.lock" / "tokens.json")


def test_tokens_do_not_show_in_a_traceback() -> None:
    assert "a'" not in repr(TOKENS).replace("acct'", "")
    assert refresh_token() not in repr(msgspec.structs.replace(TOKENS, refresh_token=refresh_token()))


def test_the_account_is_found_where_it_is() -> None:
    token = access_token(1)
    assert Credentials(access_token=token, account_id="stored").account() == "stored"
    assert Credentials(access_token="opaque", id_token=token).account() == ACCOUNT
    assert Credentials(access_token=token).account() == ACCOUNT
    assert Credentials(access_token="opaque").account() is None


def test_the_earlier_expiry_counts_and_a_token_that_tells_none_gets_old() -> None:
    assert Credentials(access_token=access_token(100), expires_at=50).expiry() == 50
    assert Credentials(access_token=access_token(100), expires_at=500).expiry() == 100
    assert Credentials(access_token="opaque", updated_at=10).expiry() == 10 + 8 * 86400
    assert Credentials(access_token="opaque").expiry() is None


@pytest.mark.parametrize("token", [None, "", "a.b", "a.b.c", "a.!!!.c", "a.bnVsbA.c", "a.e30.c", "a.\xff.c"])
def test_what_is_no_token_has_no_claims(token: str | None) -> None:
    assert claims(token).exp is None


@pytest.mark.parametrize(
    ("status", "body", "permanent"),
    [
        (401, b"", True),
        (401, b'{"error": {"code": "refresh_token_reused", "message": "m"}}', True),
        (400, b'{"error": "invalid_grant", "error_description": "d"}', True),
        (400, b'{"error": {"code": "refresh_token_expired"}}', True),
        (400, b'{"error": {"code": "other"}}', False),
        (400, b"\xff", False),
        (403, b"<html>", False),
        (429, b"", False),
        (500, b"[]", False),
    ],
)
def test_which_refusals_are_for_good(status: int, body: bytes, permanent: bool) -> None:
    refused = refusal(status, body)
    assert refused.permanent is permanent
    assert f"(status {status}" in refused.why
