"""``codexctl keys``: the keys that clients must present."""

import argparse
import datetime
from collections.abc import Iterator
from functools import partial

from codexd.config.model import KeyLimits
from codexd.control import wire
from codexd.control.client import DaemonUnreachable
from codexd.ctl import drawing
from codexd.ctl.arguments import Parser, actions, number
from codexd.ctl.session import Output, VerbFailed, ask, replies
from codexd.reasons import quoted

COMPLETION_SECONDS = 2.0
"""Seconds to wait for the names of the keys when a shell completes one."""


def arguments(parser: Parser) -> None:
    action = actions(parser)
    add = action("add", "create a key; it is shown only once", "create", "new")
    add.add_argument("name", metavar="NAME", help="what the key is for; it appears in the logs")
    add.add_argument("--strict", action="store_true", help="refuse parameters that codexd would drop")
    add.add_argument(
        "--models", metavar="NAMES", help="allow only these models: names or patterns, separated by commas"
    )
    add.add_argument("--rpm", metavar="N", type=number, help="maximum requests per minute")
    add.add_argument("--concurrent", metavar="N", type=number, help="maximum requests in progress at the same time")
    add.add_argument(
        "--expires", metavar="WHEN", type=_expiry, help="when it expires: 12h, 30d, or a date such as 2030-12-31"
    )
    add.add_argument(
        "--until",
        metavar="PERCENT",
        type=_percent,
        help="refuse requests when this percentage of the account's fullest window is used",
    )
    add.add_argument(
        "--tokens-per-day",
        metavar="N",
        type=_tokens,
        help="input and output tokens per day, such as 500000, 500k or 2M",
    )
    action("list", "list the keys and when they were last used", "ls")
    revoke = action("revoke", "revoke a key; its requests in progress finish, unless --now is given", "rm", "delete")
    revoke.add_argument("--now", action="store_true", help="also end the key's requests in progress, with an error")
    name = revoke.add_argument("name", metavar="NAME")
    name.completer = _complete  # type: ignore[attr-defined]  # argcomplete's


def _expiry(text: str) -> float:
    """Returns Unix seconds; a date ends with its day, in local time. Raises ArgumentTypeError."""
    now = datetime.datetime.now(datetime.UTC).timestamp()
    count, unit = text[:-1], text[-1:]
    if count.isdecimal() and unit in ("h", "d"):
        return now + int(count) * (3600 if unit == "h" else 86400)
    try:
        ends = datetime.datetime.fromisoformat(text) + datetime.timedelta(days=len(text) == 10)
    except ValueError as error:
        message = f'invalid value "{text}": use a duration such as 12h or 30d, or a date such as 2030-12-31'
        raise argparse.ArgumentTypeError(message) from error
    if ends.timestamp() <= now:
        raise argparse.ArgumentTypeError(f'invalid value "{text}": it is in the past')
    return ends.timestamp()


def _percent(text: str) -> int:
    """Returns 60 for ``60%`` or ``60``. Raises ArgumentTypeError."""
    digits = text.removesuffix("%").strip()
    if not digits.isdecimal() or not 1 <= int(digits) <= 100:
        raise argparse.ArgumentTypeError(f'invalid value "{text}": use a percentage from 1% to 100%')
    return int(digits)


def _tokens(text: str) -> int:
    """Returns a number of tokens. Raises ArgumentTypeError."""
    factor = {"k": 1000, "m": 1_000_000}.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    if not digits.isdecimal() or int(digits) == 0:
        raise argparse.ArgumentTypeError(f'invalid value "{text}": use a number such as 500000, 500k or 2M')
    return int(digits) * factor


def _complete(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Returns the names of the keys that can be revoked; none when codexd does not answer at once."""
    try:
        found = list(replies(parsed_args, wire.KeysList(), timeout=COMPLETION_SECONDS))
    except (VerbFailed, DaemonUnreachable):
        return []
    return [key.name for reply in found if isinstance(reply, wire.KeysReport) for key in reply.keys if key.created_at]


def run(options: argparse.Namespace, out: Output) -> int:
    match options.action:
        case "add":
            _add(options, out)
        case "revoke":
            request = wire.KeysRevoke(name=options.name, now=options.now)
            ask(options, out, request, partial(draw_revoked, now=options.now), "Revoking the key")
        case _:
            ask(options, out, wire.KeysList(), draw, "Asking codexd")
    return 0


def _add(options: argparse.Namespace, out: Output) -> None:
    """Makes a key. Raises OSError when it could not be shown; it is revoked then, because it is shown only once."""
    try:
        limits = KeyLimits(
            models=tuple(name.strip() for name in (options.models or "").split(",") if name.strip()),
            requests_per_minute=options.rpm,
            concurrent_requests=options.concurrent,
            expires_at=None if options.expires is None else int(options.expires),
            until_percent=options.until,
            tokens_per_day=options.tokens_per_day,
        )
        request = wire.KeysAdd(name=options.name, strict=options.strict, limits=limits)
        ask(options, out, request, draw_added, "Creating a key")
    except OSError:
        for _ in replies(options, wire.KeysRevoke(name=options.name)):
            pass
        out.note(f"The key {quoted(options.name)} could not be shown, so it was revoked.")
        raise


def draw_added(reply: wire.KeyAdded) -> None:
    """Prints only the key on the standard output, so that a script can read it."""
    drawing.note(f'API key "{reply.name}" (shown only once, save it now):')
    drawing.plain(reply.key)
    if reply.first:
        drawing.note(
            "From now on every client must send a key. Most tools read it from $OPENAI_API_KEY, Claude Code from "
            "$ANTHROPIC_AUTH_TOKEN. `codexctl setup CLIENT --key KEY` shows where each client keeps it."
        )


def draw_revoked(reply: wire.KeyRevoked, *, now: bool) -> None:
    drawing.line(f"Revoked {reply.name}.")
    if reply.answers and now:
        drawing.note(f"Ended {_requests(reply.answers)} in progress with this key.")
    elif reply.answers:
        left = _requests(reply.answers)
        drawing.note(f"Not ended: {left} in progress. `codexctl keys revoke {reply.name} --now` ends them.")
    if not reply.required:
        drawing.note("That was the last key. Every program on this machine can now use the API without a key.")


def _requests(number: int) -> str:
    return f"{number} request{'' if number == 1 else 's'}"


def draw(report: wire.KeysReport) -> None:
    """Draws a row for each key; the column of limits only where a key has any."""
    if report.why:
        advice = "`codexctl keys add NAME` moves the file aside and starts a new one."
        drawing.note(f"{report.why}. Keys created with codexctl are refused until this is fixed; {advice}")
    if not report.keys:
        needed = "Clients must send one: create it with `codexctl keys add NAME`."
        drawing.line(f"No client keys. {needed if report.required else 'Programs on this machine need none.'}")
        return
    rows = [
        [
            key.name,
            drawing.moment(key.created_at) if key.created_at else "",
            drawing.ago(key.last_used_at) if key.last_used_at else "never",
            key.source,
            ", ".join(_terms(key)),
        ]
        for key in report.keys
    ]
    columns = ["name", "created", "last used", "from", "limits"]
    drawing.put(drawing.table(columns, rows, fold=["from", "created", "limits"]))


def _terms(key: wire.KeyEntry) -> Iterator[str]:
    """Yields the limits of a key."""
    limits = key.limits
    if key.strict:
        yield "strict"
    if limits.models:
        yield " ".join(limits.models)
    if limits.requests_per_minute is not None:
        yield f"{limits.requests_per_minute} per minute"
    if limits.concurrent_requests is not None:
        yield f"{limits.concurrent_requests} at once"
    if limits.until_percent is not None:
        yield f"up to {limits.until_percent} % of the account"
    if limits.tokens_per_day is not None:
        yield f"{drawing.count(limits.tokens_per_day)} tokens a day"
    if limits.expires_at is not None:
        over = "expired" if limits.expires_at <= drawing.now() else "expires"
        yield f"{over} {drawing.moment(limits.expires_at)}"
