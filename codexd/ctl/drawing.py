"""Terminal output of codexctl: consoles, tables, bars, times, and the replies that several verbs show.

rich is imported inside the functions: it takes longer than a verb with ``--json``, which does not need it.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from codexd.control import wire

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

Drawn: TypeAlias = "RenderableType"
"""What can be drawn: a string, or an object of rich."""

BAR = 24
"""Columns of a bar at its full length."""


# --- consoles


def console(*, stderr: bool = False) -> Console:
    """Returns a console. In a file or a pipe, where 80 columns mean nothing, it does not break lines."""
    import rich.console

    class Pipe(rich.console.Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1; __main__ handles it

    stream = sys.stderr if stderr else sys.stdout
    return Pipe(stderr=stderr, highlight=False, emoji=False, markup=False, width=None if stream.isatty() else 10_000)


def line(drawn: Drawn) -> None:
    """Prints on the standard output, in as many lines as the terminal needs."""
    console().print(drawn)


def put(drawn: Drawn) -> None:
    """Prints on the standard output without the spaces and empty lines that rich adds: the output may be a pipe."""
    to = console()
    with to.capture() as capture:
        to.print(drawn)
    lines = [line.rstrip() for line in capture.get().strip("\n").split("\n")]
    sys.stdout.write("\n".join(lines).strip("\n") + "\n")
    sys.stdout.flush()


def plain(shown: str) -> None:
    """Prints a text as it is, whatever its length. A script may read it."""
    print(shown, flush=True)  # noqa: T201


def note(message: str) -> None:
    """Prints a remark on the standard error."""
    console(stderr=True).print(message)


def failure(message: str) -> None:
    """Prints an error on the standard error."""
    console(stderr=True).print(text("codexctl: ", "red").append(message, style="default"))


@contextmanager
def spinner(shown: Any) -> Iterator[None]:
    """Shows a spinner with a text, or with an object with ``__rich__``, which is drawn several times a second."""
    with console(stderr=True).status(shown, spinner="dots"):
        yield


# --- pieces


def text(content: str, style: str = "") -> Text:
    """Returns a text of one style. More can be appended to it."""
    from rich.text import Text

    return Text(content, style=style)


def stack(*parts: Drawn) -> Drawn:
    """Returns the parts, each below the previous one."""
    from rich.console import Group

    return Group(*parts)


def below(part: Drawn) -> Drawn:
    """Returns the part with an empty line before it."""
    from rich.padding import Padding

    return Padding(part, (1, 0, 0, 0))


def bare(spaces: int) -> Table:
    """Returns a table without lines and headings. ``spaces`` separate its columns."""
    from rich.table import Table

    return Table.grid(padding=(0, spaces))


def grid(rows: list[tuple[str, Drawn]]) -> Table:
    """Returns a table of labels and values."""
    made = bare(3)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value)
    return made


def table(*columns: str, right: int | None = None) -> Table:
    """Returns a table with headings. The columns from index ``right`` on are right-aligned."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        at_right = right is not None and place >= right
        made.add_column(column, overflow="fold", justify="right" if at_right else "left")
    return made


# --- replies that several verbs show


def windows(report: wire.UsageReport) -> Table:
    """Returns a bar for each limit of the account: how much is used, and when it resets."""
    from rich.progress_bar import ProgressBar

    made = bare(2)
    for window in report.windows:
        used = window.used_percent
        style = "red" if used >= 90 else "yellow" if used >= 70 else "green"
        name = window.label if window.limit == "codex" else f"{window.limit}, {window.label}"
        bar = ProgressBar(total=100, completed=min(100.0, used), width=BAR, complete_style=style, finished_style=style)
        resets = f"resets {moment(window.resets_at)}, in {until(window.resets_at)}" if window.resets_at else ""
        percent = text(f"{used:g} %", style)
        percent.justify = "right"
        made.add_row(name, bar, percent, text(resets, "dim"))
    return made


def who(account: wire.Account) -> str:
    """Returns the name of the account and its plan."""
    name = account.email or account.account_id or "an account without a name"
    return f"{name} ({account.plan})" if account.plan else name


UNSAVED = (
    "Tokens could not be written to disk. Do not stop codexd until this is fixed, or you will have to sign in again."
)


def account(reply: wire.Account) -> None:
    """Draws the sign-in as one sentence."""
    if not reply.signed_in:
        line(text(f"Signed out: {reply.why}"))
        return
    said = text("Signed in as ").append(who(reply), style="bold")
    if reply.expires_at is not None:
        said.append(f"; the access token is valid until {moment(reply.expires_at)} and renewed before then")
    if reply.unsaved:
        said.append(f".\n{UNSAVED}", style="red")
    line(said if reply.unsaved else said.append("."))


_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red")}


def check(reply: wire.Check) -> None:
    """Draws a check as a line, and its advice as another."""
    mark, style = _MARKS[reply.outcome]
    made = bare(1)
    made.add_column(no_wrap=True)
    made.add_column(no_wrap=True, min_width=19)
    made.add_column(overflow="fold")
    made.add_row(text(mark, style), text(reply.name, "bold"), reply.message)
    if reply.advice:
        made.add_row("", "", text(f"→ {reply.advice}", style))
    put(made)


# --- times


def now() -> float:
    """Returns the time in Unix seconds."""
    return time.time()  # noqa: TID251 - times for a person


def moment(moment: int | None) -> str:
    """Returns a local time: only the hour today, with the day of the week within a week, else with the date."""
    if moment is None:
        return "unknown"
    then = datetime.datetime.fromtimestamp(moment).astimezone()
    today = datetime.datetime.fromtimestamp(now()).astimezone()
    if then.date() == today.date():
        return then.strftime("%H:%M")
    if abs((then.date() - today.date()).days) < 7:
        return then.strftime("%a %H:%M")
    return then.strftime("%Y-%m-%d %H:%M")


def ago(moment: int | None) -> str:
    """Returns how long ago a time was, such as ``5 min ago``."""
    if moment is None:
        return "never"
    seconds = now() - moment
    return "just now" if seconds < 60 else f"{span(seconds)} ago"


def count(number: int) -> str:
    """Returns a number with a space between thousands."""
    return f"{number:,}".replace(",", " ")


def until(moment: int | None) -> str:
    """Returns how long it is until a time, such as ``5 min``."""
    return "" if moment is None else span(max(0.0, moment - now()))


def span(seconds: float) -> str:
    """Returns a duration in its two largest units."""
    minutes = int(seconds // 60)
    days, hours = divmod(minutes // 60, 24)
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{int(seconds)} s"
