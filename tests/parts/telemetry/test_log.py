import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from codexd.config.model import Logging
from codexd.telemetry import log as logs


@pytest.fixture
def restored() -> Iterator[None]:
    """The process's logging as it was."""
    root = logging.getLogger()
    before, handlers, level = structlog.get_config(), list(root.handlers), root.level
    yield
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


def logged(
    tmp_path: Path, config: Logging, environ: dict[str, str] | None = None, stream: io.StringIO | None = None
) -> str:
    stream = stream or io.StringIO()
    logs.configure_logging(config, tmp_path, stream=stream, environ=environ or {})
    log = structlog.get_logger()
    with structlog.contextvars.bound_contextvars(request_id="req_1"):
        log.debug("d")
        log.info("hello world", a=1, b="x y", c='q"')
        log.warning("w\nforged", n=None)
        log.error("e")
        logging.getLogger("elsewhere").critical("from %s", "there")
        try:
            raise ValueError("oops")
        except ValueError:
            log.exception("bug")
    return stream.getvalue()


@pytest.mark.usefixtures("restored")
class TestShape:
    def test_the_line_is_timestamp_level_request_message_pairs(self, tmp_path: Path) -> None:
        lines = logged(tmp_path, Logging()).splitlines()
        stamp = r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\]"
        assert re.fullmatch(stamp + r' \[INFO\] \[req_1\] hello world a=1 b="x y" c="q\\""', lines[0])
        assert re.fullmatch(stamp + r" \[WARN\] \[req_1\] w\\nforged n=None", lines[1])
        assert lines[3].endswith("from there logger=elsewhere")
        assert "Traceback" in lines[5]
        assert lines[-1] == "ValueError: oops"

    def test_the_journal_gets_a_priority_on_every_line(self, tmp_path: Path) -> None:
        lines = logged(tmp_path, Logging(format="journal")).splitlines()
        assert [line[:3] for line in lines[:3]] == ["<6>", "<4>", "<3>"]
        assert all(re.match(r"<\d>", line) for line in lines)

    def test_logfmt_and_json(self, tmp_path: Path) -> None:
        first = logged(tmp_path, Logging(format="logfmt")).splitlines()[0]
        assert re.match(r'ts=\S+ level=info msg="hello world" a=1 b="x y"', first)
        record = msgspec.json.decode(logged(tmp_path, Logging(format="json")).splitlines()[0])
        assert (record["event"], record["a"], record["request_id"]) == ("hello world", 1, "req_1")

    def test_a_terminal_gets_colour_unless_it_asks_not_to(self, tmp_path: Path) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        assert "\x1b[32mINFO" in logged(tmp_path, Logging(), stream=Terminal())
        assert "\x1b" not in logged(tmp_path, Logging(), {"NO_COLOR": "1"}, stream=Terminal())
        assert "\x1b" not in logged(tmp_path, Logging(format="console"))

    def test_the_journal_is_recognised_by_its_stream(self, tmp_path: Path) -> None:
        with (tmp_path / "out").open("w") as stream:
            status = (tmp_path / "out").stat()
            environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
            assert logs.renderer("auto", stream, environ) is logs.RENDERERS["journal"]
            assert logs.renderer("auto", stream, {"JOURNAL_STREAM": "1:2"}) is logs.RENDERERS["plain"]

    @pytest.mark.parametrize(
        ("level", "expected"), [("debug", "DIWEEE"), ("info", "IWEEE"), ("warn", "WEEE"), ("error", "WEEE")]
    )
    def test_warnings_and_errors_are_logged_at_any_level(self, tmp_path: Path, level: str, expected: str) -> None:
        out = logged(tmp_path, Logging(level=level))  # type: ignore[arg-type]
        assert "".join(found[0] for found in re.findall(r"\] \[(\w+)\]", out)) == expected

    def test_files_by_day_and_level(self, tmp_path: Path) -> None:
        logged(tmp_path, Logging(dir="sub", level="debug"))
        names = sorted(path.name[11:] for path in (tmp_path / "sub").iterdir())
        assert names == ["debug.log", "error.log", "info.log", "warn.log"]
        error = next((tmp_path / "sub").glob("*-error.log"))
        assert error.stat().st_mode & 0o007 == 0
        assert error.read_text().count("] [ERROR] [") == 3

    def test_a_stream_that_cannot_be_written_ends_nothing(self, tmp_path: Path) -> None:
        class Full(io.StringIO):
            def write(self, _: str) -> int:
                raise OSError("disk full")

        logged(tmp_path, Logging(), stream=Full())


JWT = "eyJhbGciOiJub25lIn0.eyJleHAiOjF9.c2ln"


@pytest.mark.parametrize(
    "line",
    [
        "authorization: Bearer opaque-value-1",
        "Authorization=Basic b3BhcXVlLXZhbHVlLTE=",
        '{"access_token": "opaque-value-1", "x": 1}',
        r'{"body":"{\"refresh_token\": \"opaque-value-1\"}"}',
        r'{"body":"{\\\"id_token\\\":\\\"opaque-value-1\\\"}"}',
        "refresh_token=opaque-value-1&grant_type=x",
        "x-api-key: opaque-value-1",
        "cookie: __cf_bm=opaque-value-1; a=b",
        f"the token is {JWT} here",
        f"the token is {JWT[:30]}",
        "rt_opaque-value-1 and sk-codexd-opaque-value-1",
    ],
)
def test_secrets_are_redacted_whatever_they_stand_in(line: str) -> None:
    clean = logs.redact(line)
    assert "opaque" not in clean
    assert "b3BhcXV" not in clean
    assert "eyJ" not in clean
    assert "[redacted]" in clean


def test_ordinary_lines_stay() -> None:
    line = "tokens_in=12 tokens_out=3 prompt_cache_key=abc task-list risk-based art_deco"
    assert logs.redact(line) == line


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2:3", True), (None, False), ("", False), ("a b", False), ("x\n", False), ("x" * 129, False)],
)
def test_a_clients_request_id_is_kept_when_it_is_sane(given: str | None, kept: bool) -> None:
    assert logs.usable_request_id(given, "made") == (given if kept else "made")


@pytest.mark.parametrize("piece", ["a-", "-eyJaaaa", "cookie ", "A0_-", "bearer", "\\\\", "sk-", "token:"])
def test_redaction_takes_no_more_time_than_the_line_is_long(piece: str) -> None:
    # A client chooses what is logged. With one repetition inside another this would take minutes.
    logs.redact(piece * (500_000 // len(piece)))


_WORDS = ["Bearer ", "BASIC ", "access_token", "refreshToken", "id_token=", "Authorization:", "API-Key", "apikey=", "=",
          ": ", '"', "client_secret=", "code_verifier", "Set-Cookie: ", "eyJabcdefgh.x", "sk-", "RT_", "ac-", "at_", " ",
          "0123456789abcdef", "x", "\\", "tokens_in=5", "key=bench"]  # fmt: skip


@given(st.lists(st.sampled_from(_WORDS), max_size=8).map("".join))
def test_what_the_hints_let_pass_has_no_secret(line: str) -> None:
    assert logs.redact(line) == logs._SECRETS.sub(lambda found: f"{found['before'] or ''}[redacted]", line)


@pytest.mark.usefixtures("restored")
class TestTail:
    def test_what_is_kept_of_the_log_has_no_secrets_either(self, tmp_path: Path) -> None:
        logs.configure_logging(Logging(), tmp_path, stream=io.StringIO(), environ={})
        begun = logs.TAIL.total
        structlog.get_logger().info("given", header="Bearer abcdefghijklmnop", c1="\x9b31m")
        (line,) = logs.TAIL.since(begun)
        assert "abcdefgh" not in line.text()
        assert "\x9b" not in line.text()
        assert "\\u009b31m" in line.text()

    def test_a_long_value_is_cut_and_a_traceback_keeps_its_end(self, tmp_path: Path) -> None:
        logs.configure_logging(Logging(), tmp_path, stream=io.StringIO(), environ={})
        begun = logs.TAIL.total
        log = structlog.get_logger()

        def deep(depth: int) -> None:
            if depth == 0:
                raise ValueError("the reason")
            deep(depth - 1)
            deep(depth - 2)

        try:
            deep(60)
        except ValueError:
            log.exception("bug", body="x" * 100_000)
        (line,) = logs.TAIL.since(begun)
        assert len(line.text()) < 3 * logs.MAX_VALUE
        assert line.text().endswith("ValueError: the reason")

    def test_it_is_bounded(self) -> None:
        tail = logs.Tail(size=3)
        for number in range(5):
            tail.add({"level": "info", "event": str(number), "timestamp": "t"})
        assert [line.number for line in tail.since(0)] == [2, 3, 4]
        assert [line.number for line in tail.since(4)] == [4]


async def test_what_repeats_is_one_line_a_minute_with_a_number(autojump_clock: MockClock) -> None:
    repeated = logs.Repeated()
    assert [repeated.due("a"), repeated.due("a"), repeated.due("b"), repeated.due("a")] == [0, None, 0, None]
    await trio.sleep(logs.REPEAT_SECONDS)
    assert [repeated.due("a"), repeated.due("a"), repeated.due("b")] == [2, None, 0]
    for number in range(logs.MAX_KINDS):
        repeated.due(number)
    assert repeated.due("one more") is None
    assert len(repeated._kinds) <= logs.MAX_KINDS
    await trio.sleep(logs.REPEAT_SECONDS)
    assert repeated.due("one more") == 0


def line_of(day: str, size: int = 10, level: str = "info") -> dict[str, Any]:
    return {"timestamp": f"{day}T00:00:00Z", "level": level, "event": "x" * size}


def test_log_files_are_kept_for_some_days(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    files = logs._Files(tmp_path, 2, 1 << 20)
    for day in range(1, 8):
        files.write(line_of(f"2030-01-0{day}"))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["2030-01-05-info.log", "2030-01-06-info.log", "2030-01-07-info.log", "notes.txt"]


def test_log_files_have_a_size_together(tmp_path: Path) -> None:
    most = 1 << 20
    files = logs._Files(tmp_path, 30, most)
    for number in range(4000):
        files.write(line_of(f"2030-01-0{1 + number // 3000}", 1000, "info" if number % 2 else "error"))
        if number % 50 == 0:
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= most
    assert (tmp_path / "2030-01-02-info.log").exists()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > most // 2


def test_a_log_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("before")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "2030-01-01-info.log").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic link"):
        logs._Files(tmp_path / "logs", 1, 1 << 20).write(line_of("2030-01-01"))
    assert (tmp_path / "target").read_text() == "before"


def test_the_oldest_log_lines_go_first_whatever_their_level(tmp_path: Path) -> None:
    files = logs._Files(tmp_path, 30, 1 << 20)
    for number in range(6000):
        event = line_of("2030-01-01", 1000, ("info", "debug", "error")[number % 3])
        files.write(event | {"event": f"{number:05} {event['event']}"})
    oldest = {}
    for path in sorted(tmp_path.iterdir(), key=logs._age):
        first = int(re.findall(r"\] (\d{5}) ", path.read_text())[0])
        oldest.setdefault(path.name.split(".")[0], first)
    assert max(oldest.values()) - min(oldest.values()) < 2000
