"""Logging: one line format, to stderr and to files by day and level, with secrets removed.

A line is ``[timestamp] [LEVEL] [request-id] message key=value``. All logging of this process passes through here,
including the standard library's loggers of Hypercorn, Quart and httpx.
"""

import datetime
import logging
import math
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import msgspec
import structlog
import trio
from structlog.typing import EventDict, WrappedLogger

from codexd.config.model import Logging

_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_COLOUR = {"debug": "\x1b[2m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31;1m"}
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.WARNING}

# Clients control much of the logged text, so matching must not backtrack: every repetition is bounded or possessive.
_SECRETS = re.compile(
    r"""(?xi)
    (?P<before>
        \b(?:bearer|basic)\s{1,8}
        # The end of a name that marks a secret, with any quoting: JSON inside JSON has escaped quotes.
      | (?:access_token|refresh_token|id_token|accesstoken|refreshtoken|authorization|api[_-]?key|client_secret
          |code_verifier|cookie) \\{0,8}["']? \s{0,8}[:=]\s{0,8} \\{0,8}["']? (?!(?:bearer|basic)\s)
    )
    [^\s"',}&;\\]++
    | \beyJ[\w-]{4,400}+\.[\w-]*+(?:\.[\w-]*+)?     # a JSON web token, whole or cut off
    | \b(?:sk|rt|ac|at)[-_][\w-]{12,}+              # API keys and opaque tokens by their usual prefixes
    """
)


_HINTS = (
    "bearer", "basic", "_token", "accesstoken", "refreshtoken", "authorization", "api_key", "api-key", "apikey",
    "client_secret", "code_verifier", "cookie", "eyj", "sk-", "sk_", "rt-", "rt_", "ac-", "ac_", "at-", "at_",
)  # fmt: skip
"""Every text that ``_SECRETS`` matches contains one of these. The check is cheap, and few log lines pass it: one
pattern for all of them takes ten times as long."""


def redact(line: str) -> str:
    """Returns the line without tokens, keys and cookies, whatever their name or quoting."""
    lower = line.lower()
    for hint in _HINTS:
        if hint in lower:
            return _SECRETS.sub(lambda found: f"{found['before'] or ''}[redacted]", line)
    return line


def _timestamp(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    now = datetime.datetime.now(datetime.UTC)
    event["timestamp"] = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event


_QUOTED = re.compile(r'[\s"=\\\x00-\x1f\x7f-\x9f]')


def _value(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    if text and _QUOTED.search(text) is None:
        return text
    # JSON does not escape these control characters, and a terminal would execute them.
    return re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", msgspec.json.encode(text).decode())


def _pairs(event: Mapping[str, Any]) -> str:
    return "".join(f" {key}={_value(value)}" for key, value in event.items())


def _shape(event: EventDict, colour: bool = False) -> str:
    """Returns ``[timestamp] [LEVEL] [request-id] message key=value``, followed by the traceback if any."""
    fields = dict(event)
    level, moment = fields.pop("level"), fields.pop("timestamp")
    label = {"warning": "WARN"}.get(level, level.upper())
    label = f"{_COLOUR[level]}{label}\x1b[0m" if colour else label
    trace = fields.pop("exception", None)
    # A client's text may contain newlines; in a log line they would allow forged lines.
    message = str(fields.pop("event")).replace("\n", "\\n").replace("\r", "\\r")
    line = f"[{moment}] [{label}] [{fields.pop('request_id', '-')}] {message}{_pairs(fields)}"
    return f"{line}\n{trace}" if trace else line


def _journal(event: EventDict) -> str:
    prefix = f"<{_PRIORITY[event['level']]}>"
    return "\n".join(prefix + line for line in _shape(event).split("\n"))


def _logfmt(event: EventDict) -> str:
    fields = dict(event)
    first = {"ts": fields.pop("timestamp"), "level": fields.pop("level"), "msg": fields.pop("event")}
    return _pairs(first | fields).removeprefix(" ")


def _json(event: EventDict) -> str:
    first = {key: event[key] for key in ("timestamp", "level", "event")}
    return msgspec.json.encode(first | dict(event), enc_hook=repr).decode()


RENDERERS: dict[str, Callable[[EventDict], str]] = {
    "console": lambda event: _shape(event, colour=True),
    "plain": _shape,
    "journal": _journal,
    "logfmt": _logfmt,
    "json": _json,
}


def renderer(wanted: str, stream: TextIO, environ: Mapping[str, str]) -> Callable[[EventDict], str]:
    """Returns the renderer for ``logging.format``; ``auto`` depends on where stderr goes."""
    if wanted == "auto":
        wanted = "journal" if _is_journal(stream, environ) else "console"
    if wanted == "console" and (environ.get("NO_COLOR") or not stream.isatty()):
        wanted = "plain"
    return RENDERERS[wanted]


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    # $JOURNAL_STREAM holds device and inode of the journal's stream; a redirected stderr has others.
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


_LOG_FILE = re.compile(r"\d{4}-\d\d-\d\d-(?:debug|info|warn|error)(?:\.\d+)?\.log")


def _age(path: Path) -> tuple[str, float]:
    """Orders log files, the oldest first: by day, then by the number of those that are full, then those in use."""
    number = path.name.split(".")[1]
    return path.name[:10], float(number) if number.isdecimal() else math.inf


class _Files:
    """Log files ``DIR/{date}-{level}.log``, one for each day and level.

    They are opened for each line, so log rotation and a new day need no handling. Measured: 40 µs a line.
    """

    def __init__(self, directory: Path, keep_days: int, max_bytes: int) -> None:
        self._directory = directory
        self._keep_days = keep_days
        self._max_bytes = max_bytes
        self._room = 0
        self._day = ""

    def write(self, event: EventDict) -> None:
        level = {"warning": "warn", "critical": "error"}.get(event["level"], event["level"])
        day = event["timestamp"][:10]
        path = self._directory / f"{day}-{level}.log"
        line = redact(_shape(event)) + "\n"
        self._room -= len(line)
        if self._room < 0 or day != self._day:
            self._tidy(day, path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        with os.fdopen(descriptor, "w") as file:
            file.write(line)

    def _tidy(self, day: str, path: Path) -> None:
        """Removes old files, and the oldest where there is too much; is due again after max_bytes / 16."""
        self._day, self._room = day, self._max_bytes // 16
        oldest = datetime.date.fromisoformat(day) - datetime.timedelta(days=self._keep_days)
        with suppress(OSError):
            if path.stat().st_size > self._max_bytes // 4:
                path.replace(path.with_name(f"{path.stem}.{time.monotonic_ns()}.log"))
        found = [each for each in self._directory.iterdir() if _LOG_FILE.fullmatch(each.name)]
        sizes: dict[Path, int] = {}
        for each in sorted(found, key=_age):
            with suppress(OSError):
                sizes[each] = each.stat().st_size
        total = sum(sizes.values())
        for each, size in sizes.items():
            if each != path and (each.name[:10] < oldest.isoformat() or total > self._max_bytes - self._room):
                with suppress(OSError):
                    each.unlink(missing_ok=True)
                    total -= size


class Repeated:
    """Lines that clients can cause at any rate, such as refusals: one of each kind a minute, with a count."""

    def __init__(self) -> None:
        self._kinds: dict[object, tuple[float, int]] = {}

    def due(self, kind: object) -> int | None:
        """Returns how many lines of the kind were left out since the last one; None if this one is left out too."""
        now = trio.current_time()
        since, number = self._kinds.get(kind, (-math.inf, 0))
        if now < since + REPEAT_SECONDS:
            self._kinds[kind] = since, number + 1
            return None
        self._kinds.pop(kind, None)
        if len(self._kinds) >= MAX_KINDS:
            oldest = next(iter(self._kinds))
            if now < self._kinds[oldest][0] + REPEAT_SECONDS:
                return None
            del self._kinds[oldest]
        self._kinds[kind] = now, 0
        return number


REPEAT_SECONDS = 60.0
MAX_KINDS = 200
"""Kinds a minute; of more than that nothing is told."""

MAX_VALUE = 2000
"""Characters of a value that the tail keeps, because request logging puts whole bodies into one value."""


class Line(NamedTuple):
    """A log line. ``number`` counts all lines of the process."""

    number: int
    level: str
    request_id: str
    event: EventDict

    def text(self) -> str:
        return redact(_shape(self.event))


class Tail:
    """The last log lines. They are formatted only when they are read."""

    def __init__(self, size: int = 500) -> None:
        self._lines: deque[Line] = deque(maxlen=size)
        self._lock = threading.Lock()
        self._more = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self.total = 0

    def add(self, event: EventDict) -> None:
        short = {
            key: _short(value, end=key == "exception") if type(value) is str and len(value) > MAX_VALUE else value
            for key, value in event.items()
        }
        with self._lock:
            self._lines.append(Line(self.total, event["level"], str(event.get("request_id", "-")), short))
            self.total += 1
            token = self._token
        if token is None:
            return
        if trio.lowlevel.in_trio_run():
            self._wake()
        else:  # a worker's thread, or the end of the process
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._wake)

    def _wake(self) -> None:
        self._more.set()
        self._more, self._token = trio.Event(), None

    def since(self, number: int) -> list[Line]:
        with self._lock:
            return [line for line in self._lines if line.number >= number]

    async def more(self) -> None:
        """Waits until there is another line, which may come from any thread."""
        self._token = trio.lowlevel.current_trio_token()
        await self._more.wait()


def _short(value: str, *, end: bool) -> str:
    """Returns a shortened value. ``end`` keeps the end, where a traceback names its exception."""
    return f"…{value[-MAX_VALUE:]}" if end else f"{value[:MAX_VALUE]}…"


TAIL = Tail()
"""The log tail of this process."""


class _Output:
    """structlog's last processor and logger in one: renders, redacts and writes, then drops the event."""

    def __init__(self, render: Callable[[EventDict], str], stream: TextIO, files: _Files | None) -> None:
        self._render = render
        self._stream = stream
        self._files = files

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        TAIL.add(event)
        try:
            self._stream.write(redact(self._render(event)) + "\n")
            self._stream.flush()
            if self._files is not None:
                self._files.write(event)
        except OSError:
            # A full disk or a closed terminal must not end a request.
            pass
        raise structlog.DropEvent


class _Bridge(logging.Handler):
    """Passes the standard library's log records to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        level = {"critical": "error"}.get(record.levelname.lower(), record.levelname.lower())
        getattr(log, level)(record.getMessage(), logger=record.name, exc_info=record.exc_info or None)


def configure_logging(
    config: Logging, state_dir: Path, *, stream: TextIO = sys.stderr, environ: Mapping[str, str] = os.environ
) -> None:
    """Sets up logging for the process. Raises OSError when the log directory cannot be created."""
    files = None
    if config.dir is not None:
        directory = state_dir / Path(config.dir).expanduser()
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        files = _Files(directory, config.keep_days, config.max_mb << 20)
    level = _LEVELS[config.level]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            _timestamp,
            structlog.processors.format_exc_info,
            _Output(renderer(config.format, stream, environ), stream, files),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Bridge()]
    root.setLevel(max(level, logging.INFO))
    # httpx logs each request with its URL, and hypercorn each listener; codexd's own lines say more.
    for chatty in ("httpx", "httpcore", "hypercorn.error", "quart.app", "quart.serving"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Sets the level until the next ``set_level`` or ``configure_logging``."""
    number = _LEVELS[level]
    structlog.configure(**structlog.get_config() | {"wrapper_class": structlog.make_filtering_bound_logger(number)})
    logging.getLogger().setLevel(max(number, logging.INFO))


_SANE_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")


def usable_request_id(given: str | None, made: str) -> str:
    """Returns the client's request id if it is safe in a header and a log line, else the one made here."""
    return given if given is not None and _SANE_ID.fullmatch(given) else made
