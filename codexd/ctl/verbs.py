"""The verbs: each asks the daemon over the control socket, shows what it says, and ends in an exit code."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from codexd.config.model import KeyLimits
from codexd.control import wire
from codexd.control.client import Connection, Unreachable, candidates, find
from codexd.control.wire import Done, Kind, Refused, Reply, Request, encode, how_to_join

EXIT: dict[Kind, int] = {
    "usage": 2,
    "signed_out": 3,
    "unreachable": 4,
    "refused": 5,
    "internal": 5,
    "upstream": 6,
}

REPLY_TIMEOUT = 120.0
"""Seconds for a reply: longer than anything that the daemon waits for by itself."""


class Failed(Exception):
    """A verb that did not work; ``refusal`` says why."""

    def __init__(self, refusal: Refused) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def failed(kind: Kind, code: str, message: str) -> Failed:
    return Failed(Refused(kind=kind, code=code, message=message))


class Output:
    """Where replies go: as they are with ``--json``, else drawn."""

    def __init__(self, *, json: bool) -> None:
        self.json = json

    def reply(self, reply: Reply) -> None:
        if self.json:
            sys.stdout.buffer.write(encode(reply))
            sys.stdout.buffer.flush()
        elif not isinstance(reply, Done):
            from codexd.ctl import show

            show.show(reply)

    def fail(self, refusal: Refused) -> int:
        if self.json:
            self.reply(refusal)
        else:
            from codexd.ctl import show

            show.failure(refusal.message)
        return EXIT[refusal.kind]

    def note(self, text: str) -> None:
        """A remark beside the answer, for whoever looks on."""
        if not self.json:
            from codexd.ctl import show

            show.note(text)

    @contextmanager
    def waiting(self, text: object) -> Iterator[None]:
        """A spinner for whoever looks on."""
        if self.json or not sys.stderr.isatty():
            yield
            return
        from codexd.ctl import show

        with show.spinner(text):
            yield


def run(options: argparse.Namespace) -> int:
    out = Output(json=getattr(options, "json", False))
    try:
        return _VERBS[options.verb](options, out)
    except Failed as error:
        return out.fail(error.refusal)
    except UnicodeEncodeError:
        return out.fail(Refused(kind="usage", code="usage", message="An argument is no text in UTF-8: write it anew."))
    except Unreachable as error:
        where = "" if _named(options) else _tried()
        message = f"{error}{where}. {_hint(error)}"
        return out.fail(Refused(kind="unreachable", code="unreachable", message=message))


def _named(options: argparse.Namespace) -> bool:
    return bool(getattr(options, "socket", None) or os.environ.get("CODEXCTL_SOCKET"))


def _tried() -> str:
    """The places beside the last one."""
    others = [str(place) for place in candidates(os.environ)[:-1]]
    return f" (nor at {', '.join(others)})"


def socket_of(options: argparse.Namespace) -> Path:
    given: str | None = getattr(options, "socket", None)
    return Path(given) if given else find(os.environ)


def _hint(error: Unreachable) -> str:
    if error.denied:
        return how_to_join(_group_of(error.path))
    return (
        "Is it running? `systemctl status codexd` shows it, `codexd` starts one; --socket or $CODEXCTL_SOCKET names "
        "another socket."
    )


def _group_of(path: Path) -> str:
    for place in (path, path.parent):
        try:
            return place.group()
        except (OSError, KeyError):
            continue
    return ""


def replies(options: argparse.Namespace, request: Request, *, timeout: float | None = REPLY_TIMEOUT) -> Iterator[Reply]:
    """The replies up to the last, which is not among them. Raises Failed and Unreachable."""
    path = socket_of(options)
    raw = getattr(options, "json", False)
    with Connection(path, request, timeout=timeout, raw=raw) as connection:
        yield from until_done(connection)


def until_done(connection: Connection) -> Iterator[Reply]:
    for reply in connection:
        if isinstance(reply, Refused):
            raise Failed(reply)
        if isinstance(reply, Done):
            return
        yield reply
    raise Unreachable(connection.path, "it went away before it had answered")


def _ask(options: argparse.Namespace, out: Output, request: Request, waiting: str) -> list[Reply]:
    """Ask and show; the replies."""
    with out.waiting(waiting):
        found = list(replies(options, request))
    for reply in found:
        out.reply(reply)
    if out.json:
        out.reply(Done())
    return found


def _simple(request: Callable[[argparse.Namespace], Request], waiting: str) -> Callable[..., int]:
    def verb(options: argparse.Namespace, out: Output) -> int:
        _ask(options, out, request(options), waiting)
        return 0

    return verb


def _status(options: argparse.Namespace, out: Output) -> int:
    found = _ask(options, out, wire.Status(), "Asking codexd")
    signed_in = any(isinstance(reply, wire.StatusReport) and reply.account.signed_in for reply in found)
    return 0 if signed_in else EXIT["signed_out"]


def _keys(options: argparse.Namespace, out: Output) -> int:
    match options.action:
        case "add":
            _add_key(options, out)
        case "revoke":
            _ask(options, out, wire.KeysRevoke(name=options.name), "Revoking the key")
        case _:
            _ask(options, out, wire.KeysList(), "Asking codexd")
    return 0


def _add_key(options: argparse.Namespace, out: Output) -> None:
    try:
        limits = KeyLimits(
            models=tuple(name.strip() for name in (options.models or "").split(",") if name.strip()),
            requests_per_minute=options.rpm,
            concurrent_requests=options.concurrent,
            expires_at=None if options.expires is None else int(options.expires),
        )
        _ask(options, out, wire.KeysAdd(name=options.name, strict=options.strict, limits=limits), "Making a key")
    except OSError:
        # Nobody has seen it, and nobody ever will: it must not stay.
        for _ in replies(options, wire.KeysRevoke(name=options.name)):
            pass
        out.note(f"The key {options.name!r} could not be shown, so it was revoked.")
        raise


def key_names(options: argparse.Namespace) -> list[str]:
    """The keys that can be revoked, for a shell; none when they cannot be had at once."""
    try:
        found = list(replies(options, wire.KeysList(), timeout=2.0))
    except (Failed, Unreachable):
        return []
    return [key.name for reply in found if isinstance(reply, wire.KeysReport) for key in reply.keys if key.created_at]


def _login(options: argparse.Namespace, out: Output) -> int:
    from codexd.ctl import login

    return login.run(options, out)


def _doctor(options: argparse.Namespace, out: Output) -> int:
    from codexd.ctl import doctor

    return doctor.run(options, out)


def _usage(options: argparse.Namespace, out: Output) -> int:
    if options.by is None and options.since is None and not options.csv:
        _ask(options, out, wire.Usage(), "Asking ChatGPT")
        return 0
    request = wire.History(since=options.since or "", by=options.by or ["day"])
    if not options.csv:
        _ask(options, out, request, "Asking codexd")
        return 0
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    columns = [*request.by, "requests", "failed", "input", "cached", "output", "reasoning"]
    writer.writerow(columns)
    for reply in replies(options, request):
        if isinstance(reply, wire.HistoryReport):
            writer.writerows([getattr(row, name) for name in columns] for row in reply.rows)
    return 0


def _level(options: argparse.Namespace, out: Output) -> int:
    if options.level is None:
        request = wire.SetLevel(seconds=0)
    else:
        level = None if options.level == "reset" else options.level
        request = wire.SetLevel(level=level, seconds=options.minutes * 60)
    _ask(options, out, request, "Asking codexd")
    return 0


def _log(options: argparse.Namespace, out: Output) -> int:
    request = wire.Log(lines=options.lines, follow=options.follow, request=options.request, level=options.level)
    for reply in replies(options, request, timeout=None if options.follow else REPLY_TIMEOUT):
        out.reply(reply)
    if out.json:
        out.reply(Done())
    return 0


def _top(options: argparse.Namespace, out: Output) -> int:
    from codexd.ctl import watch

    return watch.top(options, out)


def _explain(options: argparse.Namespace, out: Output) -> int:
    from codexd.ctl import watch

    return watch.explain(options, out)


def _prompts(options: argparse.Namespace, out: Output) -> int:
    from codexd.ctl import prompts

    return prompts.run(options, out)


def _try(options: argparse.Namespace, out: Output) -> int:
    from codexd.ctl import ask

    return ask.run(options, out)


def _selftest(options: argparse.Namespace, out: Output) -> int:
    from codexd.ctl import selftest

    return selftest.run(options, out)


def _service(options: argparse.Namespace, out: Output) -> int:
    from codexd.ctl import service

    return service.run(options, out)


def _backup(options: argparse.Namespace, out: Output) -> int:
    from codexd.ctl import backup

    return backup.run(options, out)


def _completion(options: argparse.Namespace, _: Output) -> int:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["codexctl"], shell=options.shell))  # noqa: T201
    return 0


_VERBS: dict[str, Callable[[argparse.Namespace, Output], int]] = {
    "login": _login,
    "logout": _simple(lambda _: wire.Logout(), "Revoking the sign-in"),
    "status": _status,
    "health": _simple(lambda options: wire.Health(ready=options.ready), "Asking codexd"),
    "refresh": _simple(lambda _: wire.Refresh(), "Renewing the access token"),
    "usage": _usage,
    "top": _top,
    "log": _log,
    "explain": _explain,
    "level": _level,
    "metrics": _simple(lambda _: wire.Metrics(), "Asking codexd"),
    "models": _simple(lambda options: wire.Models(refresh=options.refresh), "Asking for the models"),
    "keys": _keys,
    "prompts": _prompts,
    "try": _try,
    "selftest": _selftest,
    "service": _service,
    "backup": _backup,
    "restore": _backup,
    "reload": _simple(lambda _: wire.Reload(), "Reloading"),
    "doctor": _doctor,
    "completion": _completion,
}
