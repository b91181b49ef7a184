"""Client keys: made, shown once, kept as hashes, checked, taken away."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from codexd.config.model import Config, KeyLimits, Server
from codexd.errors import ApiError
from codexd.state import files
from codexd.state import keys as module
from codexd.state.keys import SAVE_INTERVAL, Keys

NOW = 1_795_000_000


def make(folder: Path, clock: Any = lambda: NOW, **server: Any) -> Keys:
    return Keys(folder / "keys.json", Config(server=Server(**server)), clock=clock)


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(ApiError) as caught:
        call(*arguments)
    return str(caught.value)


def test_a_key_is_kept_as_a_hash_and_survives_a_restart(tmp_path: Path) -> None:
    keys = make(tmp_path)
    assert not keys.required
    key = keys.add("laptop")
    assert key.startswith("sk-codexd-")
    assert len(key) > 50
    text = (tmp_path / "keys.json").read_text()
    assert key not in text
    assert hashlib.sha256(key.encode()).hexdigest() in text
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
    again = make(tmp_path)
    assert again.required
    assert again.check(key) == "laptop"
    assert again.check(key + "x") is None
    assert again.check("") is None


def test_a_revoked_key_is_none(tmp_path: Path) -> None:
    keys = make(tmp_path)
    key, other = keys.add("a"), keys.add("b")
    keys.revoke("a")
    assert (keys.check(key), keys.check(other)) == (None, "b")
    assert make(tmp_path).check(key) is None
    keys.revoke("b")
    assert not keys.required


def test_the_last_key_of_a_public_listener_opens_nothing(tmp_path: Path) -> None:
    keys = make(tmp_path, bind=("0.0.0.0:3000",))
    assert keys.required
    keys.add("a")
    keys.revoke("a")
    assert keys.required
    keys.configure(Config(server=Server(bind=("0.0.0.0:3000",), allow_unauthenticated=True)))
    assert not keys.required


def test_names_and_doubles_are_refused_with_a_reason(tmp_path: Path) -> None:
    keys = make(tmp_path, client_keys={"fixed": "0123456789abcdef"})
    for name in ("", "-x", "a b", "a" * 65, "ä", "a\n"):
        assert "is not a valid key name" in refusal(keys.add, name)
    keys.add("a")
    for name in ("a", "fixed"):
        assert "already" in refusal(keys.add, name)
    assert 'Unknown key "b"' in refusal(keys.revoke, "b")
    assert "[server.client_keys]" in refusal(keys.revoke, "fixed")
    assert [(key.name, key.source) for key in keys.list()] == [("a", "codexctl"), ("fixed", "configuration")]
    assert keys.check("0123456789abcdef") == "fixed"


def test_there_is_an_end_to_the_number_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 1)
    keys = make(tmp_path)
    keys.add("a")
    assert "revoke some" in refusal(keys.add, "b")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"keys": 1}', '{"keys": [], "version": 2}', '{"keys": [{"name": "a", "sha256": "00", "created_at": 1}]}']
)  # fmt: skip
def test_a_file_that_cannot_be_used_closes_the_door_and_is_set_aside(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.json").write_text(text)
    keys = make(tmp_path)
    assert keys.fault is not None
    assert keys.required
    assert keys.check("anything") is None
    key = keys.add("new")
    assert keys.check(key) == "new"
    assert keys.fault is None
    assert (tmp_path / "keys.json.bad").read_text() == text


def test_a_file_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = make(tmp_path)
    key = keys.add("a")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_durably", full)
    assert "No space left" in refusal(keys.add, "b")
    assert "No space left" in refusal(keys.revoke, "a")
    assert keys.check(key) == "a"
    assert [each.name for each in keys.list()] == ["a"]


def test_a_bad_file_that_cannot_be_replaced_keeps_the_door_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys.json").write_text("{")
    keys = make(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_durably", full)
        assert "No space left" in refusal(keys.add, "a")
    assert keys.required
    assert make(tmp_path).required
    keys.add("a")
    assert keys.fault is None


def test_a_strict_key_stays_strict(tmp_path: Path) -> None:
    keys = make(tmp_path, client_keys={"a": "0123456789abcdef", "b": "0123456789abcdef0"}, strict_keys=("a",))
    keys.add("c", strict=True)
    keys.add("d")
    again = make(tmp_path, client_keys={"a": "0123456789abcdef", "b": "0123456789abcdef0"}, strict_keys=("a",))
    for found in (keys, again):
        assert [found.is_strict(name) for name in "abcde"] == [True, False, True, False, False]
        assert [key.strict for key in found.list()] == [True, False, True, False]


async def test_the_last_use_is_known_at_once_and_saved_by_and_by(autojump_clock: MockClock, tmp_path: Path) -> None:
    keys = make(tmp_path, clock=lambda: NOW + int(trio.current_time()))
    key = keys.add("a")
    start = int(trio.current_time())
    assert keys.list()[0].last_used_at is None
    keys.check(key)
    assert keys.list()[0].last_used_at == NOW + start

    def on_disk() -> int | None:
        stored: int | None = msgspec.json.decode((tmp_path / "keys.json").read_bytes())["keys"][0]["last_used_at"]
        return stored

    assert on_disk() is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keys.run)
        await trio.sleep(SAVE_INTERVAL + 1)
        assert on_disk() == NOW + start
        keys.check(key)
        nursery.cancel_scope.cancel()
    assert on_disk() == NOW + start + SAVE_INTERVAL + 1
    assert make(tmp_path).list()[0].last_used_at == NOW + start + SAVE_INTERVAL + 1


async def test_a_key_has_its_limits(autojump_clock: MockClock, tmp_path: Path) -> None:
    now = NOW
    it = Keys(tmp_path / "keys.json", Config(), clock=lambda: now)
    it.add("fast", limits=KeyLimits(requests_per_minute=2))
    it.add("busy", limits=KeyLimits(concurrent_requests=1))
    brief = it.add("brief", limits=KeyLimits(expires_at=int(NOW) + 60))
    it.add("picky", limits=KeyLimits(models=("gpt-5.5", "gpt-6-*")))
    it.add("free")
    for _ in range(100):
        it.enter("free")

    it.enter("fast")
    await trio.sleep(20)
    it.enter("fast")
    with pytest.raises(ApiError) as caught:
        it.enter("fast")
    assert (caught.value.status, caught.value.error.code, caught.value.retry_after) == (429, "key_rate_limit", 40)
    await trio.sleep(39.5)
    with pytest.raises(ApiError, match="2 requests a minute") as caught:
        it.enter("fast")
    assert caught.value.retry_after == 1
    await trio.sleep(0.6)  # in no minute are there more than two
    it.enter("fast")
    with pytest.raises(ApiError) as caught:
        it.enter("fast")
    assert caught.value.retry_after == 20
    await trio.sleep(600)
    it.enter("fast")
    it.enter("fast")
    with pytest.raises(ApiError):
        it.enter("fast")

    with it.counted("busy"):
        with pytest.raises(ApiError, match="in progress") as caught, it.counted("busy"):
            pass
        assert (caught.value.status, caught.value.error.code) == (429, "key_concurrency_limit")
    with it.counted("busy"), it.counted(None):
        pass

    assert it.check(brief) == "brief"
    now += 60
    with pytest.raises(ApiError, match="has expired") as caught:
        it.check(brief)
    assert caught.value.status == 401

    assert [model for model in ("gpt-5.5", "gpt-5.5-mini", "gpt-6-sol", "") if it.may_use("picky", model)] == ["gpt-5.5", "gpt-6-sol"]  # fmt: skip
    assert it.may_use("free", "anything")
    again = Keys(tmp_path / "keys.json", Config(), clock=lambda: now)
    assert {key.name: key.limits for key in again.list()} == {key.name: key.limits for key in it.list()}
    assert again.limits("picky").models == ("gpt-5.5", "gpt-6-*")


def test_a_file_from_before_there_were_limits_is_read(tmp_path: Path) -> None:
    old = {"version": 1, "keys": [{"name": "a", "sha256": "00" * 32, "created_at": 1}]}
    (tmp_path / "keys.json").write_bytes(msgspec.json.encode(old))
    it = Keys(tmp_path / "keys.json", Config(), clock=lambda: NOW)
    assert it.fault is None
    assert it.limits("a") == KeyLimits()


def test_who_drains_leaves_the_file_to_a_successor(tmp_path: Path) -> None:
    old = Keys(tmp_path / "keys.json", Config(), clock=lambda: NOW)
    stolen = old.add("stolen")
    assert old.check(stolen) == "stolen"
    old.retire()
    new = Keys(tmp_path / "keys.json", Config(), clock=lambda: NOW)
    assert new.list()[0].last_used_at == NOW
    new.revoke("stolen")
    new.add("fresh")
    assert old.check(stolen) == "stolen"
    old.save_times()
    with pytest.raises(ApiError, match="stopping"):
        old.add("late")
    assert [key.name for key in Keys(tmp_path / "keys.json", Config(), clock=lambda: NOW).list()] == ["fresh"]
